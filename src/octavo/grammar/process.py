"""The grammar process: compiles constraints, owns the matcher of every slot, writes each mask into the shared table.

It is a child of the engine that may be killed at any time; all that it knows is told again to the next one. Commands
come over its input, and what became of a constraint goes to its output. Compiling is done by a second thread, without
the GIL and behind everybody else for the processor, so that masks are not held up by it. The deadlines are the engine's
(engine/grammars.py), limits of work the library's (matcher.py).
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import resource
import select
import signal
import sys
import threading
import time
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.errors import InvalidRequest, OctavoError
from octavo.grammar.closing import Closing, Ends
from octavo.grammar.matcher import Compiler, Vocabulary, refusal
from octavo.grammar.messages import Close, Command, Compile, Compiled, Drop, Feed, Frames, Open, Start, commands, frame
from octavo.grammar.table import FAILED, MAY_FOLLOW, MUST_END, MaskTable, bits
from octavo.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

MEMORY = 2 << 30  # bytes of address space beyond those of the start: two stacks, 30 grammars at their bound of states
CACHE_BYTES = 64 << 20  # of compiled constraints that no request uses
GRAMMAR_BYTES = 192 << 10  # what a small one takes (138 KiB measured), and
PER_BYTE = 64  # so much for each byte of its text
COMPILE_NICE = 10
STACK = 256 << 20  # bytes of a thread, of which pages are taken as they are used: 9,000 rules that each name the next
SWITCH_INTERVAL = 1e-4  # seconds: a mask gets the GIL back at once
_PR_SET_PDEATHSIG = 1


class _Slot:
    """A sequence: its matcher, how many ids it has, what its last mask took, and what sees to its end, if anything."""

    def __init__(self, order: Open, matcher: LLMatcher, allowed: Any, closing: Closing | None) -> None:
        self.opening, self.known = order.opening, order.prompt + len(order.emitted)
        self.matcher, self.allowed, self.closing = matcher, allowed, closing
        self.nanoseconds = 0

    def take(self, token: int) -> None:
        """The next id."""
        self.matcher.consume_token(token)
        if self.closing is not None:
            self.closing.take(self.matcher, token)


class Masks:
    """The matchers of all slots. One thread uses it."""

    def __init__(self, table: MaskTable, vocabulary: Vocabulary | None = None) -> None:
        """vocabulary: None where no answer is to end in time."""
        self._table, self._vocabulary = table, vocabulary
        self._slots: dict[int, _Slot] = {}

    @cached_property
    def _ends(self) -> Ends:
        assert self._vocabulary is not None
        return Ends(self._vocabulary)

    def open(self, order: Open, matcher: LLMatcher) -> None:
        """`matcher` stands at the beginning of the constraint."""
        allowed = None if order.allowed is None else bits(order.allowed, self._table.words)
        self._table.clear(order.slot)
        self._table.note_mask(order.slot)
        closing = None
        if order.room is not None:
            closing = Closing(self._ends, self._ends.least(order.key, matcher), order.room)
        slot = self._slots[order.slot] = _Slot(order, matcher.deep_copy(), allowed, closing)
        for token in order.emitted:
            slot.take(token)
        self._write([order.slot])

    def feed(self, rows: list[tuple[int, int]]) -> None:
        """New ids; those whose masks took least come first, so that a slow grammar holds up only itself."""
        known = [(number, token) for number, token in rows if number in self._slots]
        known.sort(key=lambda row: self._slots[row[0]].nanoseconds)
        for number, token in known:
            slot = self._slots[number]
            slot.known += 1
            self._table.clear(number)
            self._table.note_mask(number)
            slot.take(token)
            self._write([number])

    def close(self, number: int) -> None:
        """The sequence has left its slot."""
        self._slots.pop(number, None)
        self._table.clear(number)

    def fail(self, order: Open) -> None:
        """There will be no mask."""
        self._table.publish(order.slot, order.opening, order.prompt + len(order.emitted), FAILED)

    def _write(self, numbers: list[int]) -> None:
        table = self._table
        for number in numbers:
            slot = self._slots[number]
            begin = time.perf_counter_ns()
            state = self._state(slot, number)
            slot.nanoseconds = time.perf_counter_ns() - begin
            table.add_cost(1, slot.nanoseconds)
            table.publish(number, slot.opening, slot.known, state)
        table.note_mask(-1)

    def _state(self, slot: _Slot, number: int) -> int:
        """Write the mask; whether ids may follow."""
        matcher, table = slot.matcher, self._table
        matcher.unsafe_compute_mask_ptr(table.mask_address(number), table.words * 4)
        stopped = matcher.is_stopped()
        if matcher.is_error() or (stopped and not matcher.is_accepting()):
            return FAILED
        if slot.allowed is not None and not stopped:
            mask = table.mask(number)
            mask &= slot.allowed
        if slot.closing is not None and not stopped:
            stopped = slot.closing.narrow(matcher, table.mask(number))
        return MUST_END if stopped else MAY_FOLLOW


class Kept:
    """Compiled constraints: those in use, and of others as many as CACHE_BYTES have room for, the last used."""

    def __init__(self, room: int = CACHE_BYTES) -> None:
        self._room = room
        self._matchers: OrderedDict[bytes, tuple[LLMatcher, int]] = OrderedDict()
        self._users: dict[bytes, int] = {}
        self._idle = 0  # bytes of what nobody uses

    def get(self, key: bytes) -> LLMatcher | None:
        found = self._matchers.get(key)
        return None if found is None else found[0]

    def put(self, key: bytes, matcher: LLMatcher, text: int) -> None:
        """A constraint of `text` bytes, compiled."""
        nbytes = GRAMMAR_BYTES + PER_BYTE * text
        if key not in self._matchers:
            self._matchers[key] = (matcher, nbytes)
            self._idle += 0 if self._users.get(key) else nbytes
            self._shrink()

    def use(self, key: bytes) -> None:
        """A request wants it, whether it is there yet or not."""
        if not self._users.get(key) and key in self._matchers:
            self._idle -= self._matchers[key][1]
        self._users[key] = self._users.get(key, 0) + 1

    def drop(self, key: bytes) -> None:
        """A request is over."""
        left = self._users.get(key, 0) - 1
        if left > 0:
            self._users[key] = left
            return
        self._users.pop(key, None)
        if key in self._matchers:
            self._matchers.move_to_end(key)
            self._idle += self._matchers[key][1]
            self._shrink()

    def _shrink(self) -> None:
        for key in [key for key in self._matchers if not self._users.get(key)]:
            if self._idle <= self._room:
                return
            self._idle -= self._matchers.pop(key)[1]


class Process:
    """Takes commands until its input ends."""

    def __init__(self, compiler: Compiler, table: MaskTable, answers: int) -> None:
        """answers: the descriptor that they are written to."""
        self._compiler, self._table, self._answers = compiler, table, answers
        self._masks = Masks(table, compiler.vocabulary)
        self._kept = Kept()
        self._asked: dict[bytes, list[int]] = {}  # what is being compiled, and whom it is to be told
        self._early: dict[bytes, dict[int, Open]] = {}  # slots that wait for it
        self._orders: queue.SimpleQueue[Compile] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Compile, LLMatcher | InvalidRequest]] = queue.SimpleQueue()
        self._bell, self._rope = os.pipe()  # the second thread wakes the first

    def serve(self, orders: int) -> None:
        """Until the other end of `orders` is closed."""
        threading.Thread(target=self._compile_all, daemon=True).start()
        poll = select.poll()
        poll.register(orders, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        frames = Frames()
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._bell:
                    os.read(self._bell, 4096)
                    self._take_compiled()
                    continue
                data = os.read(orders, 1 << 16)
                if not data:
                    return
                for each in frames.feed(data):
                    self._take(commands.decode(each))

    def _take(self, command: Command) -> None:
        if isinstance(command, Feed):
            self._masks.feed(command.rows)
        elif isinstance(command, Open):
            matcher = self._kept.get(command.key)
            if matcher is None:
                self._early.setdefault(command.key, {})[command.slot] = command
            else:
                self._masks.open(command, matcher)
        elif isinstance(command, Close):
            for waiting in self._early.values():
                waiting.pop(command.slot, None)
            self._masks.close(command.slot)
        elif isinstance(command, Drop):
            self._kept.drop(command.key)
        else:
            self._compile(command)

    def _compile(self, command: Compile) -> None:
        self._kept.use(command.key)
        if self._kept.get(command.key) is not None:
            self._say(Compiled(command.number))
        elif command.key in self._asked:
            self._asked[command.key].append(command.number)
        else:
            self._asked[command.key] = [command.number]
            self._orders.put(command)

    def _say(self, answer: Compiled) -> None:
        os.write(self._answers, frame(answer))

    def _compile_all(self) -> None:
        """The second thread."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPILE_NICE)
        while True:
            order = self._orders.get()
            self._table.note_compile(order.number)
            made: LLMatcher | InvalidRequest
            try:
                made = self._compiler.compile(order.asked, order.closes)
            except InvalidRequest as error:
                made = error
            except BaseException as error:  # a panic of the library is none of Exception
                made = refusal(order.asked.name, f"it cannot be compiled ({type(error).__name__})")
            self._table.note_compile(0)
            self._done.put((order, made))
            os.write(self._rope, b"!")

    def _take_compiled(self) -> None:
        while not self._done.empty():
            order, made = self._done.get()
            numbers, early = self._asked.pop(order.key), self._early.pop(order.key, {})
            if isinstance(made, InvalidRequest):
                for number in numbers:
                    self._kept.drop(order.key)
                    self._say(Compiled(number, made.message, made.param, made.code))
                for waiting in early.values():
                    self._masks.fail(waiting)
                continue
            self._kept.put(order.key, made, len(order.asked.text))
            for number in numbers:
                self._say(Compiled(number))
            for waiting in early.values():
                self._masks.open(waiting, made)


