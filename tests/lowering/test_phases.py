"""Phases: what joins what, argument lists as kernel.h reads them, and that they compute what the Program computes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from octavo.errors import UnsupportedModel
from octavo.execution.reference import ReferenceModel, Rows
from octavo.kernels.reference.quantize import QuantizedRows
from octavo.lowering.lower import LoweringFacts, lower
from octavo.lowering.lowered import ArenaArg, DimArg, FloatBits, Imm, Lowered, LoweredNode
from octavo.lowering.phases import form_phases
from octavo.models.llama import from_config
from octavo.ops.activation import add, silu_mul
from octavo.ops.embedding import gather_rows
from octavo.ops.linear import linear
from octavo.ops.norm import rms_norm
from octavo.ops.quantize import act_row_bytes, quantize
from octavo.program.graph import Program, Value
from octavo.program.symbols import R, T
from octavo.program.trace import trace, weights_of
from octavo.quantization.format import format_named
from tests import tiny
from tests.lowering.argument_reader import Linear, Reader, check_inline, read_linear

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 96},
    "bias": {"attention_bias": True},
    "single": {"num_key_value_heads": 4},
    "window": {"model_type": "mistral", "sliding_window": 5},
    "wide heads": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 80},
    "ragged": {"intermediate_size": 100, "hidden_size": 72, "vocab_size": 301},
}


def lowered_of(case: str, quantized: bool, rows: int = 24) -> tuple[Lowered, dict[str, Any]]:
    config = tiny.config(**{"model_type": "llama", **SHAPES[case]})
    programs = trace(from_config(config, positions=64).functions)
    formats = {}
    for name, shape in weights_of(programs).items():
        whole = len(shape) == 2 and shape[1] % 32 == 0
        formats[name] = ("q8_0" if "embed" in name else "q4_1") if quantized and whole else "f32"
    return lower(programs, LoweringFacts(formats, rows, 4, 64, "float32", 2)), config


def linears(lowered: Lowered) -> list[LoweredNode]:
    return [node for node in lowered.nodes() if node.name == "linear"]


def test_a_layer_is_five_phases() -> None:
    lowered, _ = lowered_of("llama", True)
    found = [(node.region, node.name, [each.op.name for each in node.origin.nodes]) for node in lowered.nodes()]
    layer = [
        ("linear", ["rms_norm", "quantize", "linear", "rope", "linear", "rope", "kv_write", "linear", "kv_write"]),
        ("attention", ["attention", "quantize"]),
        ("linear", ["linear", "add"]),
        ("linear", ["rms_norm", "quantize", "linear", "linear", "silu_mul", "quantize"]),
        ("linear", ["linear", "add"]),
    ]
    assert found == [
        ("embed", "embedding", ["embedding"]),
        *(("layer 0", *phase) for phase in layer),
        *(("layer 1", *phase) for phase in layer),
        ("head", "linear", ["gather_rows", "rms_norm", "quantize", "linear"]),
        ("sample", "sample", ["sample"]),
    ]


def test_units_hold_whole_heads_and_whole_panels() -> None:
    wide = read_linear(linears(lowered_of("wide heads", True)[0])[0].args)
    assert [(group.unit, group.units, group.n) for group in wide.groups] == [(160, 2, 240), (160, 1, 80), (160, 1, 80)]
    small = read_linear(linears(lowered_of("qwen2", True)[0])[0].args)
    assert [(group.unit, group.units, group.n) for group in small.groups] == [(32, 4, 112), (32, 1, 16), (32, 1, 16)]
    assert [op.name for op in small.groups[0].ops] == ["tile.bias", "tile.rope", "tile.store"]
    assert [op.name for op in small.groups[2].ops] == ["tile.bias", "tile.kv_write"]


def test_gate_and_up_are_one_group_whose_columns_fill_units() -> None:
    gate_up = read_linear(linears(lowered_of("ragged", False)[0])[2].args)
    (group,) = gate_up.groups
    assert (group.unit, group.units, group.n, len(group.weights)) == (32, 4, 128, 2)
    assert [op.name for op in group.ops] == ["tile.silu_mul", "tile.store"]
    assert group.ops[1].args[1] == Imm(128)
    down = read_linear(linears(lowered_of("ragged", False)[0])[3].args)
    assert (down.k, down.src_ld, down.quantized) == (100, 128, False)


def test_attention_quantizes_only_whole_groups_of_32() -> None:
    def attention_and_output(case: str) -> tuple[list[str], Linear]:
        lowered, _ = lowered_of(case, True)
        reader = Reader(next(node for node in lowered.nodes() if node.name == "attention").args)
        reader.args = reader.args[11:]
        return [op.name for op in reader.inlines()], read_linear(linears(lowered)[1].args)

    ops, output = attention_and_output("llama")  # 2 heads of 16 to a key head
    assert ops == ["tile.quantize"] and output.quantized and output.src is None
    ops, output = attention_and_output("single")  # 1 head of 16: the output layer quantizes for itself
    assert ops == ["tile.store"] and output.quantized and output.src is not None and output.prologue == []
    ops, output = attention_and_output("wide heads")  # 240 columns are no whole groups: float weights, rows are ready
    assert ops == ["tile.store"] and not output.quantized and output.src is None


def test_a_tied_head_reads_the_embedding() -> None:
    lowered, _ = lowered_of("tied", True)
    assert "lm_head.weight" not in lowered.weights
    head = read_linear(linears(lowered)[-1].args)
    assert head.groups[0].weights == [("model.embed_tokens.weight", "format.q8_0.p32.k4.1")]
    assert head.gather is not None and head.gather.name == "logit_row" and head.rows == DimArg(R)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("case", SHAPES)
def test_arguments_read_as_the_kernels_read_them(case: str, quantized: bool) -> None:
    lowered, config = lowered_of(case, quantized)
    for node in lowered.nodes():
        for arg in node.args:
            if isinstance(arg, ArenaArg):
                assert arg.nbytes <= lowered.arena.sizes[arg.buffer]
        if node.name == "linear":
            found = read_linear(node.args)
            assert found.quantized == any(each.op.name == "quantize" for each in node.origin.nodes[:3]) or not found.src
            for group in found.groups:
                assert group.unit % 32 == 0 and group.units == -(-group.n // group.unit)
                for name, fn in group.weights:
                    assert fn == f"format.{lowered.weights[name].layout}"
                    assert lowered.weights[name].k == found.k
            row = act_row_bytes(found.k) if found.quantized else 4 * found.k
            assert found.acts.nbytes == row * (min(64, 24) if found.gather else 24)
        elif node.name == "attention":
            reader = Reader(node.args)
            assert reader.args.pop(0) == DimArg(T)
            assert reader.take(ArenaArg).nbytes == 24 * 4 * reader.number()
            reader.args = reader.args[2:]
            assert reader.number() == config["num_attention_heads"]
            assert reader.take(FloatBits).value == pytest.approx(config["head_dim"] ** -0.5)
            assert reader.take(FloatBits).value == 0.0
            assert reader.number() == 0
            assert reader.take(ArenaArg).nbytes == reader.number() == node.workspace
            for op in reader.inlines():
                check_inline(op)
            assert not reader.args


class Arena:
    """The arena as bytes: what a phase writes is where the plan says, and may be overwritten by the next."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.memory = np.full(lowered.arena.nbytes, 0xA5, np.uint8)

    def write(self, buffer: str, value: Any) -> None:
        held = self.lowered.arena.buffers[buffer]
        rows = value.x if isinstance(value, QuantizedRows) else value
        raw = np.zeros((len(rows), held.row_bytes), np.uint8)
        if isinstance(value, QuantizedRows):
            k = value.x.shape[1]
            raw[:, :k] = value.x.numpy().view(np.uint8)
            raw[:, k : k + k // 8] = np.ascontiguousarray(value.scale.numpy()).view(np.uint8)
        else:
            raw[:, : 4 * value.shape[1]] = np.ascontiguousarray(value.numpy()).view(np.uint8)
        at = self.lowered.arena.offsets[buffer]
        self.memory[at : at + raw.size] = raw.reshape(-1)

    def read(self, buffer: str, rows: int, width: int, quantized: bool) -> Any:
        held = self.lowered.arena.buffers[buffer]
        at = self.lowered.arena.offsets[buffer]
        raw = self.memory[at : at + rows * held.row_bytes].reshape(rows, held.row_bytes)
        if not quantized:
            return torch.from_numpy(np.ascontiguousarray(raw[:, : 4 * width]).view(np.float32).copy())
        x = torch.from_numpy(np.ascontiguousarray(raw[:, :width]).view(np.int8).copy())
        scale = np.ascontiguousarray(raw[:, width : width + width // 8]).view(np.float32)
        return QuantizedRows(x, torch.from_numpy(scale.copy()))

    def poison(self, node: LoweredNode) -> None:
        """Overwrite what only this phase uses."""
        kept = {*node.reads.values(), *node.writes.values()}
        for arg in node.args:
            if isinstance(arg, ArenaArg) and arg.buffer not in kept:
                at = self.lowered.arena.offsets[arg.buffer]
                self.memory[at : at + self.lowered.arena.sizes[arg.buffer]] = 0xFF


def run_lowered(lowered: Lowered, model: ReferenceModel, inputs: dict[str, Any], logit_rows: list[int]) -> Any:
    """Every node's origin under the reference executor, values between nodes through the arena's bytes."""
    arena, rows = Arena(lowered), len(inputs["ids"])
    known = {**inputs, "logit_row": torch.tensor(logit_rows)}
    for node in (node for node in lowered.nodes() if node.name != "sample"):
        given = {}
        for name, value in node.origin.inputs.items():
            if name in node.reads:
                count = rows if value.shape[0] == T else len(logit_rows)
                given[name] = arena.read(node.reads[name], count, value.width, value.dtype == "acts")
            elif value.dtype != "state":
                given[name] = known[name]
        results = model.executor.run(node.origin, given)
        arena.poison(node)
        for name, buffer in node.writes.items():
            arena.write(buffer, results[name])
    logits = lowered.programs["head"].program.outputs["logits"]
    buffer = next(node for node in lowered.programs["head"].nodes).writes[logits.name]
    return arena.read(buffer, len(logit_rows), logits.width, False)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("case", SHAPES)
def test_phases_compute_what_the_program_computes(case: str, quantized: bool) -> None:
    lowered, config = lowered_of(case, quantized)
    weights = {}
    for name, values in tiny.weights(config).items():
        if name in lowered.weights and lowered.weights[name].format != "f32":
            raw = np.random.default_rng(3).integers(0, 60, format_named("q4_1").nbytes(values.shape), np.uint8)
            values = format_named("q4_1").dequantize(raw, values.shape) * 1e3
        weights[name] = torch.from_numpy(values)
    programs = {name: lowered.programs[name].program for name in ("body", "head")}
    steps = [[Rows(0, 0, [5, 6, 7, 8, 9, 10, 11])], [Rows(0, 7, [12]), Rows(1, 0, [3, 4, 5])]]
    whole = ReferenceModel(programs, weights, positions=64, slots=2)
    pieces = ReferenceModel(programs, weights, positions=64, slots=2)
    with torch.no_grad():
        for runs in steps:
            count = sum(len(run.ids) for run in runs)
            wanted = whole.logits(runs, [0, count - 1])
            found = run_lowered(lowered, pieces, pieces.inputs(runs), [0, count - 1])
            assert torch.isfinite(wanted).all()
            assert torch.equal(found, wanted)


def formed(*ops: Callable[[Program, Value], Value], regions: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Kernel and ops of each phase of a Program of these calls, one after the other, from an input of 32 columns."""
    program = Program("p")
    x = program.input("x", (T, 32), "f32")
    for i, op in enumerate(ops):
        with program.within(regions[i] if regions else "layer 0"):
            x = op(program, x)
    program.output("y", x)
    return [(phase.kernel, [node.op.name for node in phase.nodes]) for phase in form_phases(program)]


def norm(program: Program, x: Value) -> Value:
    return rms_norm(x, program.weight(f"{x.name}.norm", (32,)), eps=1e-5)


def product(program: Program, x: Value) -> Value:
    return linear(x, program.weight(f"{x.name}.weight", (32, 32)))


def plus(program: Program, x: Value) -> Value:
    return add(x, program.inputs["x"])


def test_row_ops_that_no_linear_takes_are_phases_of_rows() -> None:
    assert formed(norm) == [("rows", ["rms_norm"])]
    assert formed(norm, product) == [("linear", ["rms_norm", "linear"])]
    assert formed(product, norm, plus) == [("linear", ["linear"]), ("rows", ["rms_norm", "add"])]
    assert formed(product, norm, plus, norm, product) == [
        ("linear", ["linear"]), ("rows", ["rms_norm", "add", "rms_norm"]), ("linear", ["linear"]),
    ]  # fmt: skip
    assert formed(plus, product) == [("rows", ["add"]), ("linear", ["linear"])]


def test_a_norm_with_other_readers_than_linears_is_kept() -> None:
    def twice(program: Program, x: Value) -> Value:
        normed = norm(program, x)
        return add(product(program, normed), normed)

    assert formed(twice) == [("rows", ["rms_norm"]), ("linear", ["linear", "add"])]


def test_a_phase_does_not_cross_a_region() -> None:
    assert formed(product, plus, regions=("layer 0", "layer 1")) == [("linear", ["linear"]), ("rows", ["add"])]
    assert formed(norm, product, regions=("layer 0", "layer 1")) == [("rows", ["rms_norm"]), ("linear", ["linear"])]


def test_what_no_phase_can_take_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no phase can take .*silu_mul"):
        formed(lambda _, x: silu_mul(x, x))
    with pytest.raises(UnsupportedModel, match="no phase can take .*quantize"):
        formed(lambda _, x: quantize(quantize(x, 32), 32))
    with pytest.raises(UnsupportedModel, match="no phase can take .*gather_rows"):
        formed(lambda program, x: gather_rows(x, program.input("rows", (R,), "i32")))
