"""Models in every weight format, end to end: verify finds no deviating node, and no bit depends on chunks or threads.

Tiny models of random weights with rows of 256, so that super-blocks fit; SmolLM2 written anew with a format a layer.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.execution import verify
from octavo.quantization.format import FORMATS, GGML_TYPES, format_named
from tests import encoded, real, tiny
from tests.execution.test_native import PROMPTS, VARIANTS, Session

IDS = tuple((7 * i + 3) % tiny.VOCAB_SIZE for i in range(37))
QUANTIZED = [name for name in FORMATS if format_named(name).split is not None and name in GGML_TYPES.values()]
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
STEMS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output", "token_embd")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(folder: Path, isa: str = "auto") -> EngineConfig:
    return EngineConfig(threads=2, isa=isa, cache_dir=str(folder), state_dir=str(folder))


def mixture(first: int) -> dict[str, str]:
    """Another format for every role, beginning at the first-th: no two weights of a fused phase have the same."""
    return {stem: QUANTIZED[(first + i) % len(QUANTIZED)] for i, stem in enumerate(STEMS)}


def check(path: Path, folder: Path, isa: str = "auto", ids: tuple[int, ...] = IDS) -> verify.Report:
    report = verify.verify(path, config(folder, isa), ids)
    assert report.first_deviation is None, report.table()
    return report


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_model_of_one_format_with_a_tied_head(name: str, tmp_path: Path) -> None:
    path = tiny.gguf_file(tmp_path / "m.gguf", tiny.config(tie_word_embeddings=True, **SHAPE), quantization=name)
    found = {tensor.format for tensor in open_checkpoint(path).tensors.values() if len(tensor.shape) == 2}
    assert found == {name}
    check(path, tmp_path)


@pytest.mark.parametrize("isa", VARIANTS)
@pytest.mark.parametrize("first", range(0, len(QUANTIZED), len(STEMS) // 2))
def test_formats_mixed_inside_fused_phases(first: int, isa: str, tmp_path: Path) -> None:
    path = tiny.gguf_file(tmp_path / "m.gguf", tiny.config(**SHAPE), quantization=mixture(first))
    check(path, tmp_path, isa)


@pytest.mark.parametrize("first", range(0, len(QUANTIZED), len(STEMS)))
def test_bits_depend_on_no_chunk_and_no_thread(first: int, tmp_path: Path) -> None:
    path = tiny.gguf_file(tmp_path / "m.gguf", tiny.config(**SHAPE), quantization=mixture(first))
    wanted = Session(path, threads=1).answers(PROMPTS, count=6)
    for threads in (1, 3):
        session = Session(path, threads=threads)
        for chunk in (1, 7, 33):
            assert session.answers(PROMPTS, chunk=chunk, count=6) == wanted


@pytest.mark.slow
def test_smollm2_with_another_format_in_every_layer(tmp_path: Path) -> None:
    """Real weights; rows of 576 are no whole super-blocks, so that files fall back to blocks of 32 there."""

    def chosen(name: str) -> str:
        parts = name.split(".")
        return QUANTIZED[int(parts[1]) % len(QUANTIZED)] if parts[0] == "blk" else "q5_1"

    path = encoded.rewrite(real.model("smollm2-135m-instruct"), tmp_path / "smollm2.gguf", chosen)
    report = check(path, tmp_path, ids=tuple(range(1, 6)))
    assert {check.op for check in report.checks} >= {"embedding", "linear"}
