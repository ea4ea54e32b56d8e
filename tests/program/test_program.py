"""Programs: what tracing leaves, and what `check` refuses."""

from dataclasses import replace

import pytest

from octavo.models.llama import from_config
from octavo.ops.activation import ADD, add
from octavo.ops.norm import rms_norm
from octavo.ops.op import op_of
from octavo.program.check import MalformedProgram, check
from octavo.program.graph import Node, Program, Value
from octavo.program.show import show
from octavo.program.symbols import T, constant
from octavo.program.trace import states_of, tables_of, trace, weights_of
from tests import tiny


def small() -> Program:
    program = Program("p")
    x = program.input("x", (T, 8), "f32")
    with program.within("layer 0"):
        program.output("y", add(rms_norm(x, program.weight("w", (8,)), eps=1e-5), x))
    return program


def test_an_op_appends_a_node_where_its_values_belong() -> None:
    program = small()
    check(program)
    assert [node.op.name for node in program.nodes] == ["rms_norm", "add"]
    assert program.nodes[1].operands[1] is program.inputs["x"]
    assert {node.region for node in program.nodes} == {"layer 0"}
    assert "%1:f32[T, 8] = add(%0, x)" in show(program)


def test_check_refuses_a_value_of_another_program() -> None:
    program, other = small(), small()
    program.nodes[1].operands = (other.nodes[0].output, program.inputs["x"])
    with pytest.raises(MalformedProgram, match="belongs to another"):
        check(program)


def test_check_refuses_use_before_making_and_making_twice() -> None:
    program = small()
    program.nodes.reverse()
    with pytest.raises(MalformedProgram, match="before it is made"):
        check(program)
    program = small()
    program.nodes.append(program.nodes[1])
    with pytest.raises(MalformedProgram, match="made twice"):
        check(program)


def test_check_refuses_a_region_that_is_entered_again() -> None:
    program = small()
    for region in ("layer 1", "layer 0"):
        with program.within(region):
            add(program.inputs["x"], program.inputs["x"])
    with pytest.raises(MalformedProgram, match="was left before"):
        check(program)


def test_check_refuses_an_unmade_output_and_a_wrong_producer() -> None:
    program = small()
    program.output("z", Value(program, "z", (T,), "f32", "node"))
    with pytest.raises(MalformedProgram, match="output z"):
        check(program)
    program = small()
    program.nodes[0].output.producer = Node(ADD, (), {}, "layer 0")
    with pytest.raises(MalformedProgram, match="another producer"):
        check(program)


def test_one_weight_has_one_shape() -> None:
    program = small()
    with pytest.raises(ValueError, match="weight w"):
        program.weight("w", (9,))


def test_layers_of_one_kind_share_a_state_group() -> None:
    model = from_config(tiny.config("mistral", sliding_window=24), positions=64)
    full = from_config(tiny.config("mistral", sliding_window=None), positions=64)
    mixed = replace(model, blocks=(full.blocks[0], model.blocks[1]))
    groups = states_of(trace(mixed.functions))
    assert [(group.window, group.layers, group.name) for group in groups] == [(0, 1, "full"), (24, 1, "window24")]
    assert [(group.window, group.layers) for group in states_of(trace(model.functions))] == [(24, 2)]


def test_a_model_names_its_weights_and_tables_once() -> None:
    programs = trace(from_config(tiny.config(), positions=100).functions)
    shapes = {name: values.shape for name, values in tiny.weights(tiny.config()).items()}
    assert weights_of(programs) == shapes
    assert {name: table.shape for name, table in tables_of(programs).items()} == {
        "rope.cos": (100, 8),
        "rope.sin": (100, 8),
    }


def test_costs_follow_the_symbols() -> None:
    program = trace(from_config(tiny.config(), positions=64).functions)["body"]
    linear = next(node for node in program.nodes if node.op.name == "linear")
    op = op_of(linear)
    assert op.operations(linear).at({"T": 3}) == 2 * 3 * 64 * 64
    assert op.bytes(linear, {linear.operands[1].name: 1000}).at({"T": 3}) == 3 * 64 * 4 * 2 + 1000
    attention = next(node for node in program.nodes if node.op.name == "attention")
    assert op_of(attention).operations(attention).at({"visible_keys.0": 10}) == 10 * 4 * 64
    assert op_of(attention).bytes(attention, {}).at({"T": 3, "kv_seen.0": 500}) == 3 * 64 * 4 * 2 + 500
    written = next(node for node in program.nodes if node.op.name == "kv_write")
    assert op_of(written).bytes(written, {}).at({"T": 3, "kv_written.0": 400}) == 3 * 32 * 4 + 200
    assert op_of(attention).workspace(attention, {"T": 2, "L": 300}) == 64 * -(-(2 * 4 * 2 * 18 * 4) // 64)
    assert repr(op).startswith("linear (anchor, row): accumulate int32")
    assert constant(4).constant == 4
