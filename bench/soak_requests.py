"""The requests of a soak, drawn at random from a seed: every API, valid and malformed, and what their answers must be.

It knows HTTP bodies and answers; who sends them, and what happens meanwhile, is soak.py's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from tests.server.streams import CHAT, MESSAGES, TEXT, Body, bodies, told

Judge = Callable[[int, bytes], str]  # status and body of an answer -> what is wrong with it; "": nothing
WORDS = ("river", "stone", "light", "winter", "paper", "seven", "green", "under", "table", "song", "window", "cloud")
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CALL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object", "properties": {"word": {"enum": ["river", "stone"]}}, "required": ["word"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
MALFORMED: tuple[tuple[str, bytes], ...] = (
    (CHAT, b"{"), (CHAT, b'{"messages": []}'), (TEXT, b'{"prompt": 5}'), (TEXT, b"\xff"), (MESSAGES, b"[]"),
    ("/api/chat", b'{"model": "nobody"}'), ("/api/generate", b"null"), ("/completion", b'{"prompt": {}}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "n": 100000}'), ("/tokenize", b"{}"),
    (TEXT, b'{"prompt": "a", "guided_regex": "(a"}'), (TEXT, b'{"prompt": "a", "temperature": -1}'),
    ("/v1/embeddings", b'{"input": "a"}'), ("/v1/responses", b'{"previous_response_id": "resp_0", "input": "a"}'),
    ("/v1/batches", b'{"input_file_id": "file-0", "endpoint": "/v1/completions"}'), ("/v1/no/route", b"{}"),
)  # fmt: skip
MULTIPART = "multipart/form-data; boundary=soak"


@dataclass(frozen=True)
class Ask:
    """One request. streamed: its answer may be left half-way. then: makes the next one from the answer."""

    kind: str
    method: str
    path: str
    data: bytes
    judge: Judge
    content_type: str = "application/json"
    streamed: bool = False
    then: Callable[[bytes], Ask | None] = field(default=lambda body: None)


def fine(status: int, body: bytes) -> str:
    """An answer, whatever it says."""
    return "" if status == 200 else f"{status} {body[:300]!r}"


def _whole(right: Callable[[dict[str, Any]], bool]) -> Judge:
    """A chat's answer whose message is right, if its tokens did not run out."""

    def judge(status: int, body: bytes) -> str:
        if status != 200:
            return fine(status, body)
        choice = json.loads(body)["choices"][0]
        return "" if choice["finish_reason"] == "length" or right(choice["message"]) else f"wrong: {choice}"

    return judge


def refused(status: int, body: bytes) -> str:
    """An error of the client's, in some API's shape."""
    if not 400 <= status < 500:
        return f"{status} for a malformed request: {body[:300]!r}"
    return "" if json.loads(body).get("error") else f"no error: {body[:300]!r}"


def probes() -> list[Body]:
    """Streams whose answers are known: those of an undisturbed run."""
    return bodies(13, 24)


def stream_of(path: str, body: bytes) -> dict[Any, Any]:
    """What a streamed answer says. AssertionError if it broke off."""
    lines = (line.removeprefix(b"data: ") for line in body.splitlines())
    events = [json.loads(line) for line in lines if line.startswith(b"{")]
    assert not any("error" in event for event in events), events[-1]
    return told(path, events)


