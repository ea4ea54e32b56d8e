"""Keys of a file on a live server: who may do what, whose things are whose, keys that change while it runs."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from octavo.server.key_file import key_line
from octavo.server.routes import ROUTES
from tests.server.live import Live, error_of, events

ADMIN = {
    ("GET", "/slots"), ("POST", "/reset_prefix_cache"), ("POST", "/api/pull"), ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
}  # fmt: skip
LINES = [
    key_line("alice", "sk-alice", []),
    key_line("bob", "sk-bob", []),
    key_line("ops", "sk-ops", ["admin"]),
]


class Keyed(Live):
    """A server with a file of keys."""

    def __init__(self, folder: Path, lines: list[str], *flags: str, model: Path | None = None) -> None:
        self.keys = folder / "keys"
        self.keys.write_text("\n".join(lines) + "\n")
        self._http = httpx.Client(timeout=60)
        super().__init__(folder, "--api-key-file", str(self.keys), *flags, model=model)

    def ask(self, key: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"x-api-key": f"sk-{key}", **more.pop("headers", {})}
        return self._http.request(method, self.url + path, headers=headers, **more)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self._http.close()
        return super().stop(number)

    def reload(self, lines: list[str], said: str) -> None:
        """Write other keys, and wait until the server has read them."""
        self.keys.write_text("\n".join(lines) + "\n")
        before = self.log.count(said)
        self.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 10
        while self.log.count(said) == before:
            assert time.monotonic() < end, self.log
            time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    made = Keyed(tmp_path_factory.mktemp("tenants"), LINES)
    yield made
    assert made.stop() == 0


def client(server: Live, name: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key=f"sk-{name}", max_retries=0)


def test_the_administrative_routes_are_these() -> None:
    assert {(entry.methods[0], entry.path) for entry in ROUTES if entry.admin} == ADMIN


@pytest.mark.parametrize(("method", "path"), sorted(ADMIN))
def test_administrative_routes(server: Keyed, method: str, path: str) -> None:
    """Refused in the dialect of the path, before anything is read."""
    refused = server.ask("alice", method, path, json={"model": "none"})
    assert refused.status_code == 403 and "administrator" in error_of(refused)["message"]
    assert server.ask("ops", method, path, json={"model": "none"}).status_code != 403


@pytest.mark.parametrize(("method", "path"), sorted(ADMIN))
def test_pages_do_not_administrate(server: Keyed, method: str, path: str) -> None:
    """Check 17: whatever key a page has, and on a server without keys, too."""
    for origin, status in (("https://evil.example", 403), ("http://localhost.evil.example", 403), ("null", 403)):
        asked = {"headers": {"origin": origin}, "json": {"model": "none"}}
        refused = server.ask("ops", method, path, **asked)
        assert refused.status_code == status and "may not administrate" in error_of(refused)["message"]
    allowed = server.ask("ops", method, path, headers={"origin": "http://localhost:3000"}, json={"model": "none"})
    assert allowed.status_code != 403


def test_nobody_makes_himself_urgent(server: Keyed) -> None:
    for name, priority, status in (("alice", -1, 400), ("alice", 1, 200), ("alice", 0, 200), ("ops", -1, 200)):
        body = {"prompt": "a", "max_tokens": 1, "priority": priority}
        answer = server.ask(name, "POST", "/v1/completions", json=body)
        assert answer.status_code == status, (name, priority, answer.text)
        assert status == 200 or error_of(answer)["param"] == "priority"


def test_files_and_batches_are_their_makers(server: Keyed) -> None:
    asked = {"prompt": "One two", "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": asked}
    with client(server, "alice") as alice, client(server, "bob") as bob, client(server, "ops") as ops:
        file = alice.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch").id
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h")
        batch = alice.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h")
        assert "owner" not in batch.model_dump()
        end = time.monotonic() + 30
        while batch.status != "completed":
            assert time.monotonic() < end and batch.status != "failed"
            time.sleep(0.05)
            batch = alice.batches.retrieve(batch.id)
        output = str(batch.output_file_id)
        for ask in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        for id_ in (file, output):
            for look in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    look(id_)
            assert "owner" not in alice.files.retrieve(id_).model_dump()
        assert not list(bob.files.list()) and not list(bob.batches.list())
        for who in (alice, ops):
            assert {each.id for each in who.files.list()} == {file, output}
            assert [each.id for each in who.batches.list()] == [batch.id]
        assert json.loads(alice.files.content(output).text)["response"]["status_code"] == 200
        assert ops.files.delete(file).deleted and alice.files.delete(output).deleted


def test_kept_responses_are_their_makers(server: Keyed) -> None:
    with client(server, "alice") as alice, client(server, "bob") as bob:
        asked: dict[str, Any] = {"model": "default", "input": "Hi", "max_output_tokens": 4}
        made = alice.responses.create(**asked)
        for look in (
            bob.responses.retrieve,
            bob.responses.delete,
            bob.responses.cancel,
            bob.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                look(made.id)
        with pytest.raises(openai.BadRequestError) as told:
            bob.responses.create(**asked, previous_response_id=made.id)
        assert told.value.code == "previous_response_not_found"
        assert alice.responses.create(**asked, previous_response_id=made.id).previous_response_id == made.id
        alice.responses.delete(made.id)


def test_keys_change_and_no_stream_ends(server: Keyed) -> None:
    """A stream of a key that is taken away goes on to its end; a broken file changes nothing and says why."""
    body = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True}
    headers = {"x-api-key": "sk-alice"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        server.reload([*LINES, "carol nothing"], "the old ones stay")
        assert "line 4: after the name carol comes sha256:" in server.log
        assert server.ask("alice", "GET", "/v1/models").status_code == 200
        server.reload([*LINES[1:], key_line("carol", "sk-carol", [])], "keys reloaded")
        assert server.ask("alice", "GET", "/v1/models").status_code == 401
        assert server.ask("carol", "GET", "/v1/models").status_code == 200
        text += "".join(pieces)
    *told, done = events(text)
    assert done == "[DONE]" and told[-1]["choices"][0]["finish_reason"] == "length"
    server.reload(LINES, "keys reloaded")


# -- prefixes ----------------------------------------------------------------------------------------------------------


def cached(server: Keyed, key: str, salt: str | None = None) -> int:
    body = {"prompt": [(11 * i) % 1000 + 100 for i in range(70)], "max_tokens": 1, "cache_salt": salt}
    usage = server.ask(key, "POST", "/v1/completions", json=body).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_prefixes_are_their_keys(server: Keyed) -> None:
    """Nobody learns from a hit what another key has asked, whatever salt it makes up."""
    assert [cached(server, "alice") for _ in range(2)] == [0, 64]
    for salt in (None, "alice", "alice\x00", "\x00alice\x00"):
        assert cached(server, "bob", salt) == 0
    assert cached(server, "bob") == 64
    assert [cached(server, "alice", "own") for _ in range(2)] == [0, 64]  # salts part what is one's own


def test_two_hundred_times_nobody_finds_another_s(server: Keyed) -> None:
    """Check 18: prompts of one key, asked by others with and without salts, between its own."""
    foreign = own = 0
    for trial in range(0, 200, 20):
        prompts = [[(number * 31 + i) % 1000 + 100 for i in range(18)] for number in range(trial, trial + 20)]
        salt = (None, "a", "alice")[trial // 20 % 3]
        asked = {"prompt": prompts, "max_tokens": 1}

        def hits(name: str, salt: str | None, asked: dict[str, Any] = asked) -> int:
            answer = server.ask(name, "POST", "/v1/completions", json={**asked, "cache_salt": salt})
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        hits("alice", salt)
        foreign += hits("bob", salt) + hits("ops", None)
        own += hits("alice", salt)
    assert (foreign, own) == (0, 200 * 16)


SALTS: list[Any] = [
    "\x00",
    "a\nb",
    "/",
    "../..",
    "\u202e\U0001f600",
    "x" * 200,
    "",
    "x" * (1 << 20),
    7,
    ["a"],
    {"a": 1},
]


@pytest.mark.parametrize("salt", SALTS, ids=lambda salt: repr(salt)[:12])
def test_what_a_salt_may_be(server: Keyed, salt: Any) -> None:
    """Check 19."""
    engine = server.engine().pid
    answer = server.ask("bob", "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 1, "cache_salt": salt})
    wrong = not isinstance(salt, str) or not 0 < len(salt) <= 1000
    assert answer.status_code == (400 if wrong else 200), answer.text
    assert not wrong or error_of(answer)["param"] == "cache_salt"
    assert server.engine().pid == engine


def test_prefixes_may_be_shared(tmp_path: Path) -> None:
    names = ("alice", "bob", "carol")
    lines = [key_line(name, f"sk-{name}", ["share-prefix-cache"] if name != "carol" else []) for name in names]
    server = Keyed(tmp_path, lines)
    try:
        assert [cached(server, name) for name in names] == [0, 64, 0]
        assert [cached(server, "bob", "carol\x00"), cached(server, "carol"), cached(server, "bob", "x")] == [0, 64, 0]
    finally:
        assert server.stop() == 0
    server = Keyed(tmp_path, LINES, "--share-prefix-cache")
    try:
        assert [cached(server, name) for name in ("alice", "bob")] == [0, 64]
    finally:
        assert server.stop() == 0


# -- deadlines ---------------------------------------------------------------------------------------------------------

LONG: dict[str, Any] = {"max_tokens": 900, "n": 8, "ignore_eos": True}
HURRY = {"x-request-deadline-ms": "700"}


def test_a_deadline_cuts_an_answer(server: Keyed) -> None:
    """In every dialect the answer ends as one that is too long does."""
    made = server.ask("alice", "POST", "/v1/completions", json={"prompt": "Once", **LONG}, headers=HURRY).json()
    assert {choice["finish_reason"] for choice in made["choices"]} == {"length"}
    assert {choice["stop_reason"] for choice in made["choices"]} == {"deadline"}
    assert 8 <= made["usage"]["completion_tokens"] < 8 * 900
    beams = {"prompt": "Once", "max_tokens": 900, "n": 2, "use_beam_search": True, "ignore_eos": True}
    made = server.ask("alice", "POST", "/v1/completions", json=beams, headers=HURRY).json()
    assert [choice["finish_reason"] for choice in made["choices"]] == ["length"] * 2
    assert 2 <= made["usage"]["completion_tokens"] < 2 * 900
    body = {"prompt": "Once", **LONG, "stream": True}
    streamed = events(server.ask("alice", "POST", "/v1/completions", json=body, headers=HURRY).text)
    ends = [choice for event in streamed[:-1] for choice in event["choices"] if choice["finish_reason"]]
    assert streamed[-1] == "[DONE]" and len(ends) == 8 and {end["finish_reason"] for end in ends} == {"length"}


def test_a_deadline_that_nobody_can_keep(server: Keyed) -> None:
    """Each dialect tells it in its own shape; nothing of it is left in the engine."""
    messages = [{"role": "user", "content": "word " * 900}]
    for path, more in (
        ("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 5}), ("/api/chat", {}), ("/completion", {})
    ):  # fmt: skip
        body = {"model": "default", "messages": messages, "prompt": "word " * 900, **more}
        late = server.ask("bob", "POST", path, json=body, headers={"x-request-deadline-ms": "1"})
        assert late.status_code == 504 and "deadline passed" in error_of(late)["message"], (path, late.text)
    assert server.ask("ops", "GET", "/load").json() == {"server_load": 0}


@pytest.mark.parametrize("given", ["0", "-5", "soon", "1.5", "86400001", "9" * 30])
def test_what_is_no_deadline(server: Keyed, given: str) -> None:
    headers = {"x-request-deadline-ms": given}
    wrong = server.ask("bob", "POST", "/v1/completions", json={"prompt": "a"}, headers=headers)
    assert wrong.status_code == 400 and error_of(wrong)["param"] == "x-request-deadline-ms"
