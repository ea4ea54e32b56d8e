"""The native executor alone: equal bits for every K, thread count and chunking; early leaves; pages; hostile images.

Steps are made by hand; no engine is involved. The whole engine's invariance is tests/engine/test_invariance.py.
"""

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.engine.flight_record import ARRIVED, PROGRESS, STOP
from octavo.errors import ConfigError
from octavo.execution.layout import HEADER
from octavo.execution.native import NativeExecutor
from octavo.execution.plan import make_plan
from octavo.execution.runner import Runner
from octavo.execution.step import PagesAppended, RowRun, SlotOpen, Step, StepResult, TokenLogprobs
from octavo.execution.tape import Image, buffer, dimension, immediate, node_tape
from octavo.kernels import library
from octavo.sampling_params import SamplingParams
from tests import tiny

VARIANTS = library.runnable_variants()
PROMPTS = [[(5 * i + 7 * s) % tiny.VOCAB_SIZE for i in range(n)] for s, n in enumerate((1, 19, 40))]
PAGES = 8  # of a slot: 128 positions
H = {name: index for index, name in enumerate(HEADER)}
Answer = tuple[list[int], list[TokenLogprobs]]
Prompts = Sequence[Sequence[int]]


class Session:
    """A model, and steps on it."""

    def __init__(self, path: Path, isa: str = "auto", threads: int = 2, kv: str = "bf16") -> None:
        config = EngineConfig(
            isa=isa, threads=threads, max_model_len=128, max_num_seqs=4, max_num_batched_tokens=64, kv_cache_dtype=kv,
            kv_cache_memory=4 << 20,
        )  # fmt: skip
        checkpoint = open_checkpoint(path)
        self.plan = make_plan(checkpoint, config, free=8 << 30, threads=threads)
        self.executor = NativeExecutor(self.plan.layouts, self.plan.vocab, "", isa=isa)
        self.executor.load(checkpoint, self.plan.sources)
        self.runner = Runner(self.executor)
        self.control = np.zeros(512, np.int64)  # a control page of our own
        self.executor.watch(self.control.ctypes.data)

    def open(self, prompts: Prompts, chunk: int = 64, **changes: Any) -> list[Answer]:
        """Prefill in chunks; the first sampled id of each."""
        answers: list[Answer] = []
        for slot, ids in enumerate(prompts):
            temperature = changes.get("temperature", float(slot % 2))
            params = SamplingParams(temperature=temperature, max_tokens=80, logprobs=2)
            limit = changes.get("limit", 128)
            opened = SlotOpen(slot, tuple(ids), len(ids), params, 11, 0, limit, changes.get("stops", ()))
            groups = len(self.executor.facts.groups)
            pages = tuple(range(1 + slot * groups * PAGES, 1 + (slot + 1) * groups * PAGES))
            appended = tuple(
                PagesAppended(slot, group, 0, pages[group * PAGES : (group + 1) * PAGES]) for group in range(groups)
            )
            answers.append(([], []))
            for start in range(0, len(ids), chunk):
                count = min(chunk, len(ids) - start)
                run = RowRun(slot, start, count, start + count == len(ids))
                first = start == 0
                step = Step(0, (run,), (opened,) * first, (), appended * first, pages if first else ())
                self.gather(answers[slot : slot + 1], self.runner.run(step))
        return answers

    def decode(self, prompts: Prompts, answers: Sequence[Answer], loop: int) -> StepResult:
        """One step of up to `loop` ids for all."""
        runs = tuple(
            RowRun(slot, len(ids) + len(answer[0]) - 1, 1, True)
            for slot, (ids, answer) in enumerate(zip(prompts, answers, strict=True))
        )
        result = self.runner.run(Step(0, runs, loop=loop))
        self.gather(answers, result)
        return result

    @staticmethod
    def gather(answers: Sequence[Answer], result: StepResult) -> None:
        for answer, run in zip(answers, result.runs, strict=True):
            answer[0].extend(run.token_ids)
            answer[1].extend(run.logprobs or [])

    def answers(self, prompts: Prompts, *, loop: int = 1, count: int = 25, chunk: int = 64) -> list[Answer]:
        """`count` ids of each."""
        found = self.open(prompts, chunk)
        while len(found[0][0]) < count:
            self.decode(prompts, found, min(loop, count - len(found[0][0])))
        self.runner.run(Step(0, closes=tuple(range(len(prompts)))))
        return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    attention = {"attn_q": "q8_0", "attn_k": "q4_1", "attn_v": "q4_0"}
    mixed = attention | {"ffn_gate": "q4_1", "ffn_up": "q5_0", "output": "q8_0"}
    return tiny.gguf_file(tmp_path_factory.mktemp("native") / "tiny.gguf", quantization=mixed)


@pytest.fixture(scope="module")
def session(path: Path) -> Session:
    return Session(path)


