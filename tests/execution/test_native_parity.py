"""The native executor against the reference on the Programs that were lowered, over odd shapes, float32 cache.

Float weights: both sum in float32, so logits agree to rounding. Quantized weights: most rows agree too; where a last
bit before `quantize` falls on the other side of a tie, one code of 127 changes, which two small layers turn into a
hundredth of the logits: those rows are bounded, and must stay the minority.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.execution.native import Bounds, NativeExecutor, lay_out
from octavo.execution.reference import ReferenceModel, Rows, load_weights
from octavo.lowering.lower import LoweringFacts, lower
from octavo.models.binding import bind
from octavo.models.registry import build
from octavo.program.trace import trace, weights_of
from tests import tiny

POSITIONS, SLOTS, ROWS = 96, 2, 64

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2, group 7": {
        "model_type": "qwen2",
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "hidden_size": 96,
    },
    "biases": {"attention_bias": True},
    "own heads": {"num_key_value_heads": 4},
    "window": {"model_type": "mistral", "sliding_window": 19},
    "wide heads": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 80},
    "ragged": {"intermediate_size": 100, "hidden_size": 72, "vocab_size": 301},
}


class Both:
    """One checkpoint in the native and in the reference executor; slot s owns the same pages in both."""

    def __init__(self, path: Path, threads: int) -> None:
        checkpoint = open_checkpoint(path)
        model = build(checkpoint, positions=POSITIONS)
        programs = trace(model.functions)
        sources = bind(checkpoint, model, weights_of(programs))
        formats = {name: source.format for name, source in sources.items()}
        self.lowered = lower(programs, LoweringFacts(formats, ROWS, SLOTS, POSITIONS, "float32", threads))
        chosen = {name: self.lowered.programs[name].program for name in ("body", "head")}
        weights = load_weights(checkpoint, sources)
        self.reference = ReferenceModel(chosen, weights, positions=POSITIONS, slots=SLOTS)
        of_group = SLOTS * POSITIONS // 16
        pages = 1 + len(self.lowered.groups) * of_group
        layouts = lay_out(self.lowered, sources, Bounds(ROWS, SLOTS, POSITIONS, pages, threads), model.vocab_size)
        self.native = NativeExecutor(layouts, model.vocab_size, "test")
        self.native.load(checkpoint, sources)
        for group in range(len(self.lowered.groups)):  # native groups share the pages, the reference's have their own
            self.native.slots["page"][:, group] = self.reference.page[:, group].numpy() + group * of_group

    def logits(self, runs: list[Rows]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of every row of a step: native, reference."""
        inputs = {name: value.numpy() for name, value in self.reference.inputs(runs).items()}
        step, count = self.native.step, len(inputs["ids"])
        self.native.slots["ids"][inputs["row_slot"], inputs["row_pos"]] = inputs["ids"]
        for name in ("row_slot", "row_pos", "row_lo", "row_hi"):
            step[name][..., :count] = inputs[name]
        step["seq_slot"][: len(runs)] = [run.slot for run in runs]
        step["seq_row"][: len(runs) + 1] = np.cumsum([0, *(len(run.ids) for run in runs)])
        step["logit_row"][:count] = np.arange(count)
        step["logit_seq"][:count] = [i for i, run in enumerate(runs) for _ in run.ids]
        step["logit_target"][:count] = 0
        self.native.slots["known"][:] = 1
        step["header"][5:9] = (count, len(runs), count, 1)
        assert self.native.execute()
        node = self.lowered.programs["head"].nodes[0]
        (buffer,) = node.writes.values()
        held = self.lowered.arena.buffers[buffer]
        raw = self.native.arena_view(buffer, count * held.row_bytes).view(np.float32).reshape(count, -1)
        vocab = self.lowered.programs["head"].program.outputs["logits"].width
        with torch.no_grad():
            return torch.from_numpy(raw[:, :vocab].copy()), self.reference.logits(runs)


def steps(seed: int) -> list[list[Rows]]:
    """Prompts in chunks beside decode rows: 1 to 64 rows a step, below and above what shares a prologue."""
    ids = np.random.default_rng(seed).integers(0, tiny.VOCAB_SIZE, (2, POSITIONS)).tolist()
    plan = [[(0, 17)], [(0, 1), (1, 40)], [(0, 1), (1, 1)], [(1, 3)], [(0, 33), (1, 31)], [(0, 1)]]
    done, found = [0, 0], []
    for step in plan:
        runs = []
        for slot, count in step:
            runs.append(Rows(slot, done[slot], ids[slot][done[slot] : done[slot] + count]))
            done[slot] += count
        found.append(runs)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", SHAPES)
def test_float_weights(case: str, threads: int, tmp_path: Path) -> None:
    config = tiny.config(**{"model_type": "llama", **SHAPES[case]})
    both = Both(tiny.folder(tmp_path / "model", config), threads)
    for runs in steps(1):
        native, reference = both.logits(runs)
        torch.testing.assert_close(native, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantization", ["q4_0", "q4_1", "q5_0", "q8_0", "bf16", "f16"])
@pytest.mark.parametrize("case", ["llama", "tied", "biases", "own heads"])
def test_quantized_weights(case: str, quantization: str, tmp_path: Path) -> None:
    config = tiny.config(**{"model_type": "llama", **SHAPES[case]})
    both = Both(tiny.gguf_file(tmp_path / "model.gguf", config, quantization=quantization), 2)
    errors = []
    for runs in steps(2):
        native, reference = both.logits(runs)
        errors.append((native - reference).norm(dim=1) / reference.norm(dim=1))
    rows = torch.cat(errors)
    assert rows.median() < 1e-5 and rows.max() < 0.05


def test_float_and_quantized_weights_side_by_side(tmp_path: Path) -> None:
    """Files mix formats inside q, k, v and inside gate, up; weights of one phase then all meet float rows."""
    mixed = {
        "attn_q": "q8_0",
        "attn_k": "f16",
        "attn_v": "q4_1",
        "ffn_gate": "bf16",
        "ffn_up": "q8_0",
        "output": "q8_0",
    }
    both = Both(tiny.gguf_file(tmp_path / "model.gguf", tiny.config(), quantization=mixed), 2)
    layouts = {name.split(".")[-2]: weight.layout for name, weight in both.lowered.weights.items()}
    assert layouts["q_proj"] == layouts["up_proj"] == "f32.p32.k1.1" and layouts["lm_head"] == "q8_0.p32.k4.1"
    for runs in steps(3):
        native, reference = both.logits(runs)
        torch.testing.assert_close(native, reference, rtol=0.05, atol=0.05)
