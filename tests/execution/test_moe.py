"""Mixtures of experts end to end on the native executor: every node keeps its contract, no bit depends on chunks or
threads, what a step reads and computes is exact."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.config import EngineConfig
from octavo.engine.startup import load_model
from octavo.execution import verify
from octavo.execution.profile import Profiler
from octavo.quantization.format import FORMATS, GGML_TYPES, format_named
from tests import tiny
from tests.execution.test_native import PROMPTS, VARIANTS, Session
from tests.models import families

IDS = tuple((7 * i + 3) % tiny.VOCAB_SIZE for i in range(53))
QUANTIZED = [name for name in FORMATS if format_named(name).split is not None and name in GGML_TYPES.values()]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32}
ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case(name: str, **changes: Any) -> families.Case:
    known = families.CASES[name]
    return families.Case(known.model_type, {**known.changes, **WIDE, **changes}, known.arch, known.metadata)


def config(folder: Path, isa: str = "auto") -> EngineConfig:
    return EngineConfig(threads=2, isa=isa, cache_dir=str(folder), state_dir=str(folder))


def mixture(first: int) -> dict[str, str]:
    """Another format for gate, up and down; the rest in Q8_0."""
    return {"": "q8_0"} | {role: QUANTIZED[(first + i) % len(QUANTIZED)] for i, role in enumerate(ROLES)}


@pytest.mark.parametrize("isa", VARIANTS)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_every_node_keeps_its_contract(name: str, isa: str, tmp_path: Path) -> None:
    changes = {"moe_intermediate_size": 256} if name == "qwen3_moe" else {}
    formats = {"": "q8_0", "ffn_gate_exps": "q4_k", "ffn_up_exps": "q4_k", "ffn_down_exps": "q6_k"}
    if name == "gpt_oss":
        formats |= dict.fromkeys(ROLES, "mxfp4")
    path = families.gguf_file(tmp_path / "m.gguf", case(name, **changes), quantization=formats)
    report = verify.verify(path, config(tmp_path, isa), IDS)
    assert report.first_deviation is None, report.table()
    held = {check.against for check in report.checks if check.op == "moe"}
    assert len(held) == 4  # ids and counts, the op's bound, the oracle, the node as it is


@pytest.mark.parametrize("first", range(0, len(QUANTIZED), len(ROLES)))
def test_formats_mixed_inside_experts(first: int, tmp_path: Path) -> None:
    path = families.gguf_file(tmp_path / "m.gguf", case("mixtral"), quantization=mixture(first))
    report = verify.verify(path, config(tmp_path), IDS[:23])
    assert report.first_deviation is None, report.table()
    wanted = Session(path, threads=1).answers(PROMPTS, count=6)
    for threads, chunk in ((1, 1), (3, 7), (2, 33)):
        assert Session(path, threads=threads).answers(PROMPTS, chunk=chunk, count=6) == wanted


@pytest.mark.parametrize("isa", VARIANTS)
def test_bits_depend_on_no_chunk_and_no_thread(isa: str, tmp_path: Path) -> None:
    path = families.gguf_file(
        tmp_path / "m.gguf", case("gpt_oss"), quantization={"": "q8_0", **dict.fromkeys(ROLES, "mxfp4")}
    )
    wanted = Session(path, isa, threads=1).answers(PROMPTS, count=8)
    for threads in (1, 2, 3):
        session = Session(path, isa, threads=threads)
        for chunk in (1, 9, 64):
            assert session.answers(PROMPTS, chunk=chunk, count=8) == wanted
        assert session.answers(PROMPTS, loop=4, count=8) == wanted


def test_bytes_and_operations_count_the_experts_that_had_rows(tmp_path: Path) -> None:
    """Against counts by hand: routes of the reference, packed bytes of an expert."""
    changed = case("mixtral", num_local_experts=8, num_hidden_layers=1)
    path = families.gguf_file(tmp_path / "m.gguf", changed, quantization="q8_0")
    options = {"threads": 2, "max_num_batched_tokens": 32, "max_num_seqs": 4, "kv_cache_memory": 1 << 20}
    loaded = load_model(path, EngineConfig(**options, cache_dir=str(tmp_path), state_dir=str(tmp_path)))
    profile = Profiler(loaded.executor, loaded.runner).decode(2, 5)
    (row,) = [each for each in profile.rows if each.label.startswith("moe")]
    active, chosen, width, inner = 2, 2, 256, 256  # both rows see the same ids, so they choose the same experts
    expert = 3 * width * inner // 1024 * 1088
    buffers = 2 * (384 + 8 * 4 + 2 * 4 * width)  # quantized rows, logits, the residual stream read and written
    assert row.bytes == active * expert + buffers
    assert row.operations == 2 * chosen * 6 * width * inner
    assert row.integer
    prefill = Profiler(loaded.executor, loaded.runner).prefill(70)
    (row,) = [each for each in prefill.rows if each.label.startswith("moe")]
    assert row.calls == 3 and row.operations == 70 * chosen * 6 * width * inner
    assert (row.bytes - 35 * buffers) % expert == 0 and 3 * active <= (row.bytes - 35 * buffers) // expert <= 3 * 8


def test_a_stack_takes_the_bytes_of_its_experts(tmp_path: Path) -> None:
    """Packed weights of all experts are those of each, one after the other."""
    path = families.gguf_file(tmp_path / "m.gguf", case("mixtral"), quantization="q4_0")
    session = Session(path)
    lowered = session.plan.layouts.lowered
    stacks = [weight for weight in lowered.weights.values() if weight.experts > 1]
    assert len(stacks) == 6 and {weight.experts for weight in stacks} == {5}
    for weight in stacks:
        assert weight.nbytes == 5 * (256 // 32) * (256 // 32) * 576
        assert session.plan.layouts.places[weight.name].nbytes == weight.nbytes