@pytest.mark.parametrize("kv", ["bf16", "float32", "fp16", "int8"])
@pytest.mark.parametrize("isa", VARIANTS)
def test_equal_bits_for_every_loop_thread_count_and_chunking(isa: str, kv: str, path: Path) -> None:
    wanted = [Session(path, isa, 1, kv).answers([prompt]) for prompt in PROMPTS[:1]]
    for threads in (1, 2, 3):
        session = Session(path, isa, threads, kv)
        together = session.answers(PROMPTS)
        assert together[:1] == wanted[0]
        for loop in (2, 8):
            assert session.answers(PROMPTS, loop=loop) == together
        for chunk in (1, 7, 16, 33):
            assert session.answers(PROMPTS, chunk=chunk) == together
        wanted.append(together)
    assert wanted[1] == wanted[2] == wanted[3]
    assert len(set(map(tuple, (ids for ids, _ in wanted[1])))) == len(PROMPTS)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_equal_bits_when_a_thread_is_late(threads: int, path: Path) -> None:
    """Units are taken instead of divided, for two hours or until the next clock tick."""
    wanted = Session(path, VARIANTS[0], 1).answers(PROMPTS)
    session = Session(path, VARIANTS[0], threads)
    for nanoseconds in (7_200_000_000_000, 1):
        session.executor.machine.suppose_late(nanoseconds)
        for loop, chunk in ((1, 64), (8, 33)):
            assert session.answers(PROMPTS, loop=loop, chunk=chunk) == wanted


def test_fused_variants_agree_on_a_float_cache(path: Path) -> None:
    """Only bf16 pages are read in another rounding by avx512bf16."""
    fused = [isa for isa in VARIANTS if isa != "portable"]
    first, *others = (Session(path, isa, 2, "float32").answers(PROMPTS) for isa in fused)
    for other in others:
        assert [ids for ids, _ in other] == [ids for ids, _ in first]


def test_an_isa_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="avx3"):
        library.new_machine(isa="avx3", threads=1, scratch_bytes=4096)


def test_the_loop_ends_with_a_sequence(session: Session) -> None:
    """On a stop id and on the length limit, all rows leave together; what they sampled before stays the same."""
    plain = session.answers(PROMPTS[1:], loop=1, count=12)
    stop = plain[0][0][5]
    expected = plain[0][0].index(stop) + 1
    answers = session.open(PROMPTS[1:], stops=(stop,))
    while stop not in answers[0][0] + answers[1][0] and len(answers[0][0]) < 12:
        session.decode(PROMPTS[1:], answers, 8)
    header = session.executor.step["header"]
    assert header[H["left_because"]] == 1
    done = len(answers[0][0])
    assert done <= expected and [ids for ids, _ in answers] == [ids[:done] for ids, _ in plain]
    limited = session.open(PROMPTS[1:], limit=len(PROMPTS[2]) + 4)
    session.decode(PROMPTS[1:2], limited[:1], 1)  # the first, shorter one goes on by itself
    result = session.decode(PROMPTS[1:], limited, 8)
    assert result.stats.loops == 3 and header[H["left_because"]] == 1
    assert limited[1][0] == plain[1][0][:4] and limited[0][0] == plain[0][0][:5]


