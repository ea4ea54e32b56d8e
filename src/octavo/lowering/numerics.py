"""Where activations are quantized: before every linear whose weight is quantized, once for all that share the input.

Groups are 32 columns of a row, by model and format, never by batch. Linears on float weights keep float rows.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    rounded: dict[tuple[Value, str], Value] = {}
    for node in program.nodes:
        operands = [seen[value] for value in node.operands]
        with copy.within(node.region):
            if node.op.name == "linear" and quantizes(formats[node.operands[1].name]):
                key = (operands[0], node.region)
                if key not in rounded:
                    rounded[key] = quantize(operands[0])
                operands[0] = rounded[key]
            made = copy.append(node.op, operands, node.attrs, [(value.shape, value.dtype) for value in node.outputs])
        seen.update(zip(node.outputs, made.outputs, strict=True))
    for name, value in program.outputs.items():
        copy.output(name, seen[value])
    return copy
