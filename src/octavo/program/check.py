"""A Program is well formed: run after tracing and after every pass of the lowering.

It knows names, shapes and order; what an op means is the op's own matter. A failure is our mistake, not the user's.
"""

from __future__ import annotations

from octavo.program.graph import DTYPES, Node, Program, Value


class MalformedProgram(AssertionError):
    """A Program that a pass or a model built wrongly; names the Program and the node."""


def check(program: Program) -> None:
    """Every operand exists before its use, belongs to the Program and is produced once. Raises MalformedProgram."""
    known: set[Value] = {*program.inputs.values(), *program.weights.values(), *program.table_values.values()}
    regions: list[str] = []
    for node in program.nodes:
        for value in node.operands:
            if value not in known:
                raise _malformed(program, node, f"{value!r} is used before it is made or belongs to another Program")
        for value in node.outputs:
            if value in known:
                raise _malformed(program, node, f"{value!r} is made twice")
            if value.producer is not node:
                raise _malformed(program, node, f"{value!r} names another producer")
            if value.dtype not in DTYPES:
                raise _malformed(program, node, f"unknown dtype {value.dtype}")
            known.add(value)
        if not node.region:
            raise _malformed(program, node, "has no region")
        if node.region in regions and regions[-1] != node.region:
            raise _malformed(program, node, f"region {node.region} was left before")
        if not regions or regions[-1] != node.region:
            regions.append(node.region)
        group = node.attrs.get("group")
        if group is not None and not 0 <= group < len(program.states):
            raise _malformed(program, node, f"no state group {group}")
    for name, value in program.outputs.items():
        if value not in known:
            raise MalformedProgram(f"{program.name}: output {name} is not made")


def _malformed(program: Program, node: Node, what: str) -> MalformedProgram:
    return MalformedProgram(f"{program.name}: {node!r}: {what}")