def test_the_loop_leaves_when_something_arrives(session: Session) -> None:
    """`arrived` is counted up by a thread while steps run. A step of this tiny model may be over before that thread has
    a core, so steps are run until one was left early; every one has the same ids."""
    import threading

    plain, over, early = session.answers(PROMPTS, count=9), threading.Event(), 0

    def arrive() -> None:
        while not over.is_set():
            session.control[ARRIVED // 8] += 1

    thread = threading.Thread(target=arrive)
    thread.start()
    for _ in range(300):
        answers = session.open(PROMPTS)
        early += session.decode(PROMPTS, answers, 8).stats.loops < 8
        while len(answers[0][0]) < 9:
            session.decode(PROMPTS, answers, 9 - len(answers[0][0]))
        assert answers == plain
        if early:
            break
    over.set()
    thread.join()
    assert early


def test_a_stopped_step_commits_nothing_and_may_be_repeated(session: Session) -> None:
    plain = session.answers(PROMPTS, count=6)
    answers = session.open(PROMPTS)
    before = session.control[PROGRESS // 8]
    slots = {name: field.copy() for name, field in session.executor.slots.items()}
    session.control[STOP // 8] = 1
    stopped = copy.deepcopy(answers)
    result = session.decode(PROMPTS, stopped, 5)
    session.control[STOP // 8] = 0
    assert result.aborted and stopped == answers and session.control[PROGRESS // 8] > before
    assert session.executor.step["header"][H["left_because"]] == 3
    for name, field in slots.items():
        np.testing.assert_array_equal(session.executor.slots[name], field)
    session.decode(PROMPTS, answers, 5)
    assert answers == plain


def test_pages_are_zeroed_then_copied(session: Session) -> None:
    pages = session.executor.region("kv").reshape(session.plan.layouts.bounds.pages, -1)
    pages[30:34] = np.arange(4, dtype=np.uint8)[:, None] + 1
    session.runner.run(Step(0, zero_pages=(31, 32), copy_pages=((30, 32), (31, 33))))
    assert [int(page.min()) for page in pages[30:34]] == [int(page.max()) for page in pages[30:34]] == [1, 0, 1, 0]


def test_a_step_beyond_its_bounds_is_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="bounds"):
        session.runner.run(Step(0, (RowRun(0, 0, 65, False),)))
    with pytest.raises(ValueError, match="bounds"):
        session.runner.run(Step(0, zero_pages=tuple(range(1000))))
    session.executor.step["header"][H["rows"]] = 65
    with pytest.raises(ValueError, match="bounds"):
        session.executor.execute()


@cache
def machine() -> tuple[Any, int]:
    """A bare machine with one region of 4,096 bytes."""
    made = library.new_machine(isa="auto", threads=1, scratch_bytes=4096)
    return made, made.allocate("region", 4096)


def image(*args: Any) -> tuple[Image, np.ndarray[Any, np.dtype[np.int64]]]:
    made = Image()
    made.add("linear", [made.entry(arg) if isinstance(arg, str) else arg for arg in args])
    return made, made.words()


def test_a_good_image_loads() -> None:
    host, region = machine()
    made, words = image(buffer(region, 0, 4096), dimension(2, "T", 3, 4), "format.q4_1.p32.k4.1", immediate(-5))
    assert host.load(words, made.names) >= 0


@pytest.mark.parametrize(
    ("arg", "word"),
    [
        ((1, 0, 0, 8193, 0), "outside region"), ((1, 0, -1, 8, 0), "outside region"),
        ((1, 0, 8, -8, 0), "outside region"), ((1, 0, 2**62, 2**62, 0), "outside region"),
        ((1, 77, 0, 8, 0), "region"), ((1, -1, 0, 8, 0), "region"),
        ((2, 1, 9, 0, 1), "bad dimension"), ((2, 1, -1, 0, 1), "bad dimension"), ((2, 1, 0, 0, 0), "bad dimension"),
        ((3, 99, 0, 0, 0), "name index"), ((3, -1, 0, 0, 0), "name index"), ((4, 0, 0, 0, 0), "unknown kind"),
    ],
)  # fmt: skip
def test_hostile_arguments_are_refused(arg: Any, word: str) -> None:
    made, words = image(arg)
    with pytest.raises((ValueError, IndexError), match=word):
        machine()[0].load(words, made.names)


def test_hostile_headers_and_counts_are_refused() -> None:
    host, region = machine()
    made, words = image(buffer(region, 0, 64), immediate(1))
    for index, value, word in (
        (0, 1, "another version"), (1, 99, "another version"), (2, 0, "another version"), (3, 2, "inside a node"),
        (3, 2**62, "inside a node"), (4, 7, "name index"), (6, 0, "wait nodes"),
        (7, -2, "its work"), (7, 4, "its work"), (8, -1, "its work"), (11, 1, "its work"),
        (15, 3, "inside the arguments"),
        (15, -1, "inside the arguments"), (15, 3689348814741910324, "inside the arguments"),  # 5 x this wraps around
    ):  # fmt: skip
        changed = words.copy()
        changed[index] = value
        with pytest.raises(ValueError, match=word):
            host.load(changed, made.names)
    for length in range(len(words)):
        with pytest.raises(ValueError, match=r"another version|ends inside"):
            host.load(words[:length].copy(), made.names)
    with pytest.raises(ValueError, match="has no 'nonsense'"):
        host.load(words, ["nonsense"])


@settings(max_examples=300)
@given(st.data())
def test_mutated_images_load_or_are_refused(data: st.DataObject) -> None:
    """Never a crash: whatever is loaded lies within its regions. Nothing of it is run."""
    host, region = machine()
    made, words = image(buffer(region, 64, 64), dimension(1, "T"), "tile.store", immediate(1))
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(words) - 1))
        words[index] = data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 70))
    try:
        host.load(words, made.names)
    except (ValueError, IndexError) as error:
        assert str(error)


def test_hostile_tapes_are_refused() -> None:
    host, _ = machine()
    made, words = image()
    program = host.load(words, made.names)
    for bad in ([1, program], [9, 0, 0], [-1, 0, 0], [1, program + 10_000, 0], [1, -1, 0], [2, program, 10_000]):
        with pytest.raises(ValueError, match="tape"):
            host.run_nodes(np.array(bad, np.int64), 1)
    with pytest.raises(ValueError, match="no step"):
        host.run(node_tape(program))
