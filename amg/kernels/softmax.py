"""Scores, and the weights that softmax makes of them, for rows that lie in the cache; for compiled functions.

How matrices and rows are given stands in `simd`. The greatest score and the sum of the weights are results: a row is
often one piece of many, and those of the pieces before it are known by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from amg.kernels.simd import LANES, MATRIX, ROW, VECTOR, WORDS, Arguments, Code, routine

LOG2E = 1.4426950408889634
LN2_SHORT = 0.693359375  # so few bits that its product with a whole number is exact
LN2_REST = 0.00030613186637114595  # what is missing, in powers of 2
POWER_OF_2 = (  # 2**x for |x| <= 1/2, fitted for the least largest relative error
    0.00015345811244680635,
    0.0013399931213394526,
    0.00961848895994292,
    0.055503287769833994,
    0.24022646890607866,
    0.693147205737257,
    1.0,
)


def exp(code: Code, x: Any) -> Any:
    """e**x for x <= 0, relative error 1e-7; below -87, where it would be no normal number, as at -87."""
    b = code.builder
    x = code.at_least(x, -87.0)
    # Adding 1.5 * 2**23 leaves a float32 without a fraction.
    whole = b.fsub(code.fma(x, code.constant(LOG2E), code.constant(2.0**23 * 1.5)), code.constant(2.0**23 * 1.5))
    rest = code.fma(whole, code.constant(-LN2_SHORT), x)
    fraction = code.fma(rest, code.constant(LOG2E), b.fmul(whole, code.constant(LN2_REST)))
    exponent = b.add(b.fptosi(whole, WORDS), ir.Constant(WORDS, [127] * LANES))
    power = b.bitcast(b.shl(exponent, ir.Constant(WORDS, [23] * LANES)), VECTOR)
    return b.fmul(code.polynomial(fraction, POWER_OF_2), power)


@intrinsic
def shares_of_tokens(typing_context, scores, start, pitch, tokens, out, out_start, out_pitch, columns):  # type: ignore[no-untyped-def]
    """OUT = softmax over the rows of (tokens, columns) scores, the last row left out; SCORES are overwritten."""
    return types.none(scores, *MATRIX, types.intp, out, *MATRIX, types.intp), routine(_shares_of_tokens)


def _shares_of_tokens(code: Code, given: Arguments) -> None:
    scores, tokens, out, columns = given.matrix(), given.value(), given.matrix(), given.value()
    b, width = code.builder, 2
    tops, sums = code.places(width), code.places(width)
    with code.steps(columns, LANES * width) as (column, _):
        code.clear(sums)
        for top, place in zip(tops, code.line(scores, code.number(0), column, width), strict=True):
            b.store(code.load(place), top)
        with code.steps(tokens, 1) as (token, _):
            for top, place in zip(tops, code.line(scores, token, column, width), strict=True):
                b.store(code.greater(code.load(place), b.load(top)), top)
        with code.steps(tokens, 1) as (token, _):
            for j, place in enumerate(code.line(scores, token, column, width)):
                value = exp(code, b.fsub(code.load(place), b.load(tops[j])))
                code.store(value, place)
                code.add_to(sums[j], value)
        inverse = [b.fdiv(code.constant(1.0), b.load(place)) for place in sums]
        with code.steps(b.sub(tokens, code.number(1)), 1) as (token, _):
            ins, outs = code.line(scores, token, column, width), code.line(out, token, column, width)
            for j in range(width):
                code.store(b.fmul(code.load(ins[j]), inverse[j]), outs[j])


@intrinsic
def combine(typing_context, a, a_start, b, b_start, c, c_start, scale, scale_start, columns):  # type: ignore[no-untyped-def]
    """A = (A + B) * scale + C for one row; returns the greatest."""
    return types.float32(a, *ROW, b, *ROW, c, *ROW, scale, *ROW, types.intp), routine(_combine)


def _combine(code: Code, given: Arguments) -> Any:
    own, other, last, scales = (given.row() for _ in range(4))

    def value(column: Any) -> Any:
        here, there, final, scale = (code.load(code.at(row, column)) for row in (own, other, last, scales))
        return code.fma(code.builder.fadd(here, there), scale, final)

    return _greatest_of(code, own, value, given.value())


@intrinsic
def combine_twice(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, b, b_start, c, c_start, d, d_start, scale1, scale1_start, scale2, scale2_start, columns
):
    """A = (A * scale1 + B + C) * scale2 + D for one row; returns the greatest."""
    rows = (part for array in (a, b, c, d, scale1, scale2) for part in (array, *ROW))
    return types.float32(*rows, types.intp), routine(_combine_twice)


def _combine_twice(code: Code, given: Arguments) -> Any:
    rows = [given.row() for _ in range(6)]

    def value(column: Any) -> Any:
        own, second, third, last, scale1, scale2 = (code.load(code.at(row, column)) for row in rows)
        return code.fma(code.builder.fadd(code.fma(own, scale1, second), third), scale2, last)

    return _greatest_of(code, rows[0], value, given.value())


def _greatest_of(code: Code, own: Any, value: Callable[[Any], Any], columns: Any) -> Any:
    """Puts `value` of each column into the row `own`."""
    (most,) = code.places(1)
    code.builder.store(code.constant(float("-inf")), most)
    with code.steps(columns, LANES) as (column, _):
        here = value(column)
        code.store(here, code.at(own, column))
        code.builder.store(code.greater(here, code.builder.load(most)), most)
    return code.most(code.builder.load(most))


@intrinsic
def add_distances(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, scale, far, far_start, near, near_start, groups, columns
):
    """A = A * scale + far[group] + near for one row of groups of columns; returns the greatest."""
    rows = (far, *ROW, near, *ROW)
    return types.float32(a, *ROW, types.float32, *rows, types.intp, types.intp), routine(_add_distances)


def _add_distances(code: Code, given: Arguments) -> Any:
    own, scale, far, near = given.row(), given.value(), given.row(), given.row()
    groups, columns = given.value(), given.value()
    b = code.builder
    (most,) = code.places(1)
    b.store(code.constant(float("-inf")), most)
    with code.steps(groups, 1) as (group, _):
        shift, start = code.spread(code.at(far, group)), code.at(own, b.mul(group, columns))
        with code.steps(columns, LANES) as (column, _):
            place = code.at(start, column)
            value = code.fma(code.load(place), code.all_lanes(scale), code.load(code.at(near, column)))
            value = b.fadd(value, shift)
            code.store(value, place)
            b.store(code.greater(value, b.load(most)), most)
    return code.most(b.load(most))


@intrinsic
def exponentials(typing_context, a, a_start, top, columns):  # type: ignore[no-untyped-def]
    """A = e**(A - top) for one row; returns the sum."""
    return types.float32(a, *ROW, types.float32, types.intp), routine(_exponentials)


def _exponentials(code: Code, given: Arguments) -> Any:
    own, top, columns = given.row(), given.value(), given.value()

    def use(value: Any, column: Any) -> None:
        code.store(value, code.at(own, column))

    return _sum_of_exponentials(code, own, top, columns, use)


@intrinsic
def weigh(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, top, scale1, scale1_start, scale2, scale2_start, out, out_start, columns
):
    """OUT = e**(A - top) * scale1, A = OUT * scale2, for one row; returns the sum of e**(A - top)."""
    rows = (scale1, *ROW, scale2, *ROW, out, *ROW)
    return types.float32(a, *ROW, types.float32, *rows, types.intp), routine(_weigh)


def _weigh(code: Code, given: Arguments) -> Any:
    own, top, scales1, scales2, out = given.row(), given.value(), given.row(), given.row(), given.row()

    def use(value: Any, column: Any) -> None:
        value = code.builder.fmul(value, code.load(code.at(scales1, column)))
        code.store(value, code.at(out, column))
        code.store(code.builder.fmul(value, code.load(code.at(scales2, column))), code.at(own, column))

    return _sum_of_exponentials(code, own, top, given.value(), use)


def _sum_of_exponentials(code: Code, own: Any, top: Any, columns: Any, use: Callable[[Any, Any], None]) -> Any:
    """Of e**(own - top); `use` is given each vector of them and its column."""
    b = code.builder
    (total,) = code.places(1)
    code.clear([total])
    with code.steps(columns, LANES) as (column, _):
        value = exp(code, b.fsub(code.load(code.at(own, column)), code.all_lanes(top)))
        code.add_to(total, value)
        use(value, column)
    return code.total(b.load(total))
