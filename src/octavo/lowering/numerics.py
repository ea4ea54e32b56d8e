"""Where activations are quantized: before products with quantized weights, once for all that share the input.

Groups are 32 columns of a row, by model and format, never by batch. Where kernels gain by summing super-blocks in
integers (`sums`) and all that reads a row has such (quantization/panels.py, span), 256 share a scale, with rests where
that is too coarse (native/kernel.h). Linears on float weights keep float rows, and so do
those that share their input with one: phases merge them (q, k and v; gate and up), and a phase has one kind of rows.
A mixture of experts is told apart from the linear that routes it: its rows are quantized where they are made, and a
shared expert beside it takes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octavo.ops.quantize import GROUP, quantize
from octavo.program.graph import Node, Program, Value
from octavo.quantization.format import format_named
from octavo.quantization.panels import layout_named


def quantizes(format_name: str) -> bool:
    """Whether products with weights of this format take quantized activations."""
    return format_named(format_name).split is not None


def quantize_activations(program: Program, formats: Mapping[str, str], sums: bool) -> Program:
    """A copy of the Program with `quantize` inserted; `formats` are the weights' formats by name."""
    copy = Program(program.name, states=list(program.states))
    seen: dict[Value, Value] = {}
    for value in program.inputs.values():
        dims, needed = value.shape, value.needed
        seen[value] = copy.input(value.name, dims, value.dtype, source=value.source, needed=needed)
    for value in program.weights.values():
        seen[value] = copy.weight(value.name, [each.at({}) for each in value.shape])
    for table in program.tables.values():
        seen[program.table_values[table.name]] = copy.table(table)
    floats = float_inputs(program, formats)
    to_experts = {node.operands[0] for node in program.nodes if node.op.name == "moe" and _takes(node, 0, formats)}
    spans = _spans(program, formats, sums)
    rounded: dict[tuple[Value, str], Value] = {}

    def of(value: Value, region: str) -> Value:
        if (value, region) not in rounded:
            rounded[value, region] = quantize(seen[value], spans[value, region])
        return rounded[value, region]

    for node in program.nodes:
        operands, attrs = [seen[value] for value in node.operands], node.attrs
        with copy.within(node.region):
            own = node.operands[0] in to_experts and _multiplies_quantized(node, formats)
            if node.op.name == "linear" and (own or (node.operands[0], node.region) not in floats):
                operands[0] = of(node.operands[0], node.region)
            elif node.op.name == "moe":
                if node.operands[0] in to_experts:
                    operands[0] = of(node.operands[0], node.region)
                inner = _span(node, STAGES[1], formats, sums) if _takes(node, 1, formats) else 0
                attrs = {**attrs, "span": inner}
            made = copy.append(node.op, operands, attrs, [(value.shape, value.dtype) for value in node.outputs])
            seen.update(zip(node.outputs, made.outputs, strict=True))
            for value in to_experts.intersection(node.outputs):  # at once: it ends the phase that makes the rows
                of(value, node.region)
    for name, value in program.outputs.items():
        copy.output(name, seen[value])
    return copy


def _multiplies_quantized(node: Node, formats: Mapping[str, str]) -> bool:
    return node.op.name == "linear" and quantizes(formats[node.operands[1].name])


STAGES = ((2, 3), (4,))  # of moe: operands whose weights share their rows


def _span(node: Node, weights: Iterable[int], formats: Mapping[str, str], sums: bool) -> int:
    """Values that share a scale in rows that meet these operands of a node: as many as all formats allow."""
    layouts = [format_named(formats[node.operands[at].name]).layout for at in weights]
    return min(layout_named(layout).span for layout in layouts) if sums else GROUP


def _spans(program: Program, formats: Mapping[str, str], sums: bool) -> dict[tuple[Value, str], int]:
    """The span of every (value, region) that products read: one for all that share it."""
    found: dict[tuple[Value, str], int] = {}
    for node in program.nodes:
        if node.op.name in ("linear", "moe"):
            key = node.operands[0], node.region
            span = _span(node, (1,) if node.op.name == "linear" else STAGES[0], formats, sums)
            found[key] = min(span, found.get(key, span))
    return found


def _takes(node: Node, stage: int, formats: Mapping[str, str]) -> bool:
    """Whether a stage of a mixture takes quantized rows: all of its weights are quantized."""
    return all(quantizes(formats[node.operands[at].name]) for at in STAGES[stage])


def float_inputs(program: Program, formats: Mapping[str, str]) -> set[tuple[Value, str]]:
    """(value, region) of every input of linears that has a float weight among its readers."""
    return {
        (node.operands[0], node.region)
        for node in program.nodes
        if node.op.name == "linear" and not quantizes(formats[node.operands[1].name])
    }


def widened_weights(programs: Iterable[Program], formats: Mapping[str, str]) -> set[str]:
    """Quantized weights that meet float rows: they are packed as floats, exactly, at four bytes an element."""
    return {
        weight.name
        for program in programs
        for node in program.nodes
        for weight in _beside_floats(node)
        if quantizes(formats[weight.name])
    }


def _beside_floats(node: Node) -> Iterable[Value]:
    """The weights that a node multiplies with float rows."""
    if node.op.name == "linear":
        return node.operands[1:] if node.operands[0].dtype == "f32" else ()
    if node.op.name == "moe":
        kinds = (node.operands[0].dtype == "acts", bool(node.attrs["span"]))
        return [node.operands[at] for stage, acts in zip(STAGES, kinds, strict=True) if not acts for at in stage]
    return ()
