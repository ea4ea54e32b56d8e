"""A model's calls -> Programs: the model is run once on Values, and its ops leave nodes.

It knows that a model has functions that take a Program; it does not know which models there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from octavo.program.check import check
from octavo.program.graph import Program, StateGroup, Table


def trace(functions: Mapping[str, Callable[[Program], None]]) -> dict[str, Program]:
    """Name -> traced and checked Program. Each function makes its inputs, calls layers and declares its outputs."""
    programs = {}
    for name, function in functions.items():
        program = Program(name)
        function(program)
        check(program)
        programs[name] = program
    return programs


def weights_of(programs: Mapping[str, Program]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight that the Programs read. Raises ValueError where two Programs differ."""
    shapes: dict[str, tuple[int, ...]] = {}
    for program in programs.values():
        for name, value in program.weights.items():
            shape = tuple(each.at({}) for each in value.shape)
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"weight {name} is {shapes[name]} and {shape}")
    return shapes


def tables_of(programs: Mapping[str, Program]) -> dict[str, Table]:
    """Name -> table, over all Programs."""
    return {name: table for program in programs.values() for name, table in program.tables.items()}


def states_of(programs: Mapping[str, Program]) -> tuple[StateGroup, ...]:
    """The state groups; only one Program of a decoder has any. Raises ValueError where two have."""
    owners = [program for program in programs.values() if program.states]
    if len(owners) > 1:
        raise ValueError(f"{owners[0].name} and {owners[1].name} both own state groups")
    return tuple(owners[0].states) if owners else ()
