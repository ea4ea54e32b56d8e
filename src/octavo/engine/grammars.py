"""The engine's side of the grammar process: what is being compiled, whose masks are made where, and every deadline.

A request waits here until its constraint is compiled. Each id that is sampled is told to the process, which writes the
next mask while the next step runs. It may die or be killed at any time: its diary says at whose work it was, which ends
with an error; all others are told to the next process from the ids that they have emitted. It starts with the first
constrained request. It knows neither blocks nor rows.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

import msgspec

from octavo import logs
from octavo.engine.sequence import Sequence
from octavo.errors import GrammarFailed, InvalidRequest, OctavoError, QueueFull, Unavailable
from octavo.grammar.child import Child, ChildDied
from octavo.grammar.messages import Close, Compile, Compiled, Drop, Feed, Open
from octavo.grammar.table import FAILED, MaskTable
from octavo.request import Request
from octavo.structured_outputs import StructuredOutputsParams

START_SECONDS = 60.0  # of the process: it reads the tokenizer, in 0.5 to 2 s
COMPILE_SECONDS = 5.0  # of one constraint
MASK_SECONDS = 5.0  # of one mask; the library's own limits end it after 15 ms
LATE_SECONDS = 60.0  # that a sequence waits for a mask in all: a new process is there long before
MAX_COMPILING = 256  # requests that wait for their constraints
REMEMBERED = 1024  # constraints that took too long, by their digest
DEATHS, DEATH_SECONDS = 5, 60.0  # so many within so long, with nobody at fault: no further process is started


@dataclass(frozen=True)
class GrammarSetup:
    """Where a grammar process finds the tokenizer, and how the executor is told of the table of masks (address of its
    lines, slots, bytes of a mask)."""

    model: str
    cache: str
    bind: Callable[[int, int, int], None]


@dataclass
class _Waiting:
    """A request whose constraint is compiled."""

    request: Request
    key: bytes
    again: bool


class Grammars:
    """All constrained requests of one engine. Its one thread uses it."""

    def __init__(
        self, setup: GrammarSetup, slots: int, vocabulary: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._setup, self._clock = setup, clock
        self._vocabulary = vocabulary
        self._table = MaskTable(slots, vocabulary)
        self._child: Child | None = None
        self._ready = False  # the process has said so
        self._since = 0.0  # when it was started
        self._deaths: list[float] = []
        self._waiting: dict[int, _Waiting] = {}
        self._number = 0
        self._keys: dict[str, bytes] = {}  # of every constrained request in the engine
        self._asked: dict[bytes, StructuredOutputsParams] = {}
        self._closing: set[bytes] = set()  # of these, those whose answers are to end in time
        self._slots: dict[int, Sequence] = {}
        self._late: dict[int, float] = {}  # slot -> since when its mask is waited for
        self._news: list[tuple[int, int]] = []
        self._compiling = (0, 0.0)  # what the process is at, and since when
        self._refused: OrderedDict[bytes, InvalidRequest] = OrderedDict()
        self._failures: list[tuple[Sequence, str]] = []
        self._answered: list[tuple[Request, bool, OctavoError | None]] = []
        setup.bind(self._table.address, slots, self._table.stride)

    # Requests

    def ask(self, request: Request, again: bool = False) -> None:
        """Have its constraint compiled; settle() tells when it is. Raises what is known of it already."""
        asked, closes = request.params.structured_outputs, request.params.grammar_close
        assert asked is not None
        key = blake2b(msgspec.msgpack.encode((replace(asked, asked_as=None), closes)), digest_size=16).digest()
        if key in self._refused:
            raise self._refused[key]
        if len(self._waiting) >= MAX_COMPILING:
            raise QueueFull(
                f"{MAX_COMPILING} requests wait for their structured_outputs to be compiled.", code="grammars_busy"
            )
        if self._child is None:
            self._start()
        self._number += 1
        self._waiting[self._number] = _Waiting(request, key, again)
        self._keys[request.request_id] = key
        self._asked[key] = asked
        if closes:
            self._closing.add(key)
        self._post(self._compile(self._number, key))

    def cancel(self, request_id: str) -> Request | None:
        """Forget a request that waits; the request, if there is one."""
        for number, waiting in self._waiting.items():
            if waiting.request.request_id == request_id:
                del self._waiting[number]
                self.over(request_id)
                return waiting.request
        return None

    def over(self, request_id: str) -> None:
        """A request has left the engine."""
        key = self._forget(request_id)
        if key is not None:
            self._post(Drop(key))

    @property
    def busy(self) -> bool:
        """Whether a request waits here."""
        return bool(self._waiting) or bool(self._answered)

    @property
    def cost(self) -> tuple[int, int]:
        """Masks made so far, and nanoseconds that they took."""
        return self._table.cost

    # Sequences

    def opened(self, sequence: Sequence) -> None:
        """It has entered a slot: its next mask is wanted."""
        self._slots[sequence.slot] = sequence
        self._table.clear(sequence.slot)
        self._post(self._open(sequence))

    def closed(self, slot: int) -> None:
        """Whoever was in the slot has left it."""
        self._late.pop(slot, None)
        if self._slots.pop(slot, None) is not None:
            self._table.clear(slot)
            self._post(Close(slot))

    def feed(self, slot: int, token: int) -> None:
        """The sequence there has a new id."""
        self._news.append((slot, token))

    def flush(self) -> None:
        """Tell the process what is new."""
        if self._news:
            news, self._news = self._news, []
            self._post(Feed(news))

    def there(self, sequence: Sequence) -> bool:
        """Whether there is word on its next mask."""
        return self._table.read(sequence.slot)[:2] == (sequence.opening, len(sequence.ids))

    def late(self, sequence: Sequence) -> bool:
        """A step had to do without its mask. True if there will be none."""
        if self._table.read(sequence.slot) == (sequence.opening, len(sequence.ids), FAILED):
            return True
        self._late.setdefault(sequence.slot, self._clock())
        return False

    def came(self, sequence: Sequence) -> None:
        """Its mask is there after all."""
        self._late.pop(sequence.slot, None)

    # The process

    def settle(self) -> tuple[list[tuple[Request, bool, OctavoError | None]], list[tuple[Sequence, str]]]:
        """What has become of waiting requests, and sequences that cannot go on, with the reason."""
        if self._child is not None:
            try:
                for answer in self._child.poll():
                    self._take(answer)
            except ChildDied:
                self._replace("it died")
            else:
                self._watch()
        answered, self._answered = self._answered, []
        failures, self._failures = self._failures, []
        return answered, failures

    def close(self) -> None:
        """End the process, and let the executor forget the table."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        self._setup.bind(0, 0, 0)
        self._table.close()

    def _post(self, message: msgspec.Struct) -> None:
        if self._child is not None:
            self._child.post(message)

    def _open(self, sequence: Sequence) -> Open:
        params = sequence.live.request.params
        emitted = sequence.ids[sequence.prompt_len :]
        allowed = None if params.allowed_token_ids is None else list(params.allowed_token_ids)
        key = self._keys[sequence.request_id]
        # Where ids are forbidden beside the constraint, the way to the end may be one that cannot be gone.
        closes = key in self._closing and allowed is None and not params.bad_words
        room = sequence.length_limit - sequence.prompt_len if closes else None
        return Open(sequence.slot, sequence.opening, key, sequence.prompt_len, emitted, allowed, room)

    def _compile(self, number: int, key: bytes) -> Compile:
        return Compile(number, key, self._asked[key], key in self._closing)

    def _start(self) -> None:
        now = self._clock()
        self._deaths = [each for each in self._deaths if now - each < DEATH_SECONDS]
        if len(self._deaths) >= DEATHS:
            raise Unavailable("The grammar process died too often; structured output is off for a minute.")
        self._child = Child(self._setup.model, self._setup.cache, self._table, self._vocabulary)
        self._ready, self._since, self._compiling = False, now, (0, 0.0)
        logs.get("grammars").info("the grammar process %d starts", self._child.pid)

    def _take(self, answer: Compiled) -> None:
        if answer.number == 0:
            if answer.error is not None:
                self._deaths += [self._clock()] * DEATHS  # the next one would fail alike
                logs.get("grammars").error("the grammar process does not start: %s", answer.error)
            self._ready = answer.error is None
            return
        waiting = self._waiting.pop(answer.number, None)
        if waiting is None:
            return
        if answer.error is None:
            self._answered.append((waiting.request, waiting.again, None))
        else:
            self._refuse(waiting, _named(answer, waiting.request))

    def _refuse(self, waiting: _Waiting, error: OctavoError) -> None:
        """The process does not keep what it could not compile: it need not be told to drop it."""
        self._answered.append((waiting.request, waiting.again, error))
        self._forget(waiting.request.request_id)

    def _forget(self, request_id: str) -> bytes | None:
        key = self._keys.pop(request_id, None)
        if key is not None and key not in self._keys.values():
            del self._asked[key]
            self._closing.discard(key)
        return key

    def _watch(self) -> None:
        """Deadlines: of the start, of what is compiled, of masks."""
        now = self._clock()
        if not self._ready:
            if now - self._since > START_SECONDS:
                self._replace("it did not start")
            return
        number = self._table.at_compile
        if number != self._compiling[0]:
            self._compiling = (number, now)
        elif number and now - self._compiling[1] > COMPILE_SECONDS:
            self._replace(f"a constraint took more than {COMPILE_SECONDS:.0f} s to compile", timeout=True)
            return
        for slot, since in list(self._late.items()):
            if now - since > LATE_SECONDS:
                self._fail(slot, f"there was no mask within {LATE_SECONDS:.0f} s")
            elif now - since > MASK_SECONDS and self._table.at_slot == slot:
                self._replace(f"a mask took more than {MASK_SECONDS:.0f} s")
                return

    def _fail(self, slot: int, why: str) -> None:
        sequence = self._slots.get(slot)
        self._late.pop(slot, None)
        if sequence is not None and sequence.slot == slot:  # else it has left, and the next step will say so
            self._failures.append((sequence, why))

    def _replace(self, reason: str, *, timeout: bool = False) -> None:
        """Another process in its place. Who it worked for is at fault, and is not told to it; all others are."""
        assert self._child is not None
        logs.get("grammars").error("the grammar process %d is replaced: %s", self._child.pid, reason)
        self._child.kill()
        self._child = None
        at_slot, at_number = self._table.at_slot, self._table.at_compile
        self._table.forget_diary()
        if at_slot >= 0 and not timeout:
            self._fail(at_slot, reason)
        elif at_number:
            self._blame(at_number, timeout)
        else:
            self._deaths.append(self._clock())
        self._news = []
        for slot in self._slots:
            self._table.clear(slot)
        self._slots = {slot: sequence for slot, sequence in self._slots.items() if sequence.slot == slot}
        if not self._waiting and not self._slots:
            return  # the next request starts one
        try:
            self._start()
        except Unavailable as error:
            self._give_up(error)
            return
        failed = {id(sequence) for sequence, _ in self._failures}
        for waiting_number, waiting in self._waiting.items():
            self._post(self._compile(waiting_number, waiting.key))
        waits = {waiting.request.request_id for waiting in self._waiting.values()}
        for request_id, key in self._keys.items():
            if request_id not in waits:  # compiled before; nobody waits for the answer
                self._number += 1
                self._post(self._compile(self._number, key))
        for sequence in self._slots.values():
            if id(sequence) not in failed:
                self._post(self._open(sequence))

    def _blame(self, number: int, timeout: bool) -> None:
        """A constraint killed the process: it is refused, now and later."""
        waiting = self._waiting.get(number)
        if waiting is None:  # it was compiled before, for a process that died of something else
            self._deaths.append(self._clock())
            return
        name = self._asked[waiting.key].name
        code = "grammar_compile_timeout" if timeout else "grammar_compile_failed"
        why = f"it takes more than {COMPILE_SECONDS:.0f} s" if timeout else "it takes too much memory"
        error = InvalidRequest(f"{name}: {why} to compile.", param=name, code=code)
        self._refused[waiting.key] = error
        while len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
        for other_number, other in list(self._waiting.items()):
            if other.key == waiting.key:
                del self._waiting[other_number]
                self._refuse(other, error)

    def _give_up(self, error: OctavoError) -> None:
        for waiting in self._waiting.values():
            self._refuse(waiting, error)
        self._waiting.clear()
        for slot in list(self._slots):
            self._fail(slot, "the grammar process died too often")


def _named(answer: Compiled, request: Request) -> InvalidRequest:
    """Why it is refused, under the name by which this request's client sent it: it was compiled once for all."""
    asked, message = request.params.structured_outputs, answer.error or ""
    assert asked is not None
    if answer.param:
        message = message.replace(answer.param, asked.name, 1)
    return InvalidRequest(message, param=asked.name, code=answer.code)


def failed(why: str) -> GrammarFailed:
    """What a client is told of an answer that could not be finished."""
    return GrammarFailed(f"The answer could not be finished under its structured_outputs: {why}.")
