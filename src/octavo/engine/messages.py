"""What front and engine say to each other: msgspec structs in MessagePack, their version and limits.

Every message carries the epoch of the engine it belongs to, so that words of a dead engine are dropped; everything
about a request carries its id, and outputs the choice and the index of their first id. It knows no socket.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from octavo import errors
from octavo.errors import OctavoError
from octavo.execution.step import TokenLogprobs
from octavo.request import FinishReason, Request
from octavo.stats import StepStats

T = TypeVar("T")
VERSION = 6
MAX_FRAME = 32 << 20  # bytes: 2^20 allowed ids and a prompt of 10^6 ids take about 10 MiB


class PromptOutput(msgspec.Struct, frozen=True):
    """Comes with the first output of choice 0. prompt_logprobs: for positions 1, 2, ... of the prompt, if asked for.
    queued: seconds until it was first admitted."""

    cached_tokens: int
    prompt_logprobs: list[TokenLogprobs] | None = None
    queued: float = 0.0


class ChoiceOutput(msgspec.Struct, array_like=True):
    """New ids of one choice. index: position of the first of them in the choice's emitted ids. stop_id: the id that
    ended it. error: why finish is ERROR, kind: the class of that error in octavo.errors, or what cut it. mu: Mirostat's
    state after the ids, which a resumed request brings back. vector: float32, little-endian, in place of ids."""

    request: str
    choice: int
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    stop_id: int | None = None
    error: str | None = None
    prompt: PromptOutput | None = None
    mu: float | None = None
    vector: bytes | None = None
    kind: str | None = None


class EngineInfo(msgspec.Struct, frozen=True):
    """What the front must know of an engine that is ready. max_model_len: what prompt and answer may have together.
    vector: numbers that a request gives in place of ids; 0: it gives ids. pinned: values that start-up chose, for the
    options of an engine that takes this one's place."""

    model_name: str
    max_model_len: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    fingerprint: str
    kv_tokens: int
    summary: tuple[str, ...] = ()
    vector: int = 0
    pinned: dict[str, dict[str, Any]] = {}

    @property
    def longest_prompt(self) -> int:
        """Tokens: an answer has one at least."""
        return self.max_model_len if self.vector else self.max_model_len - 1


class EngineStats(msgspec.Struct, frozen=True):
    """Gauges of now and totals since the engine's start."""

    running: int
    waiting: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int
    blocks_owned: int
    steps: int
    prompt_tokens: int  # rows computed that were not decode rows
    generated_tokens: int
    preemptions: int
    queried_tokens: int
    hit_tokens: int
    nonfinite: int  # sequences that ended because of a non-finite logit
    drafts: int  # runs with drafted ids
    draft_tokens: int  # drafted ids
    accepted_tokens: int  # drafted ids that were sampled
    native_seconds: float
    engine_seconds: float  # outside the runner: schedule, update, messages
    masks: int  # of constrained sequences, made by the grammar process
    mask_seconds: float  # that they took there
    step_tokens: list[int] = []  # steps by their token rows: up to each of stats.STEP_TOKENS, and more
    step_rows: int = 0  # token rows of all steps
    last_step: StepStats | None = None

    @property
    def kv_usage(self) -> float:
        """Share of blocks that sequences own, 0 to 1."""
        return self.blocks_owned / self.blocks_total if self.blocks_total else 0.0


class ErrorRecord(msgspec.Struct, frozen=True):
    """An OctavoError on the wire."""

    kind: str
    message: str
    status: int
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None
    exit_code: int = 1

    @classmethod
    def of(cls, error: OctavoError) -> ErrorRecord:
        kind = type(error).__name__
        return cls(kind, error.message, error.status, error.param, error.code, error.retry_after, error.exit_code)

    def error(self) -> OctavoError:
        """The error again, of its own class; a class that this side does not have becomes OctavoError."""
        kind = getattr(errors, self.kind, OctavoError)
        kind = kind if isinstance(kind, type) and issubclass(kind, OctavoError) else OctavoError
        made = kind.__new__(kind)
        OctavoError.__init__(
            made, self.message, status=self.status, param=self.param, code=self.code, retry_after=self.retry_after,
            exit_code=self.exit_code,
        )  # fmt: skip
        return made


