"""The grammar process and what it keeps: compiled constraints by bytes, masks in the table, and nothing else."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.grammar.child import Child, ChildDied
from octavo.grammar.matcher import Compiler
from octavo.grammar.messages import Close, Compile, Compiled, Drop, Feed, Frames, Open, frame
from octavo.grammar.process import GRAMMAR_BYTES, PER_BYTE, Kept, vocabulary_of
from octavo.grammar.table import FAILED, MAY_FOLLOW, MUST_END, NONE, MaskTable, bits
from octavo.structured_outputs import StructuredOutputsParams as Asked
from tests import tiny
from tests.grammar.small_vocabulary import compiler

SLOTS = 3
ANY: Any = object()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("process") / "model")


class Talk:
    """A process, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.table = MaskTable(SLOTS, tiny.VOCAB_SIZE)
        self.child = Child(str(folder), str(folder / "cache"), self.table, tiny.VOCAB_SIZE)
        self.answers: list[Compiled] = []
        self.until(lambda: any(each.number == 0 for each in self.answers))
        assert self.answers.pop().error is None

    def until(self, holds: Any, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            self.answers += self.child.poll()
            time.sleep(0.001)

    def compile(self, number: int, key: bytes, asked: Asked) -> Compiled:
        self.child.post(Compile(number, key, asked))
        self.until(lambda: any(each.number == number for each in self.answers))
        return self.answers.pop()

    def mask(self, slot: int, known: int) -> set[int]:
        """Once it is there."""
        self.until(lambda: self.table.read(slot)[1] == known)
        return set(np.unpackbits(self.table.mask(slot).view(np.uint8), bitorder="little").nonzero()[0].tolist())


@pytest.fixture
def talk(folder: Path) -> Iterator[Talk]:
    made = Talk(folder)
    yield made
    made.child.kill()
    made.table.close()


def test_masks_of_slots(talk: Talk, folder: Path) -> None:
    """They are those of a matcher in this process; opened anew from the ids, they are the same."""
    vocabulary = vocabulary_of(folder, folder / "cache", tiny.VOCAB_SIZE)
    own = Compiler(vocabulary).compile(Asked(regex="[ab]{2,3}"))
    a, b, end = vocabulary.tokens.index(b"a"), vocabulary.tokens.index(b"b"), vocabulary.eos_ids[0]
    assert talk.compile(1, b"k", Asked(regex="[ab]{2,3}")).error is None
    talk.child.post(Open(1, 7, b"k", 10, []))
    assert talk.mask(1, 10) == {a, b} and talk.table.read(1) == (7, 10, MAY_FOLLOW)
    talk.child.post(Feed([(1, a)]))
    talk.child.post(Feed([(1, b), (0, a)]))  # nobody is in slot 0
    both = talk.mask(1, 12)
    assert both == {a, b, *vocabulary.eos_ids}
    matcher = own.deep_copy()
    assert matcher.consume_tokens([a, b])
    assert matcher.compute_bitmask()[: 4 * talk.table.words] == talk.table.mask(1).tobytes()
    talk.child.post(Open(2, 8, b"k", 5, [a, b]))
    talk.child.post(Open(0, 9, b"k", 5, [a, b], [b, end, 7]))
    assert talk.mask(2, 7) == both and talk.mask(0, 7) == {b, end}
    talk.child.post(Feed([(1, a)]))
    assert talk.mask(1, 13) == set(vocabulary.eos_ids) and talk.table.read(1) == (7, 13, MUST_END)
    talk.child.post(Open(2, 10, b"k", 5, [a, 60]))
    talk.until(lambda: talk.table.read(2) == (10, 7, FAILED))
    talk.child.post(Close(1))
    talk.until(lambda: talk.table.read(1)[0] == NONE)
    masks, nanoseconds = talk.table.cost
    assert masks >= 6 and nanoseconds > 0 and talk.table.at_slot == -1


def test_a_slot_may_be_opened_before_its_constraint_is_compiled(talk: Talk) -> None:
    talk.child.post(Compile(1, b"k", Asked(choice=["a"])))
    talk.child.post(Open(0, 1, b"k", 4, []))
    talk.child.post(Compile(2, b"k", Asked(choice=["a"])))  # compiled once for both
    talk.child.post(Compile(3, b"bad", Asked(json={"not": {}})))
    talk.child.post(Open(1, 2, b"bad", 4, []))
    assert len(talk.mask(0, 4)) == 1
    talk.until(lambda: talk.table.read(1) == (2, 4, FAILED) and len(talk.answers) == 3)
    assert {each.number: each.error is None for each in talk.answers} == {1: True, 2: True, 3: False}


def test_it_ends_with_its_input_and_says_why_it_cannot_start(talk: Talk, tmp_path: Path) -> None:
    pid = talk.child.pid
    assert talk.child._process.stdin is not None
    talk.child._process.stdin.close()
    talk.child._process.stdin = None
    talk.child._process.wait(20)
    assert not Path(f"/proc/{pid}").exists()
    broken = Child(str(tmp_path / "nothing"), str(tmp_path), talk.table, tiny.VOCAB_SIZE)
    answers: list[Compiled] = []
    with pytest.raises(ChildDied):
        while True:
            answers += broken.poll()
            time.sleep(0.01)
    assert len(answers) == 1 and answers[0].number == 0 and answers[0].error
    broken.kill()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_many_constraints_take_no_more_than_few(talk: Talk, folder: Path) -> None:
    """Nothing grows after the cache is full, and nothing is written to disk."""
    sizes = []
    before = sorted(folder.rglob("*"))
    for number in range(1, 20_001):
        asked = Asked(json={"type": "object", "properties": {f"a{number}": {"type": "string"}}})
        key = number.to_bytes(4, "little")
        assert talk.compile(number, key, asked).error is None
        talk.child.post(Open(0, 1, key, 1, []))
        talk.child.post(Drop(key))
        if number % 10_000 == 0:
            sizes.append(resident(talk.child.pid))
    assert sizes[1] - sizes[0] < 2 << 20
    assert sorted(folder.rglob("*")) == before


def test_what_is_kept() -> None:
    """What is in use, however large; of the rest the last used, as far as there is room."""
    small = compiler().compile(Asked(choice=["a"]))
    size = GRAMMAR_BYTES + PER_BYTE * 10
    kept = Kept(room=3 * size)
    keys = [bytes([each]) for each in range(6)]
    for key in keys:
        kept.use(key)
        kept.put(key, small, 10)
    assert all(kept.get(key) for key in keys)
    kept.use(keys[0])
    for key in keys[:5]:
        kept.drop(key)
    assert [key for key in keys if kept.get(key)] == [
        keys[0],
        *keys[2:],
    ]  # 0 is used twice, 5 still, 1 was the first to go
    kept.drop(keys[5])
    kept.drop(keys[0])
    assert [key for key in keys if kept.get(key)] == [keys[0], *keys[4:]]
    kept.use(keys[4])
    kept.drop(keys[4])  # the last used
    kept.use(b"new")
    kept.put(b"new", small, 10)
    kept.drop(b"new")
    assert [key for key in keys if kept.get(key)] == [keys[0], keys[4]] and kept.get(b"new")


def test_frames_and_tables() -> None:
    messages = [Drop(b"x" * count) for count in (0, 1, 300)]
    data = b"".join(map(frame, messages))
    frames = Frames()
    found = [each for at in range(len(data)) for each in frames.feed(data[at : at + 1])]
    assert found == [frame(each)[4:] for each in messages]
    table = MaskTable(SLOTS, 100)
    same = MaskTable(SLOTS, 100, os.dup(table.descriptor))
    table.mask(2)[:] = bits([0, 31, 32, 99], table.words)
    table.publish(2, 3, 5, MUST_END)
    assert (
        same.mask(2).tolist() == [0x80000001, 1, 0, 8] and same.read(2) == (3, 5, MUST_END) and same.read(1)[0] == NONE
    )
    assert table.address % 64 == 0 and table.mask_address(1) - table.mask_address(0) == table.stride == 64
