"""Every family beside Llama's: logits against transformers in float32, GGUF against the folder, native against both.

The bound of logits is 1e-3 (tests/models/test_logits.py). A GGUF file of the same float32 weights gives the very
weights of the folder; from quantized files the native engine must compute what its own origin does (`octavo verify`).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.execution import verify
from octavo.execution.reference import ReferenceModel, Rows, load_weights
from octavo.models.binding import bind
from octavo.models.registry import build
from octavo.program.trace import trace, weights_of
from octavo.quantization.format import format_named
from tests import real, tiny
from tests.models import families
from tests.models.test_logits import BOUND, logits_of, random_prompts, stepwise, text_ids, theirs

IN_GGUF = [name for name, case in families.CASES.items() if case.arch]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loaded(path: Path, positions: int) -> tuple[ReferenceModel, dict[str, torch.Tensor]]:
    """A checkpoint as a reference model of 21 slots with a float32 cache, and its weights."""
    checkpoint = open_checkpoint(path)
    model = build(checkpoint, positions=positions)
    programs = trace(model.functions)
    weights = load_weights(checkpoint, bind(checkpoint, model, weights_of(programs)))
    return ReferenceModel(programs, weights, positions=positions, slots=21), weights


def prompts_of(case: families.Case) -> list[list[int]]:
    every = random_prompts(tiny.VOCAB_SIZE)
    if not case.lengths:
        return every
    source = np.random.default_rng(3)
    return [source.integers(0, tiny.VOCAB_SIZE, length).tolist() for length in case.lengths]


@pytest.mark.parametrize("name", families.CASES)
def test_logits_of_random_weights(name: str, tmp_path: Path) -> None:
    """Prefill, one id a step, and in chunks of 1 to 50 rows beside each other."""
    case = families.CASES[name]
    path, prompts = families.folder(tmp_path / "model", case), prompts_of(case)
    positions = max(map(len, prompts))
    with torch.no_grad():
        model, _ = loaded(path, positions)
        prefill = [model.logits([Rows(slot, 0, ids)]) for slot, ids in enumerate(prompts)]
        stepped = stepwise(loaded(path, positions)[0], prompts)
        chunked = in_chunks(loaded(path, positions)[0], prompts[-1])
    wanted = logits_of(theirs(path, "eager"), prompts)
    for found in (prefill, stepped):
        for got, want in zip(found, wanted, strict=True):
            assert (got - want).abs().max().item() <= BOUND
    assert (chunked - wanted[-1]).abs().max().item() <= BOUND


def in_chunks(model: ReferenceModel, ids: list[int]) -> torch.Tensor:
    found, at = [], 0
    for count in (1, 30, 2, 50, len(ids)):
        found.append(model.logits([Rows(0, at, ids[at : at + count])]))
        at += len(ids[at : at + count])
        if at == len(ids):
            break
    return torch.cat(found)


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_holds_the_same_model(name: str, tmp_path: Path) -> None:
    """Weights bit for bit, logits to the rounding of rope factors and of scales to float32 in the file."""
    case = families.CASES[name]
    file = families.gguf_file(tmp_path / "model.gguf", case)
    ids = prompts_of(case)[-1]
    (ours, own), (others, given) = (loaded(path, len(ids)) for path in (tmp_path / "model", file))
    assert own.keys() == given.keys()
    for weight, values in own.items():
        assert torch.equal(values, given[weight]), weight
    with torch.no_grad():
        wanted, found = (model.logits([Rows(0, 0, ids)]) for model in (ours, others))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        *((name, "float32") for name in families.CASES),
        *itertools.product(("gemma2", "gemma3"), ("bf16", "fp16", "int8")),
    ],
)
def test_native_computes_what_the_model_says(name: str, kv: str, tmp_path: Path) -> None:
    """Nodes against their own origin, from float weights and from quantized ones where widths are whole blocks."""
    case = families.CASES[name]
    paths = [families.folder(tmp_path / "model", case)]
    if case.arch:
        paths.append(families.gguf_file(tmp_path / "model.gguf", case, quantization="q8_0"))
    config = EngineConfig(threads=2, cache_dir=str(tmp_path), state_dir=str(tmp_path), kv_cache_dtype=kv)
    ids = tuple((7 * i + 3) % tiny.VOCAB_SIZE for i in range(71))
    for path in paths:
        report = verify.verify(path, config, ids)
        assert report.first_deviation is None
        if any(check.op == "moe" for check in report.checks):  # a near tie of a router may choose another expert
            assert np.median(report.kl) < 0.01
        else:
            assert max(report.kl) < 0.05
        if kv == "float32" and path.is_dir():
            assert max(distance.relative_error for distance in report.distances) < 1e-4


def gemma3_of_transformers() -> Any:
    """Gemma 3 270M in float32. Its own reader of GGUF takes minutes for a vocabulary of 262,144; names are the gguf
    package's, the numbers of the model those of its published config.json."""
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
        max_position_embeddings=32768, rms_norm_eps=1e-6,
    )  # fmt: skip
    checkpoint = open_checkpoint(real.gemma3())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 18)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = checkpoint.tensors[names.get_name(name, try_suffixes=(".weight",))]
            values = format_named(tensor.format).dequantize(checkpoint.read(tensor.name), tensor.shape)
            parameter.copy_(torch.from_numpy(values - np.float32(1) if name.endswith("norm.weight") else values))
    return model.eval()


def check_gemma3(prompts: list[list[int]]) -> None:
    with torch.no_grad():
        model, _ = loaded(real.gemma3(), max(map(len, prompts)))
        found = [model.logits([Rows(slot, 0, ids)]) for slot, ids in enumerate(prompts)]
    del model
    # In float64: one prompt has logits of 42, where transformers' float32 is up to 6e-4 off, by the number of threads.
    for got, want in zip(found, logits_of(gemma3_of_transformers().double(), prompts), strict=True):
        assert (got - want).abs().max().item() <= BOUND


def test_gemma3_from_gguf() -> None:
    """Real weights: 18 layers of two kinds."""
    check_gemma3(text_ids(real.gemma3())[2:11:4])


@pytest.mark.slow
def test_gemma3_on_every_prompt_and_across_its_window() -> None:
    prompts = text_ids(real.gemma3())
    check_gemma3([*prompts, (prompts[-1] * 4)[:700]])


def test_gemma3_natively(tmp_path: Path) -> None:
    config = EngineConfig(threads=2, cache_dir=str(tmp_path), state_dir=str(tmp_path))
    report = verify.verify(real.gemma3(), config, (2, 9259, 1902, 563))
    assert report.first_deviation is None
