"""What the engine and its grammar process say to each other: structs in frames of 4 bytes of length and MessagePack.

It knows neither pipes nor matchers.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from octavo.structured_outputs import StructuredOutputsParams


class Start(msgspec.Struct, frozen=True):
    """The first frame: where the tokenizer is, and the table. vocabulary: ids of the model."""

    model: str
    cache: str
    slots: int
    vocabulary: int
    table: int
    parent: int


class Compile(msgspec.Struct, tag=True, frozen=True):
    """Compile this, answer with Compiled, and keep it while it is in use: until as many Drops have come. closes: for
    answers that are to end in time."""

    number: int
    key: bytes
    asked: StructuredOutputsParams
    closes: bool = False


class Open(msgspec.Struct, tag=True, frozen=True):
    """A sequence enters a slot: so many ids of the prompt, then those emitted. opening: a number that its masks carry,
    so that one made for who was there before does not count. allowed: ids that it may have at all. room: ids that it
    may have in all, the emitted ones among them, where it is to end in time."""

    slot: int
    opening: int
    key: bytes
    prompt: int
    emitted: list[int]
    allowed: list[int] | None = None
    room: int | None = None


class Feed(msgspec.Struct, tag=True, frozen=True):
    """(slot, id) of sequences that have a new id."""

    rows: list[tuple[int, int]]


class Close(msgspec.Struct, tag=True, frozen=True):
    slot: int


class Drop(msgspec.Struct, tag=True, frozen=True):
    """A request with this constraint is over."""

    key: bytes


class Compiled(msgspec.Struct, frozen=True):
    """The answer. error: why it cannot be had, param and code: as InvalidRequest has them. number 0: the process is
    ready, or says why it cannot be."""

    number: int
    error: str | None = None
    param: str | None = None
    code: str | None = None


Command = Compile | Open | Feed | Close | Drop
commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
answers: msgspec.msgpack.Decoder[Compiled] = msgspec.msgpack.Decoder(Compiled)


class Frames:
    """Bytes of a stream -> frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole now."""
        self._buffer += data
        while len(self._buffer) >= 4:
            end = 4 + int.from_bytes(self._buffer[:4], "little")
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[4:end])
            del self._buffer[:end]
            yield frame


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(4, "little") + data
