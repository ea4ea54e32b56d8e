"""Logits of the reference executor against transformers in float32 on the CPU, prefill and step by step.

The bound is 1e-3, or twice the difference between transformers' own two kinds of attention on that prompt.
"""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.execution.reference import ReferenceModel, Rows, load_weights
from octavo.models.binding import bind
from octavo.models.registry import build
from octavo.program.trace import trace, weights_of
from octavo.tokenizer import gguf_tokenizer
from tests import real, tiny
from tests.models.prompts import PROMPTS

BOUND = 1e-3

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "llama, group 1": {"num_key_value_heads": 4},
    "llama3 rope, group 3": {"num_attention_heads": 6, "hidden_size": 96, "rope_scaling": LLAMA3_ROPE},
    "linear rope, group 4": {"num_key_value_heads": 1, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "mistral, window, group 2": {"model_type": "mistral", "sliding_window": 17},
    "mistral, wide heads": {"model_type": "mistral", "sliding_window": None, "head_dim": 40},
    "qwen2, bias, group 7": {
        "model_type": "qwen2", "num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 112,
    },
    "qwen2, tied, window in the second layer": {
        "model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 9,
        "max_window_layers": 1,
    },
    "llama, biases": {"attention_bias": True},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference(path: Path, slots: int, positions: int) -> ReferenceModel:
    """Any checkpoint as a ReferenceModel with a float32 cache."""
    checkpoint = open_checkpoint(path)
    model = build(checkpoint, positions=positions)
    programs = trace(model.functions)
    sources = bind(checkpoint, model, weights_of(programs))
    return ReferenceModel(programs, load_weights(checkpoint, sources), positions=positions, slots=slots)


def theirs(path: Path, attention: str) -> Any:
    """transformers' model in float32."""
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, **where
    ).eval()


def logits_of(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].clone() for ids in prompts]


def stepwise(model: ReferenceModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """One id of every prompt a step, each prompt in its own slot -> logits of each prompt."""
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    for at in range(max(map(len, prompts), default=0)):
        runs = [Rows(slot, at, ids[at : at + 1]) for slot, ids in enumerate(prompts) if at < len(ids)]
        for run, row in zip(runs, model.logits(runs), strict=True):
            found[run.slot].append(row)
    return [torch.stack(rows) for rows in found]


def compare(path: Path, prompts: Sequence[Sequence[int]], *, steps: Sequence[int]) -> None:
    """Prefill of every prompt and, for the prompts numbered `steps`, step by step, against transformers."""
    positions = max(map(len, prompts))
    model = reference(path, len(prompts), positions)
    with torch.no_grad():
        prefill = [model.logits([Rows(slot, 0, ids)]) for slot, ids in enumerate(prompts)]
        stepped = stepwise(model, [prompts[i] for i in steps])
    del model
    gc.collect()
    wanted = logits_of(theirs(path, "sdpa"), prompts)
    for found, numbers in ((prefill, range(len(prompts))), (stepped, steps)):
        for got, i in zip(found, numbers, strict=True):
            difference = (got - wanted[i]).abs().max().item()
            if difference > BOUND:
                eager = logits_of(theirs(path, "eager"), [prompts[i]])[0]
                assert difference <= 2 * (eager - wanted[i]).abs().max().item(), (i, difference)


def random_prompts(vocab: int) -> list[list[int]]:
    random = np.random.default_rng(7)
    lengths = [1, 2, 3, 5, 8, 15, 16, 17, 18, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 120]
    return [random.integers(0, vocab, length).tolist() for length in lengths]


@pytest.mark.parametrize("case", TINY)
def test_random_weights(case: str, tmp_path: Path) -> None:
    config = tiny.config(**{"model_type": "llama", **TINY[case]})
    folder = tiny.folder(tmp_path / "model", config)
    compare(folder, random_prompts(config["vocab_size"]), steps=range(20))


@pytest.mark.parametrize("quantization", ["q4_1", "q8_0", "bf16"])
def test_gguf_and_its_row_order(quantization: str, tmp_path: Path) -> None:
    path = tiny.gguf_file(tmp_path / "model.gguf", quantization=quantization)
    compare(path, random_prompts(tiny.VOCAB_SIZE), steps=range(20))


def test_bfloat16_folder(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model", dtype="bfloat16")
    compare(folder, random_prompts(tiny.VOCAB_SIZE)[:6], steps=())


def text_ids(path: Path) -> list[list[int]]:
    """The prompts as ids of the tokenizer inside a GGUF file."""
    tokenizer = gguf_tokenizer.build(open_checkpoint(path).tokenizer_metadata())
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


def test_smollm2_from_gguf() -> None:
    path = real.smollm2()
    compare(path, text_ids(path), steps=range(0, 18, 3))


def test_smollm2_from_safetensors() -> None:
    prompts = text_ids(real.smollm2())[1:19:3]
    compare(real.smollm2_safetensors(), prompts, steps=range(6))


@pytest.mark.slow
def test_smollm2_step_by_step_on_every_prompt() -> None:
    for path in (real.smollm2(), real.smollm2_safetensors()):
        compare(path, text_ids(real.smollm2()), steps=range(20))


@pytest.mark.slow
def test_qwen_half_b() -> None:
    path = real.qwen_half_b()
    compare(path, text_ids(path), steps=range(20))
