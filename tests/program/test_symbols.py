"""Dimensions against the arithmetic that they stand for."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.program.symbols import Dim, Sum, constant, product

SMALL = st.integers(0, 50)


@given(SMALL, SMALL, SMALL, st.integers(1, 9), st.integers(1, 9))
def test_a_dimension_is_the_ceiling_of_an_affine_expression(x: int, scale: int, offset: int, c: int, d: int) -> None:
    value = scale * x + offset
    dim = Dim("X", scale, offset, c)
    assert dim.at({"X": x}) == ceil(value / c)
    assert dim.ceil_div(d).at({"X": x}) == ceil(ceil(value / c) / d)
    assert (dim + 3).at({"X": x}) == ceil(value / c) + 3
    assert (Dim("X", scale, offset) * d).at({"X": x}) == value * d


@given(SMALL, SMALL, st.integers(1, 9))
def test_constants_compute_at_once(a: int, b: int, c: int) -> None:
    assert (constant(a) * b).constant == a * b
    assert (constant(a) + b).constant == a + b
    assert constant(a).ceil_div(c).constant == ceil(a / c)


def test_a_product_has_one_symbol_at_most() -> None:
    assert product((constant(3), Dim("T"), constant(4))).at({"T": 5}) == 60
    with pytest.raises(ValueError, match="not affine"):
        product((Dim("T"), Dim("S")))
    with pytest.raises(ValueError, match="not affine"):
        Dim("T", 1, 0, 2) * 2


def test_sums_add_and_print() -> None:
    both = Sum((Dim("T", 2),)) + Sum((constant(7), Dim("S", 1, -1, 4)))
    assert both.at({"T": 10, "S": 9}) == 20 + 7 + 2
    assert str(both) == "2T + 7 + ceil(S-1/4)"
