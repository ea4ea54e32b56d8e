"""Where activations are quantized: before linears whose weights are quantized, once for all that share the input.

Groups are 32 columns of a row, by model and format, never by batch. Linears on float weights keep float rows, and so do
those that share their input with one: phases merge them (q, k and v; gate and up), and a phase has one kind of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octavo.ops.quantize import quantize
from octavo.program.graph import Program, Value
from octavo.quantization.format import format_named


def quantizes(format_name: str) -> bool:
    """Whether products with weights of this format take quantized activations."""
    return format_named(format_name).split is not None


def quantize_activations(program: Program, formats: Mapping[str, str]) -> Program:
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
    rounded: dict[tuple[Value, str], Value] = {}
    for node in program.nodes:
        operands = [seen[value] for value in node.operands]
        with copy.within(node.region):
            if node.op.name == "linear" and (node.operands[0], node.region) not in floats:
                key = (operands[0], node.region)
                if key not in rounded:
                    rounded[key] = quantize(operands[0])
                operands[0] = rounded[key]
            made = copy.append(node.op, operands, node.attrs, [(value.shape, value.dtype) for value in node.outputs])
        seen.update(zip(node.outputs, made.outputs, strict=True))
    for name, value in program.outputs.items():
        copy.output(name, seen[value])
    return copy


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
        node.operands[1].name
        for program in programs
        for node in program.nodes
        if node.op.name == "linear" and node.operands[0].dtype == "f32" and quantizes(formats[node.operands[1].name])
    }