class Requests:
    """Draws them. answers: of each probe, as soon as it is known."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._probes = probes()
        self.answers: dict[int, dict[Any, Any]] = {}
        self._kinds: tuple[tuple[int, Callable[[], Ask]], ...] = (
            (30, self.probe), (12, self.chat), (8, self.completion), (6, self.schema), (12, self.own_schema),
            (6, self.tools), (6, self.messages), (6, self.ollama), (5, self.response), (3, self.llama),
            (4, self.small), (2, self.file), (1, self.batch), (2, self.malformed), (5, self.long),
        )  # fmt: skip

    def draw(self) -> Ask:
        """The next one."""
        weights = [weight for weight, _ in self._kinds]
        ((_, kind),) = self._random.choices(self._kinds, weights)
        return kind()

    def words(self, most: int) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randrange(1, most)))

    def probe(self, number: int | None = None) -> Ask:
        """A stream whose answer is known."""
        place = self._random.randrange(len(self._probes)) if number is None else number
        path, body = self._probes[place]

        def judge(status: int, data: bytes) -> str:
            if status != 200:
                return f"{status} {data[:300]!r}"
            try:
                said = stream_of(path, data)
            except AssertionError as error:
                return f"broke off: {error}"
            known = self.answers.setdefault(place, said)
            return "" if said == known else f"changed: {said} instead of {known}"

        return _post(f"probe {path}", path, body, judge)

    def chat(self) -> Ask:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": self.words(60)}], "max_tokens": 24}
        if self._random.random() < 0.3:
            body |= {"n": 2, "logprobs": True, "top_logprobs": 2}
        return _post("chat", CHAT, {**body, "stream": self._random.random() < 0.7})

    def long(self) -> Ask:
        """A prompt that fills a good part of the cache."""
        return _post("long", TEXT, {"prompt": self.words(500), "max_tokens": 4, "stream": True})

    def completion(self) -> Ask:
        body = {"prompt": [self.words(30), self.words(30)], "max_tokens": 16, "echo": True, "cache_salt": self.words(4)}
        return _post("completion", TEXT, {**body, "stream": self._random.random() < 0.5})

    def schema(self) -> Ask:
        return self._constrained("schema", PERSON)

    def own_schema(self) -> Ask:
        """One that nobody has asked for before."""
        name = f"k{self._random.getrandbits(40):x}"
        return self._constrained(
            "unique schema", {"type": "object", "properties": {name: {"enum": ["a", "b"]}}, "required": [name]}
        )

    def _constrained(self, kind: str, schema: dict[str, Any]) -> Ask:
        form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
        message = {"role": "user", "content": self.words(8)}
        body = {"messages": [message], "max_tokens": 48, "temperature": 1, "response_format": form}

        valid = jsonschema.Draft202012Validator(schema).is_valid
        return _post(kind, CHAT, body, _whole(lambda message: valid(json.loads(message["content"]))))

    def tools(self) -> Ask:
        message = {"role": "user", "content": self.words(8)}
        body = {"messages": [message], "max_tokens": 64, "tools": [CALL], "tool_choice": "required"}

        def right(message: dict[str, Any]) -> bool:
            words = [json.loads(call["function"]["arguments"])["word"] for call in message.get("tool_calls") or ()]
            return bool(words) and all(word in ("river", "stone") for word in words)

        return _post("tools", CHAT, body, _whole(right))

    def messages(self) -> Ask:
        body = {"model": "default", "max_tokens": 24, "messages": [{"role": "user", "content": self.words(30)}]}
        if self._random.random() < 0.2:
            return _post("count_tokens", f"{MESSAGES}/count_tokens", {**body, "system": self.words(9)})
        return _post("messages", MESSAGES, {**body, "stream": self._random.random() < 0.5})

    def ollama(self) -> Ask:
        options = {"num_predict": 20, "seed": self._random.getrandbits(20)}
        body = {"model": "default", "options": options, "stream": self._random.random() < 0.5}
        if self._random.random() < 0.5:
            return _post("ollama", "/api/generate", {**body, "prompt": self.words(30)})
        return _post("ollama", "/api/chat", {**body, "messages": [{"role": "user", "content": self.words(30)}]})

    def llama(self) -> Ask:
        body = {"prompt": self.words(20), "n_predict": 16, "stream": self._random.random() < 0.5}
        return _post("llama.cpp", "/completion", body)

    def small(self) -> Ask:
        """What asks for no token."""
        method, path, body = self._random.choice(
            [
                ("GET", "/v1/models", None), ("GET", "/metrics", None), ("GET", "/api/tags", None),
                ("GET", "/health", None), ("GET", "/v1/usage", None), ("GET", "/openapi.json", None),
                ("POST", "/tokenize", {"prompt": self.words(50)}), ("POST", "/detokenize", {"tokens": [500, 600]}),
                ("POST", "/api/show", {"model": "default"}), ("POST", "/apply-template", {"messages": [
                    {"role": "user", "content": self.words(9)}]}),
            ]
        )  # fmt: skip
        return Ask("small", method, path, b"" if body is None else json.dumps(body).encode(), fine)

    def malformed(self) -> Ask:
        path, data = self._random.choice(MALFORMED)
        return Ask("malformed", "POST", path, data, refused)

    def response(self) -> Ask:
        """A response that is kept, gone on from, and deleted."""

        def delete(body: bytes) -> Ask:
            return Ask("response", "DELETE", f"/v1/responses/{json.loads(body)['id']}", b"", fine)

        def again(body: bytes) -> Ask:
            first = json.loads(body)["id"]
            asked = {"input": self.words(9), "max_output_tokens": 16, "previous_response_id": first, "store": False}
            drop = Ask("response", "DELETE", f"/v1/responses/{first}", b"", fine)
            return _post("response", "/v1/responses", asked, then=lambda body: drop)

        after = again if self._random.random() < 0.5 else delete
        if self._random.random() < 0.4:
            return _post("response", "/v1/responses", {"input": self.words(9), "stream": True, "store": False,
                         "max_output_tokens": 16})  # fmt: skip
        return _post("response", "/v1/responses", {"input": self.words(9), "max_output_tokens": 16}, then=after)

    def file(self) -> Ask:
        """A file that is read and deleted."""

        def read(body: bytes) -> Ask:
            path = f"/v1/files/{json.loads(body)['id']}"
            delete = Ask("file", "DELETE", path, b"", fine)
            return Ask("file", "GET", f"{path}/content", b"", fine, then=lambda body: delete)

        return _upload("file", self.words(300).encode(), "user_data", read)

    def batch(self) -> Ask:
        """A batch of three lines; nobody waits for it."""
        lines = [
            {"custom_id": str(n), "method": "POST", "url": TEXT, "body": {"prompt": self.words(9), "max_tokens": 8}}
            for n in range(3)
        ]

        def begin(body: bytes) -> Ask:
            return _post("batch", "/v1/batches", {"input_file_id": json.loads(body)["id"], "endpoint": TEXT})

        return _upload("batch", "\n".join(map(json.dumps, lines)).encode(), "batch", begin)


def _post(
    kind: str, path: str, body: dict[str, Any], judge: Judge = fine, then: Callable[[bytes], Ask | None] | None = None
) -> Ask:
    data, streamed = json.dumps(body).encode(), bool(body.get("stream"))
    return Ask(kind, "POST", path, data, judge, streamed=streamed, **({} if then is None else {"then": then}))


def _upload(kind: str, data: bytes, purpose: str, then: Callable[[bytes], Ask | None]) -> Ask:
    head = b'--soak\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n%s\r\n' % purpose.encode()
    part = b'--soak\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    body = head + part + data + b"\r\n--soak--\r\n"
    return Ask(kind, "POST", "/v1/files", body, fine, MULTIPART, then=then)
