"""Tuning: it changes no bit, is measured once, kept, and never trusted; threads of a node follow from its work."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.engine import startup
from octavo.execution.autotune import MARGIN, better
from octavo.execution.node_work import MANY, work_of
from octavo.execution.tape import Image, NodeWork, immediate
from octavo.execution.tuned_file import COSTS, Tuned, TunedFile
from octavo.kernels import library
from octavo.lowering.lowered import PackedWeight
from octavo.machine import read_machine
from tests import real, tiny
from tests.execution.test_native import PROMPTS, VARIANTS, Session

LAYOUTS = ("q8_0.p32.k4.1", "q4_1.p32.k4.1", "q4_0.p32.k4.1", "q5_0.p32.k4.1")
WEIGHTS = {"w": PackedWeight("w", "q4_1", LAYOUTS[1], 64, 64, 5120)}
TUNED = Tuned({"ahead_steps": 12, "unpack.q4_1.p32.k4.1": 24, "phase_ns": 60}, {"costs": {"phase_ns": 60.0}}, 0.1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mixed = {"attn_q": "q8_0", "attn_k": "q4_1", "attn_v": "q4_0", "ffn_gate": "q4_1", "ffn_up": "q5_0"}
    return tiny.gguf_file(tmp_path_factory.mktemp("tuned") / "tiny.gguf", quantization=mixed)


VALUES = st.fixed_dictionaries(
    {
        "ahead_steps": st.integers(1, 256), "share_rows": st.sampled_from([0, 1, 3, 16, 1 << 20]),
        "phase_ns": st.sampled_from([0, 1, 100, 10_000, 10**9]), "bytes_us": st.sampled_from([1, 50, 10**8]),
        "operations_us": st.sampled_from([1, 5_000, 10**9]),
    }
    | {f"{way}.{layout}": st.sampled_from([0, 1, 8, 40]) for layout in LAYOUTS for way in ("unpack", "matrix")}
)  # fmt: skip


@pytest.mark.parametrize("isa", VARIANTS)
def test_no_value_and_no_number_of_threads_changes_a_bit(isa: str, path: Path) -> None:
    wanted = Session(path, isa, 1).answers(PROMPTS, count=8)
    sessions = [Session(path, isa, threads) for threads in (1, 2, 4, 8)]

    @given(st.sampled_from(sessions), VALUES, st.booleans(), st.sampled_from([7, 64]))
    @example(sessions[3], {"phase_ns": 1, "bytes_us": 1}, False, 64)  # all threads wherever there are units
    @example(sessions[3], {"phase_ns": 10**9}, False, 64)  # one thread for every node
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(session: Session, values: dict[str, int], late: bool, chunk: int) -> None:
        assert session.executor.tune(values)
        session.executor.machine.suppose_late(5_000_000 if late else 0)
        assert session.answers(PROMPTS, count=8, loop=4, chunk=chunk) == wanted

    check()


@pytest.mark.parametrize(
    "values",
    [
        {"ahead_steps": 0}, {"ahead_steps": 257}, {"share_rows": -1}, {"phase_ns": -1}, {"bytes_us": 0},
        {"operations_us": 0}, {"unpack.q4_1.p32.k4.1": -1}, {"unpack.bf16.p32.k1.1": 8}, {"unpack.": 8}, {"": 1},
        {"threads": 3}, {"ahead_steps": 2**70},
    ],
)  # fmt: skip
def test_an_impossible_value_sets_none(values: dict[str, int], path: Path) -> None:
    session = Session(path)
    assert not session.executor.tune({"share_rows": 3, **values})
    assert session.executor.machine.tuned("share_rows") == 1 << 20
    assert session.executor.machine.tuned("ahead_steps") == 8


@pytest.mark.parametrize(
    "work",
    [
        NodeWork("T", bytes=-1), NodeWork("T", row_bytes=1 << 41), NodeWork("T", row_operations=-1),
        NodeWork("T", units=-1), NodeWork("T", row_units=-1), NodeWork("T", key_operations=1, group=0),
    ],
)  # fmt: skip
def test_impossible_work_is_refused(work: NodeWork) -> None:
    machine, made = library.new_machine(isa="auto", threads=1, scratch_bytes=4096), Image()
    made.add("linear", [immediate(0)], work=work)
    with pytest.raises(ValueError, match="work"):
        machine.load(made.words(), made.names)


def test_work_against_counts_by_hand(path: Path) -> None:
    """Of the tiny model (tests/tiny.py): 64 wide, heads 4 and 2 of 16, 128 within the MLP, 288 ids."""
    lowered = Session(path).plan.layouts.lowered
    body = {node.name: work_of(node, lowered) for node in reversed(lowered.programs["body"].nodes)}  # the first of each
    head, sample = (
        work_of(lowered.programs["head"].nodes[0], lowered),
        work_of(lowered.programs["sample"].nodes[0], lowered),
    )
    assert (body["embedding"].symbol, head.symbol, sample.symbol) == ("T", "R", "R")
    assert (body["embedding"].units, body["embedding"].row_units) == (sample.units, sample.row_units) == (0, 1)
    q, k, v = 64 * 68, 32 * 40, 32 * 36  # bytes: two blocks of 32 k a column
    assert body["linear"].bytes == q + k + v + 4 * 64  # the norm's weight
    assert body["linear"].row_operations == 4 * 64 + 2 * 128 * 64 + 3 * (64 + 32)  # norm, products, rope
    assert (body["linear"].units, body["linear"].row_units) == (4, 1)  # of 32 columns, two heads
    assert body["attention"].key_operations == 8 * 4 * 64 and body["attention"].units == MANY
    assert body["attention"].group == 0 and body["attention"].bytes == 0


def test_a_value_must_be_better_for_sure() -> None:
    eight = [1.0] * 8
    assert better({"8": [1.0] * 9, "4": [0.9] * 9, "16": [0.8] * 9})[0] == "16"
    assert better({"8": [1.0] * 9, "4": [*([0.9] * 8), 5.0]})[0] == "4"  # one round was disturbed
    assert better({"8": [1.0] * 9, "4": [*([0.9] * 7), 1.1, 1.1]})[0] is None
    assert better({"8": eight, "4": [1 - MARGIN / 2] * 8})[0] is None
    assert better({"8": [1.0, 1.0], "4": [0.5, 0.5]}) == (None, {})  # out of time
    assert better({"8": [2.0, 1.0, 4.0], "4": [1.0, 0.5, 2.0]})[1] == {"8": 1.0, "4": 0.5}


def test_a_file_is_kept_for_its_processor_and_shapes(tmp_path: Path) -> None:
    def of(cpu: str = "A-1", isa: str = "avx2", threads: int = 2, **weights: PackedWeight) -> TunedFile:
        return TunedFile.of(tmp_path, cpu, isa, threads, {**WEIGHTS, **weights})

    file = of()
    assert file.read() is None and file.keep(TUNED) and file.read() == TUNED
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.path.parent == tmp_path / "autotune" / "A-1" and len(list(file.path.parent.iterdir())) == 1
    others = [of("B-1"), of(isa="avx512"), of(threads=4), of(more=replace(WEIGHTS["w"], n=128))]
    assert [other.read() for other in others] == [None] * 4 and len({other.path for other in others} | {file.path}) == 5
    assert of(same=replace(WEIGHTS["w"], name="same")).read() == TUNED  # names decide nothing
    file.path.rename(others[0].path.parent.parent / "elsewhere")
    others[0].path.parent.mkdir()
    (tmp_path / "autotune" / "elsewhere").rename(others[0].path)
    assert others[0].read() is None  # another's file in its place
    assert "../" not in str(TunedFile.of(tmp_path, "../../etc", "avx2", 1, WEIGHTS).path)
    (tmp_path / "in the way").write_text("")
    assert not TunedFile.of(tmp_path / "in the way", "A-1", "avx2", 2, WEIGHTS).keep(TUNED)


@pytest.mark.parametrize("damage", ["link", "folder", "writable", "unknown", "version", "nan", "name", "many", "huge"])
def test_a_file_is_not_trusted(tmp_path: Path, damage: str) -> None:
    file = TunedFile.of(tmp_path, "A-1", "avx2", 2, WEIGHTS)
    assert file.keep(TUNED)
    data = json.loads(file.path.read_text())
    changes = {
        "unknown": {"more": 1}, "version": {"version": 99}, "nan": {"values": {"ahead_steps": "x"}},
        "name": {"values": {"../x": 1}}, "many": {"values": {f"unpack.x{i}": 1 for i in range(99)}},
        "huge": {"seconds": " " * (1 << 17)},
    }  # fmt: skip
    if damage in changes:
        file.path.write_text(json.dumps(data | changes[damage]))
    elif damage == "writable":
        file.path.chmod(0o622)
    else:
        file.path.rename(tmp_path / "elsewhere")
        file.path.symlink_to(tmp_path / "elsewhere") if damage == "link" else file.path.mkdir()
    assert file.read() is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_of_any_kind_end_no_start(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = TunedFile.of(tmp_path_factory.getbasetemp() / "any", "A-1", "avx2", 2, WEIGHTS)
    assert file.keep(TUNED)
    content = bytearray(file.path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    else:
        content[:] = data.draw(st.binary(max_size=300))
    file.path.write_bytes(content)
    found = file.read()
    assert found is None or all(isinstance(value, int) for value in found.values.values())


def test_a_real_model_measures_once_and_answers_the_same(tmp_path: Path) -> None:
    """Off, measured, read, damaged: equal ids and logprobs; the file is written by the second and kept by the third."""
    file = real.smollm2()
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=3)
    prompts = ["Once upon a time", "The capital of France is", "def fibonacci(n):"]

    def answers(autotune: str, **options: object) -> list[tuple[tuple[int, ...], object]]:
        places = {"cache_dir": str(tmp_path), "state_dir": str(tmp_path)}
        llm = LLM(str(file), max_model_len=256, max_num_seqs=4, autotune=autotune, **(places | options))
        try:
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return [(tuple(each.outputs[0].token_ids), each.outputs[0].logprobs) for each in outputs]
        finally:
            llm.close()

    wanted = answers("off")
    assert not (tmp_path / "autotune").exists()
    assert answers("auto") == wanted
    (written,) = (tmp_path / "autotune").rglob("*.json")
    kept = json.loads(written.read_text())
    assert set(COSTS[1:]) <= set(kept["values"]) and kept["figures"]["ahead_steps"]["8"] == 1.0
    assert {"share_rows", "unpack.q4_1.p32.k4.1", "unpack.q8_0.p32.k4.1"} <= set(kept["figures"])
    kept["values"] |= {"ahead_steps": 16, "share_rows": 2, "unpack.q4_1.p32.k4.1": 7}
    written.write_text(json.dumps(kept))  # values that nothing would have chosen
    assert answers("auto") == wanted and json.loads(written.read_text()) == kept
    kept["values"]["ahead_steps"] = -3
    written.write_text(json.dumps(kept))
    assert answers("auto") == wanted and json.loads(written.read_text())["values"].get("ahead_steps") != -3
    before = written.stat().st_mtime_ns
    assert answers("on") == wanted and written.stat().st_mtime_ns > before


def test_the_summary_says_what_is_used(tmp_path: Path, path: Path) -> None:
    places = {"cache_dir": str(tmp_path), "state_dir": str(tmp_path)}

    def line(autotune: str) -> str:
        config = EngineConfig(threads=2, max_model_len=128, autotune=autotune, **places)  # type: ignore[arg-type]
        return startup.summary(startup.load_model(path, config), config)[-1]

    assert line("off") == "tuning    built-in values (--autotune off)"
    assert line("on") == line("auto") == "tuning    built-in values (a small model)"
    config = EngineConfig(threads=2, max_model_len=128, **places)  # type: ignore[arg-type]
    loaded = startup.load_model(path, config)
    file = startup.tuned_file(config, read_machine(), loaded.executor.isa, loaded.plan.layouts)
    assert file.keep(Tuned({"ahead_steps": 12, "phase_ns": 5}))
    assert line("auto") == "tuning    ahead_steps 12 (kept)"
    assert str(Tuned({"phase_ns": 5})) == "built-in values are the best"
