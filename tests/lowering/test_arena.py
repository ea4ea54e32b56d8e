"""The arena: whatever the buffers, two that live at the same time do not share a byte."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.lowering.arena import ALIGN, plan_arena
from octavo.lowering.lowered import ArenaPlan, Buffer
from octavo.program.symbols import T, constant


@st.composite
def lives(draw: st.DrawFn) -> list[Buffer]:
    buffers: list[Buffer] = []
    for i in range(draw(st.integers(0, 25))):
        first = draw(st.integers(0, 12))
        last = first + draw(st.integers(0, 6))
        rows = T if draw(st.booleans()) else constant(draw(st.integers(0, 3)))
        inside = None
        ending = [buffer.name for buffer in buffers if buffer.last == first and buffer.rows == T]
        if rows == T and ending and draw(st.booleans()):
            inside = draw(st.sampled_from(ending))
        buffers.append(Buffer(f"b{i}", rows, draw(st.integers(0, 300)), 0, first, last, inside))
    return buffers


def root(plan: ArenaPlan, name: str) -> str:
    inside = plan.buffers[name].inside
    return name if inside is None else root(plan, inside)


@given(lives(), st.integers(0, 40))
def test_no_two_live_buffers_overlap(buffers: list[Buffer], rows: int) -> None:
    plan = plan_arena(buffers, {"T": rows})
    for name, buffer in plan.buffers.items():
        assert plan.offsets[name] % ALIGN == 0
        assert plan.sizes[name] >= buffer.rows.at({"T": rows}) * buffer.row_bytes
        assert plan.offsets[name] + plan.sizes[name] <= plan.nbytes
        if buffer.inside is not None:
            assert plan.offsets[name] == plan.offsets[buffer.inside]
    for a in plan.buffers.values():
        for b in plan.buffers.values():
            if root(plan, a.name) == root(plan, b.name) or a.first > b.last or b.first > a.last:
                continue
            apart = (
                plan.offsets[a.name] + plan.sizes[a.name] <= plan.offsets[b.name]
                or plan.offsets[b.name] + plan.sizes[b.name] <= plan.offsets[a.name]
            )
            assert apart, (a, b)


@given(lives())
def test_nothing_is_needed_for_no_rows(buffers: list[Buffer]) -> None:
    only_rows = [buffer for buffer in buffers if buffer.rows == T]
    assert plan_arena(only_rows, {"T": 0}).nbytes == 0


def test_a_place_is_used_again() -> None:
    plan = plan_arena([Buffer(f"b{i}", T, 64, 16, i, i + 1) for i in range(10)], {"T": 4})
    assert plan.nbytes == 2 * 4 * 64


def test_a_buffer_that_takes_over_a_place_keeps_it_to_its_own_end() -> None:
    buffers = [Buffer("x", T, 64, 16, 0, 2), Buffer("y", T, 64, 16, 2, 5, "x"), Buffer("z", T, 64, 16, 4, 6)]
    plan = plan_arena(buffers, {"T": 1})
    assert plan.offsets["y"] == plan.offsets["x"] != plan.offsets["z"]