# front -> engine


class Boot(msgspec.Struct, frozen=True):
    """What the supervisor tells a new process, as JSON over its standard input. path: sys.path. flight: descriptor of
    the flight record. stack: descriptor of where Python's stack goes when a signal kills the process. faults: of test
    builds, else empty."""

    path: list[str]
    parent: int
    socket: str
    flight: int
    stack: int
    members: int
    epoch: int
    factory: str
    options: dict[str, Any]
    log_level: str = "info"
    log_json: bool = False
    faults: dict[str, str] = {}


class Submit(msgspec.Struct, tag=True, frozen=True):
    """again: an engine has taken the request before, so that the queue's bound does not hold for it."""

    epoch: int
    request: Request
    again: bool = False


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End a choice (None: all of them). kept: emitted ids that the front kept, when a stop string ended it."""

    epoch: int
    request: str
    choice: int | None = None
    kept: int | None = None


class Ask(msgspec.Struct, tag=True, frozen=True):
    """A question with a number that the answer repeats. what: `stats` or `reset_prefix_cache`."""

    epoch: int
    number: int
    what: str


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    epoch: int


# engine -> front


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The first message of an engine that is ready."""

    version: int
    epoch: int
    info: EngineInfo


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine could not start, and ends."""

    epoch: int
    error: ErrorRecord


class Refused(msgspec.Struct, tag=True, frozen=True):
    epoch: int
    request: str
    error: ErrorRecord


class Outputs(msgspec.Struct, tag=True, frozen=True):
    epoch: int
    step: int
    items: list[ChoiceOutput]


class Tokens(msgspec.Struct, tag=True, frozen=True):
    """What a step of decode rows gave, in columns: nobody in it began or ended. who: `pack_who` of the rows' choices,
    the same bytes as long as the same rows run. indices: position of each row's first id in its choice's emitted ids.
    ids: of all rows, for one step of the loop after the other."""

    epoch: int
    step: int
    who: bytes
    indices: list[int]
    ids: list[int]


class Answer(msgspec.Struct, tag=True, frozen=True):
    epoch: int
    number: int
    stats: EngineStats


class Dead(msgspec.Struct, tag=True, frozen=True):
    """The engine ends because of an exception. trace: of it, as Python prints it."""

    epoch: int
    reason: str
    trace: str = ""


FrontMessage = Submit | Abort | Ask | Shutdown
EngineMessage = Hello | Failed | Refused | Outputs | Tokens | Answer | Dead

_encoder = msgspec.msgpack.Encoder()
_from_front: msgspec.msgpack.Decoder[FrontMessage] = msgspec.msgpack.Decoder(FrontMessage)
_from_engine: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)
_who = msgspec.msgpack.Decoder(list[tuple[str, int]])


class BrokenMessage(Exception):
    """Bytes that are no message of this version: the connection that they came over ends."""


def encode(message: FrontMessage | EngineMessage) -> bytes:
    return _encoder.encode(message)


def decode_front(data: bytes | bytearray | memoryview) -> FrontMessage:
    """A message of the front. BrokenMessage if it is none."""
    return _decode(_from_front, data)


def decode_engine(data: bytes | bytearray | memoryview) -> EngineMessage:
    """A message of the engine. BrokenMessage if it is none."""
    return _decode(_from_engine, data)


def pack_who(rows: list[tuple[str, int]]) -> bytes:
    """(request, choice) of each row of a Tokens message."""
    return _encoder.encode(rows)


def unpack_who(data: bytes) -> list[tuple[str, int]]:
    """The rows again. BrokenMessage if it is nothing of the kind."""
    return _decode(_who, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | bytearray | memoryview) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, OctavoError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        raise BrokenMessage(str(error)) from None
