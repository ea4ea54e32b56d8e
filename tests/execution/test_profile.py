"""Profiles: bytes and operations against counts by hand on the tiny model, times that add up, sizes that do not fit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.engine.startup import LoadedModel, load_model
from octavo.errors import ContextLengthExceeded, DoesNotFit
from octavo.execution.ceilings import Ceilings
from octavo.execution.profile import DECODE_STEPS, WARM_UP, Profile, Profiler, Row, symbols, table
from octavo.execution.step import PagesAppended, RowRun, SlotOpen, Step
from octavo.sampling_params import SamplingParams
from tests import tiny

BLOCK = 1088  # bytes of 32 x 32 weights in layout q8_0.p32.k4.1
QKV, OUT, GATE_UP, DOWN, HEAD = (2 * n * BLOCK for n in (4, 2, 8, 4, 9))  # [128|64|256 x 64], [64 x 128], [288 x 64]
HIDDEN, ACTS64, ACTS128 = 256, 128, 192  # bytes of a row: 64 floats, 64 and 128 quantized values
TOKEN = 2 * 2 * 16 * 2  # bytes of a token's keys and values in one layer: bf16
LAYERS = 2


def loaded(folder: Path, path: Path, **options: object) -> LoadedModel:
    settings = {"threads": 2, "max_num_batched_tokens": 32, "max_num_seqs": 4, "kv_cache_memory": 1 << 20}
    places = {"cache_dir": str(folder), "state_dir": str(folder)}
    return load_model(path, EngineConfig(**(settings | places | options)))


def profiler(model: LoadedModel) -> Profiler:
    return Profiler(model.executor, model.runner)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("profile")
    return loaded(folder, tiny.gguf_file(folder / "tiny.gguf"))


def rows(profile: Profile) -> dict[str, Row]:
    found = {row.label: row for row in profile.rows}
    assert len(found) == len(profile.rows)
    return found


def expected(
    rows: int, logit_rows: int, *, calls: int, visible: int, seen: int, token: int = TOKEN
) -> dict[str, tuple[int, int]]:
    """Bytes and operations of `calls` steps together. rows, visible, seen: sums over the steps."""
    norm, layers = HIDDEN * calls, LAYERS
    return {
        "embedding q8_0 embed_tokens": (rows * (64 + HIDDEN), 0),
        "linear q8_0 q_proj+k_proj+v_proj": (
            layers * (calls * QKV + norm + rows * (2 * HIDDEN + token)),
            layers * rows * (4 * 64 + 2 * 128 * 64 + 3 * (64 + 32)),  # norm, products, rope
        ),
        "attention": (layers * (rows * (HIDDEN + ACTS64) + seen * token), layers * visible * 4 * 64),
        "linear q8_0 o_proj": (layers * (calls * OUT + rows * (ACTS64 + 2 * HIDDEN)), layers * rows * 2 * 64 * 64),
        "linear q8_0 gate_proj+up_proj": (
            layers * (calls * GATE_UP + norm + rows * (HIDDEN + ACTS128)),
            layers * rows * (4 * 64 + 2 * 256 * 64 + 6 * 128),
        ),
        "linear q8_0 down_proj": (
            layers * (calls * DOWN + rows * (ACTS128 + 2 * HIDDEN)), layers * rows * 2 * 128 * 64
        ),
        "head q8_0 lm_head": (HEAD + HIDDEN + logit_rows * (HIDDEN + 4 * 288), logit_rows * (4 * 64 + 2 * 64 * 288)),
        "sample": (logit_rows * 4 * 288, logit_rows * 4 * 288),
    }  # fmt: skip


def figures(profile: Profile) -> dict[str, tuple[int, int]]:
    return {row.label: (row.bytes, row.operations) for row in profile.rows}


def test_bytes_and_operations_of_a_decode_step(quantized: LoadedModel) -> None:
    step = Step(0, tuple(RowRun(slot, 39, 1, True) for slot in range(3)))
    lowered = quantized.executor.layouts.lowered
    values = symbols(step, quantized.runner.facts, lowered)
    found = table(lowered, [0] * sum(1 for _ in lowered.nodes()), [values])
    wanted = expected(3, 3, calls=1, visible=3 * 40, seen=3 * 40)
    assert {row.label: (row.bytes, row.operations) for row in found} == wanted
    assert [row.integer for row in found] == [False, True, False, True, True, True, True, False]


def test_a_decode_profile_is_of_one_step_of_the_asked_context(quantized: LoadedModel) -> None:
    found = profiler(quantized).decode(2, 40)
    steps = range(40 + WARM_UP, 40 + WARM_UP + DECODE_STEPS)
    assert figures(found) in [expected(2, 2, calls=1, visible=2 * keys, seen=2 * keys) for keys in steps]
    assert (found.name, found.batch, found.context, found.tokens, found.steps) == ("decode", 2, 40, 2, 1)
    assert [row.calls for row in found.rows] == [1, 2, 2, 2, 2, 2, 1, 1]


def test_a_prompt_runs_in_steps_and_shares_its_keys(quantized: LoadedModel) -> None:
    found = profiler(quantized).prefill(50)  # 32 rows, then 18
    assert figures(found) == expected(50, 1, calls=2, visible=50 * 51 // 2, seen=32 + 50)
    assert (found.tokens, found.steps, rows(found)["attention"].calls) == (50, 2, 4)
    assert rows(found)["head q8_0 lm_head"].calls == 1  # the first step has no row that needs logits


def test_times_add_up_to_the_step(quantized: LoadedModel) -> None:
    for found in (profiler(quantized).decode(4, 20), profiler(quantized).prefill(32)):
        in_nodes = sum(row.seconds for row in found.rows)
        assert all(row.seconds > 0 for row in found.rows)
        assert found.idle > 0 and found.python > 0
        assert in_nodes + found.idle + found.python == pytest.approx(found.seconds, rel=1e-9)


def test_slots_are_given_back_and_profiling_ends(quantized: LoadedModel) -> None:
    for _ in range(2):
        assert profiler(quantized).decode(4, 30).batch == 4
    opened = SlotOpen(0, (1, 2), 2, SamplingParams(temperature=0.0), 0, 0, 512, ())
    step = Step(0, (RowRun(0, 0, 2, True),), (opened,), pages=(PagesAppended(0, 0, 0, (1,)),))
    assert len(quantized.runner.run(step).runs[0].token_ids) == 1
    assert set(quantized.executor.machine.node_times()) == {0}


def test_the_cache_counts_as_it_is_stored(tmp_path: Path) -> None:
    model = loaded(tmp_path, tiny.gguf_file(tmp_path / "tiny.gguf"), kv_cache_dtype="float32")
    assert figures(profiler(model).prefill(20)) == expected(20, 1, calls=1, visible=210, seen=20, token=2 * TOKEN)


def test_the_head_runs_by_chunks_of_64_rows(tmp_path: Path) -> None:
    model = loaded(tmp_path, tiny.folder(tmp_path / "tiny"), max_num_seqs=70, max_num_batched_tokens=70)
    head = rows(profiler(model).decode(70, 4))["head f32 lm_head"]
    weight = 4 * 288 * 64
    assert (head.calls, head.integer) == (2, False)
    assert head.bytes == 2 * (weight + HIDDEN) + 70 * (HIDDEN + 4 * 288)


RUNS = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40), st.booleans()), min_size=1, max_size=4)


@given(runs=RUNS)
def test_visible_and_shared_keys_against_sets(windowed: LoadedModel, runs: list[tuple[int, int, bool]]) -> None:
    step = Step(0, tuple(RowRun(slot, *run) for slot, run in enumerate(runs)))
    found = symbols(step, windowed.runner.facts, windowed.executor.layouts.lowered)
    visible = seen = 0
    for start, count, _ in runs:
        sets = [set(range(max(0, row + 1 - 24), row + 1)) for row in range(start, start + count)]
        visible += sum(map(len, sets))
        seen += len(set.union(*sets))
    assert (found["visible_keys.0"], found["kv_seen.0"]) == (visible, seen * TOKEN)
    assert found["kv_written.0"] == step.rows * TOKEN
    assert (found["T"], found["R"], found["S"]) == (step.rows, sum(run[2] for run in runs), len(runs))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("windowed")
    config = tiny.config("mistral", sliding_window=24)
    return loaded(folder, tiny.folder(folder / "tiny", config))


def test_what_does_not_fit_is_refused(quantized: LoadedModel) -> None:
    with pytest.raises(DoesNotFit, match="--batch or --context"):
        profiler(quantized).decode(5, 20)
    with pytest.raises(ContextLengthExceeded):
        profiler(quantized).prefill(513)


def test_the_roof_is_the_longer_of_reading_and_multiplying() -> None:
    ceilings = Ceilings("portable", 1, 10e9, 100e9, 50e9)
    assert Row("reads", True, 1, 1.0, 10**9, 10**9).roof_seconds(ceilings) == pytest.approx(0.1)
    assert Row("integers", True, 1, 1.0, 10**6, 10**9).roof_seconds(ceilings) == pytest.approx(0.01)
    assert Row("floats", False, 1, 1.0, 10**6, 10**9).roof_seconds(ceilings) == pytest.approx(0.02)
