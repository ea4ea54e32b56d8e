"""What `octavo bench serve` asks: pseudo-random prompts, conversations in ShareGPT's form, or a file of prompts.

Lengths are those of the server's tokenizer, which is asked for them; where a server has none to ask, words are counted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from octavo.cli.web import Address, Unreachable, ask
from octavo.errors import ConfigError

T = TypeVar("T")
NAMES = ("random", "sharegpt", "custom")
VOCABULARY = 10_000  # ids that every vocabulary has
TOKENS_A_WORD = 4 / 3  # where there is no tokenizer to ask
LEAST_TOKENS = 4  # of a prompt or an answer of ShareGPT: shorter ones say nothing


@dataclass(frozen=True)
class Asked:
    """A prompt, as a text or as ids, and how many tokens it is to get."""

    prompt: str | list[int]
    output_tokens: int

    def body(self, model: str, chat: bool, more: dict[str, Any]) -> dict[str, Any]:
        """For /v1/chat/completions or /v1/completions."""
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": self.prompt}]}
        asked = asked if chat else {"prompt": self.prompt}
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": model, **asked, "max_tokens": self.output_tokens, **usage, **more}


@dataclass(frozen=True)
class Tokens:
    """The server's tokenizer, as far as it has routes for it."""

    address: Address
    model: str
    key: str | None

    async def vocabulary(self) -> int:
        """How many ids there are."""
        made = await self._asked("GET", "/tokenizer_info", {})
        return int(made.get("vocab_size") or VOCABULARY)

    async def text(self, ids: Sequence[int]) -> str:
        """A text of about so many tokens."""
        made = await self._asked("POST", "/detokenize", {"model": self.model, "tokens": list(ids)})
        return str(made.get("prompt") or " ".join("word" for _ in ids))

    async def count(self, text: str) -> int:
        made = await self._asked("POST", "/tokenize", {"model": self.model, "prompt": text})
        return int(made.get("count") or max(1, round(len(text.split()) * TOKENS_A_WORD)))

    async def _asked(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode() if method == "POST" else b""
        try:
            answer = await ask(self.address, method, path, data, key=self.key, seconds=30.0)
        except Unreachable:
            return {}
        made = answer.json() if answer.status == 200 else None
        return made if isinstance(made, dict) else {}


@dataclass(frozen=True)
class Lengths:
    """Of random prompts. ratio: lengths are drawn from (1 - ratio) to (1 + ratio) times what is named. prefix: tokens
    at the beginning that all prompts have in common."""

    input: int
    output: int
    ratio: float
    prefix: int


async def random_prompts(lengths: Lengths, count: int, seed: int, chat: bool, tokens: Tokens) -> list[Asked]:
    """`count` prompts, the same for the same seed and vocabulary."""
    chance, vocabulary = random.Random(seed), await tokens.vocabulary()

    def length(named: int) -> int:
        return chance.randint(max(1, int(named * (1 - lengths.ratio))), max(1, int(named * (1 + lengths.ratio))))

    prefix = [chance.randrange(vocabulary) for _ in range(lengths.prefix)]
    made = []
    for _ in range(count):
        ids = prefix + [chance.randrange(vocabulary) for _ in range(length(lengths.input))]
        made.append(Asked(await tokens.text(ids) if chat else ids, length(lengths.output)))
    return made


async def conversations(path: Path, output: int | None, count: int, seed: int, tokens: Tokens) -> list[Asked]:
    """The first questions of ShareGPT's conversations; answers as long as those in the file where `output` is None."""

    def turns(row: Any) -> tuple[str, str] | None:
        said = row.get("conversations") or row.get("conversation") if isinstance(row, dict) else None
        texts = [each.get("value") or each.get("content") for each in said or () if isinstance(each, dict)]
        return (str(texts[0]), str(texts[1])) if len(texts) > 1 and texts[0] and texts[1] else None

    rows = _rows(path, turns, "conversations of two turns at least (from, value)")
    random.Random(seed).shuffle(rows)
    made: list[Asked] = []
    for question, answer in rows:
        if len(made) == count:
            break
        wanted = output or await tokens.count(answer)
        if wanted >= LEAST_TOKENS and len(question) >= LEAST_TOKENS:
            made.append(Asked(question, wanted))
    return _enough(made, count)


async def custom(path: Path, output: int, count: int) -> list[Asked]:
    """Lines with `prompt`, and `output_tokens` where it is not `output`; in the order of the file."""

    def asked(row: Any) -> Asked | None:
        prompt = row.get("prompt") if isinstance(row, dict) else None
        return Asked(prompt, int(row.get("output_tokens") or output)) if isinstance(prompt, str) and prompt else None

    return _enough(_rows(path, asked, "lines with `prompt`")[:count], count)


def _enough(made: list[Asked], count: int) -> list[Asked]:
    """As many as are asked for: from the beginning again where there are fewer."""
    if not made:
        raise ConfigError("--dataset-path: every conversation in it is too short.", flag="--dataset-path")
    return [made[number % len(made)] for number in range(count)]


def _rows(path: Path, read: Callable[[Any], T | None], expected: str) -> list[T]:
    """Of a JSON list or of a JSON object a line."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(e) for e in text.splitlines() if e]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--dataset-path {path}: {why}.", flag="--dataset-path") from None
    found = [made for row in rows if (made := read(row)) is not None]
    if not found:
        raise ConfigError(f"--dataset-path {path}: it has no {expected}.", flag="--dataset-path")
    return found