def vocabulary_of(model: Path, cache: Path, ids: int) -> Vocabulary:
    """Of a model's files; `ids` are those of the model, which may be more than the tokenizer's."""
    tokenizer = Tokenizer.from_checkpoint(open_checkpoint(model), cache / "tokenizer")
    tokens = tokenizer.all_bytes()[:ids]
    special = [each for each in range(len(tokens)) if tokenizer.is_special(each)]
    padded = [*tokens, *[b""] * (ids - len(tokens))]
    return Vocabulary(padded, special, tokenizer.eos_ids, lambda text: tokenizer.encode(text, special=False))


def main() -> None:
    """Be a grammar process: the first frame says of what."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    orders, answers = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    os.dup2(2, 1)  # nothing else may write where answers go
    size = int.from_bytes(_read(orders, 4), "little")
    start = msgspec.msgpack.decode(_read(orders, size), type=Start)
    if os.getppid() != start.parent:
        return  # it died before prctl
    try:
        table = MaskTable(start.slots, start.vocabulary, start.table)
        compiler = Compiler(vocabulary_of(Path(start.model), Path(start.cache), start.vocabulary))
    except (OctavoError, ImportError, ValueError) as error:
        os.write(answers, frame(Compiled(0, f"{type(error).__name__}: {str(error)[:500]}")))
        return
    _limit_memory()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)
    os.write(answers, frame(Compiled(0)))
    threading.stack_size(STACK)
    serving = threading.Thread(target=Process(compiler, table, answers).serve, args=(orders,))
    serving.start()
    serving.join()


def _limit_memory() -> None:
    """So much more than now: who asks for more ends the process, and the engine knows whose work it was at."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            sys.exit(0)
        data += part
    return data
