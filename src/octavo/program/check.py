"""A Program is well formed: run after tracing and after every pass of the lowering.

It knows names, shapes and order; what an op means is the op's own matter. A failure is our mistake, not the user's.
"""

from __future__ import annotations

from octavo.program.graph import DTYPES, Program, Value


class MalformedProgram(AssertionError):
    """A Program that a pass or a model built wrongly; names the Program and the node."""


def check(program: Program) -> None:
    """Every operand exists before its use, belongs to the Program and is produced once. Raises MalformedProgram."""
    known: set[Value] = {*program.inputs.values(), *program.weights.values(), *program.table_values.values()}
    regions: list[str] = []
    for node in program.nodes:
        where = f"{program.name}: {node!r}"
        for value in node.operands:
            if value not in known:
                raise MalformedProgram(f"{where}: {value!r} is used before it is made or belongs to another Program")
        for value in node.outputs:
            if value in known:
                raise MalformedProgram(f"{where}: {value!r} is made twice")
            if value.producer is not node:
                raise MalformedProgram(f"{where}: {value!r} names another producer")
            if value.dtype not in DTYPES:
                raise MalformedProgram(f"{where}: unknown dtype {value.dtype}")
            known.add(value)
        if not node.region:
            raise MalformedProgram(f"{where}: has no region")
        if node.region in regions and regions[-1] != node.region:
            raise MalformedProgram(f"{where}: region {node.region} was left before")
        if not regions or regions[-1] != node.region:
            regions.append(node.region)
        group = node.attrs.get("group")
        if group is not None and not 0 <= group < len(program.states):
            raise MalformedProgram(f"{where}: no state group {group}")
    for name, value in program.outputs.items():
        if value not in known:
            raise MalformedProgram(f"{program.name}: output {name} is not made")
