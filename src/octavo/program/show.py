"""A Program as text, for people and for error messages."""

from __future__ import annotations

from octavo.program.graph import Program


def show(program: Program) -> str:
    """One line per input, node and output, regions as headings."""
    lines = [f"program {program.name}"]
    lines += [f"  state {group.index} {group.name}: {group}" for group in program.states]
    lines += [f"  input {value!r} from {value.source or 'caller'}" for value in program.inputs.values()]
    region = None
    for node in program.nodes:
        if node.region != region:
            region = node.region
            lines.append(f" {region}")
        lines.append(f"  {node!r}")
    lines += [f"  output {name} = {value!r}" for name, value in program.outputs.items()]
    return "\n".join(lines)
