"""Matrix products of small float32 tiles for Numba functions, as vector code that is written out.

A library's matrix product is fast on large matrices; the mask decoder has thousands of small ones between steps on
single values, and each call would read and write memory that could stay in the cache. These are called from inside a
compiled function, on pieces of arrays: `name_start` is an offset in elements into the array's memory, `name_pitch` the
distance of two rows. A row's end is never crossed, so arrays need no room behind them.

The width of a vector is that of the machine that compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4
"""Numbers of float32 in a vector."""

_REGISTERS = 16 if LANES == 8 else 32
ROWS = 4
"""The rows of a left matrix come in multiples of this."""
_VECTORS = 4 if _REGISTERS == 32 else 2
COLUMNS = LANES * _VECTORS
"""The columns of a right matrix come in multiples of this."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INDEX = ir.IntType(64)


# The share below x, less a half, is x p(x^2) / q(x^2) up to this x, fitted for the least largest error of x times it;
# beyond, 3e-8 is missing. The highest power first.
SHARE_END = 5.4
SHARE_ABOVE = (
    2.2777040467736734e-08,
    6.490384614991774e-06,
    0.00017626471986495175,
    0.004722390531472571,
    0.03449192773700059,
    0.3989420544420016,
)
SHARE_BELOW = (
    1.2086651086613305e-06,
    7.650983460820825e-05,
    0.0019254828732807915,
    0.029027814096531976,
    0.25312272454755075,
    1.0,
)

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


class _Code:
    """The instructions of one compiled routine, with what is said again and again."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def data(self, array_type: types.Array, array: Any, start: Any) -> Any:
        """The address of an array's element number `start`."""
        held = self.context.make_array(array_type)(self.context, self.builder, value=array)
        return self.at(held.data, start)

    def at(self, pointer: Any, index: Any) -> Any:
        return self.builder.gep(pointer, [index])

    def number(self, value: int) -> Any:
        return ir.Constant(_INDEX, value)

    def element(self, base: Any, row: Any, pitch: Any, column: Any) -> Any:
        """The address of an element of a matrix."""
        b = self.builder
        return self.at(base, b.add(b.mul(row, pitch), column))

    def load(self, pointer: Any) -> Any:
        return self.builder.load(self._as_vector(pointer), align=4)

    def spread(self, pointer: Any) -> Any:
        """A number of an array in all lanes."""
        return self.all_lanes(self.builder.load(pointer))

    def all_lanes(self, value: Any) -> Any:
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self._as_vector(pointer), align=4)

    def _as_vector(self, pointer: Any) -> Any:
        return self.builder.bitcast(pointer, _VECTOR.as_pointer())

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.v{LANES}f32")
        return self.builder.call(function, [a, b, c])

    def constant(self, value: float) -> Any:
        """One known number in all lanes."""
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, float(np.float32(value)))] * LANES)

    def polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        """The highest power's coefficient first."""
        value = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def clamp(self, x: Any, end: float) -> Any:
        b = self.builder
        for sign, bound in (("<", -end), (">", end)):
            x = b.select(b.fcmp_ordered(sign, x, self.constant(bound)), self.constant(bound), x)
        return x

    def gelu(self, x: Any) -> Any:
        """x times the normal distribution's share below x; absolute error 1e-6 at 9, 1e-7 near 0, as torch's."""
        b = self.builder
        z = self.clamp(x, SHARE_END)
        u = b.fmul(z, z)
        quotient = b.fdiv(b.fmul(z, self.polynomial(u, SHARE_ABOVE)), self.polynomial(u, SHARE_BELOW))
        return b.fmul(x, b.fadd(self.constant(0.5), quotient))

    def exp(self, x: Any) -> Any:
        """e**x for x <= 0, relative error 1e-7; below -87, where it would be no normal number, as at -87."""
        b = self.builder
        least = self.constant(-87.0)
        x = b.select(b.fcmp_ordered("<", x, least), least, x)
        # Adding 1.5 * 2**23 leaves a float32 without a fraction.
        whole = b.fsub(self.fma(x, self.constant(LOG2E), self.constant(2.0**23 * 1.5)), self.constant(2.0**23 * 1.5))
        rest = self.fma(whole, self.constant(-LN2_SHORT), x)
        fraction = self.fma(rest, self.constant(LOG2E), b.fmul(whole, self.constant(LN2_REST)))
        words = ir.VectorType(ir.IntType(32), LANES)
        exponent = b.add(b.fptosi(whole, words), ir.Constant(words, [127] * LANES))
        power = b.bitcast(b.shl(exponent, ir.Constant(words, [23] * LANES)), _VECTOR)
        return b.fmul(self.polynomial(fraction, POWER_OF_2), power)

    def greater(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def root(self, x: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.sqrt.v{LANES}f32")
        return self.builder.call(function, [x])

    def total(self, vector: Any) -> Any:
        """The sum of all lanes, in pairs."""
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return self.builder.call(function, [ir.Constant(_FLOAT, 0.0), vector], fastmath=("reassoc",))

    def most(self, vector: Any) -> Any:
        """The greatest lane."""
        kind = ir.FunctionType(_FLOAT, [_VECTOR])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.fmax.v{LANES}f32")
        return self.builder.call(function, [vector], fastmath=("nnan",))

    def sums(self, n: int) -> list[Any]:
        """Places for n vectors; the compiler keeps them in registers."""
        return [cgutils.alloca_once(self.builder, _VECTOR) for _ in range(n)]

    def clear(self, places: Sequence[Any]) -> None:
        for place in places:
            self.builder.store(ir.Constant(_VECTOR, None), place)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.add(a, b)

    def line(self, base: Any, row: Any, pitch: Any, column: Any, n: int = _VECTORS) -> list[Any]:
        """The addresses of `n` vectors that lie side by side."""
        start = self.element(base, row, pitch, column)
        return [self.at(start, self.number(LANES * j)) for j in range(n)]

    def steps(self, end: Any, step: int, first: Any = None) -> Any:
        """A loop over 0 (or `first`), then a step further, below `end`."""
        first = self.number(0) if first is None else first
        return cgutils.for_range_slice(self.builder, first, end, self.number(step), intp=_INDEX)


_MATRIX = (types.intp, types.intp)
_SHAPE = (types.intp, types.intp, types.intp)


def _signature(a: Any, b: Any, c: Any) -> Any:
    assert all(array.layout == "C" for array in (a, b, c)), f"wanted contiguous arrays: {a}, {b}, {c}"
    return types.none(a, *_MATRIX, b, *_MATRIX, c, *_MATRIX, *_SHAPE)


@intrinsic
def product(typing_context, a, a_start, a_pitch, b, b_start, b_pitch, c, c_start, c_pitch, rows, columns, inner):  # type: ignore[no-untyped-def]
    """C = A B of shapes (rows, inner) and (inner, columns): multiples of ROWS and of LANES, fastest of COLUMNS."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _product(_Code(context, builder), signature.args, values)
        return context.get_dummy_value()

    return _signature(a, b, c), code


def _product(code: _Code, kinds: Any, values: Any) -> None:
    b = code.builder
    columns = values[10]
    whole = b.sub(columns, b.urem(columns, code.number(COLUMNS)))
    _columns_of_product(code, kinds, values, code.number(0), whole, _VECTORS)
    _columns_of_product(code, kinds, values, whole, columns, 1)


def _columns_of_product(code: _Code, kinds: Any, values: Any, first: Any, end: Any, vectors: int) -> None:
    """The columns from `first` to `end`, so many vectors of them at once."""
    b = code.builder
    a_pitch, b_pitch, c_pitch, rows, inner = values[2], values[5], values[8], values[9], values[11]
    left, right, out = (code.data(kinds[i], values[i], values[i + 1]) for i in (0, 3, 6))
    sums = code.sums(ROWS * vectors)
    with code.steps(end, LANES * vectors, first) as (column, _), code.steps(rows, ROWS) as (row, _):
        code.clear(sums)
        left_rows = [code.element(left, b.add(row, code.number(i)), a_pitch, code.number(0)) for i in range(ROWS)]
        with code.steps(inner, 1) as (k, _):
            values_k = [code.load(place) for place in code.line(right, k, b_pitch, column, vectors)]
            for i in range(ROWS):
                factor = code.spread(code.at(left_rows[i], k))
                for j in range(vectors):
                    place = sums[i * vectors + j]
                    b.store(code.fma(factor, values_k[j], b.load(place)), place)
        for i in range(ROWS):
            for j, place in enumerate(code.line(out, b.add(row, code.number(i)), c_pitch, column, vectors)):
                code.store(b.load(sums[i * vectors + j]), place)


@intrinsic
def add_products_of_rows(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, a_pitch, b, b_start, b_pitch, c, c_start, c_pitch, rows, columns, inner
):
    """C += A B^T of shapes (rows, inner) and (columns, inner): rows and columns multiples of ROWS, inner of LANES."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _add_products_of_rows(_Code(context, builder), signature.args, values)
        return context.get_dummy_value()

    return _signature(a, b, c), code


def _add_products_of_rows(code: _Code, kinds: Any, values: Any) -> None:
    b = code.builder
    in_eights = b.icmp_unsigned("==", b.urem(values[9], code.number(2 * ROWS)), code.number(0))
    with b.if_else(in_eights) as (eights, fours):
        with eights:
            _tiles_of_row_products(code, kinds, values, 2 * ROWS, _VECTORS // 2)
        with fours:
            _tiles_of_row_products(code, kinds, values, ROWS, _VECTORS)


def _tiles_of_row_products(code: _Code, kinds: Any, values: Any, height: int, width: int) -> None:
    """`height` rows of A stay in the first cache while all rows of B go by, `width` at a time."""
    b = code.builder
    a_pitch, b_pitch, c_pitch, (rows, columns, inner) = values[2], values[5], values[8], values[9:]
    left, right, out = (code.data(kinds[i], values[i], values[i + 1]) for i in (0, 3, 6))
    sums = code.sums(height * width)
    zero = code.number(0)
    with code.steps(rows, height) as (row, _), code.steps(columns, width) as (column, _):
        code.clear(sums)
        left_rows = [code.element(left, b.add(row, code.number(i)), a_pitch, zero) for i in range(height)]
        right_rows = [code.element(right, b.add(column, code.number(j)), b_pitch, zero) for j in range(width)]
        with code.steps(inner, LANES) as (k, _):
            vectors = [code.load(code.at(line, k)) for line in right_rows]
            for i in range(height):
                factor = code.load(code.at(left_rows[i], k))
                for j in range(width):
                    place = sums[i * width + j]
                    b.store(code.fma(factor, vectors[j], b.load(place)), place)
        for i in range(height):
            line = code.element(out, b.add(row, code.number(i)), c_pitch, column)
            for j in range(width):
                at = code.at(line, code.number(j))
                b.store(b.fadd(b.load(at), code.total(b.load(sums[i * width + j]))), at)


_ROW = (types.intp,)


@intrinsic
def normalise_and_gelu(  # type: ignore[no-untyped-def]
    typing_context, y, y_start, y_pitch, base, base_start, base_pitch, scale, scale_start, deviation, deviation_start,
    weight, bias, eps, channels, columns,
):  # fmt: skip
    """Y + scale * base, then layer norm over the rows, then GELU, in place: (channels, columns), COLUMNS at a time.

    `eps` is multiplied with a column's `deviation` squared: the rows are those of the norm's input times it.
    """

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _normalise_and_gelu(_Code(context, builder), signature.args, values)
        return context.get_dummy_value()

    matrices = (y, *_MATRIX, base, *_MATRIX, scale, *_ROW, deviation, *_ROW)
    return types.none(*matrices, weight, bias, types.float32, types.intp, types.intp), code


def _normalise_and_gelu(code: _Code, kinds: Any, values: Any) -> None:
    b = code.builder
    y, base = (code.data(kinds[i], values[i], values[i + 1]) for i in (0, 3))
    scale, deviation = (code.data(kinds[i], values[i], values[i + 1]) for i in (6, 8))
    weight, bias = (code.data(kinds[i], values[i], code.number(0)) for i in (10, 11))
    y_pitch, base_pitch, (eps, channels, columns) = values[2], values[5], values[12:]
    share = b.fdiv(ir.Constant(_FLOAT, 1.0), b.sitofp(channels, _FLOAT))
    means, spreads = code.sums(_VECTORS), code.sums(_VECTORS)
    zero = code.number(0)
    with code.steps(columns, COLUMNS) as (column, _):
        code.clear([*means, *spreads])
        scales = [code.load(place) for place in code.line(scale, zero, zero, column)]
        with code.steps(channels, 1) as (channel, _):
            places, bases = code.line(y, channel, y_pitch, column), code.line(base, channel, base_pitch, column)
            for j in range(_VECTORS):
                value = code.fma(code.load(bases[j]), scales[j], code.load(places[j]))
                code.store(value, places[j])
                b.store(b.fadd(b.load(means[j]), value), means[j])
        for j in range(_VECTORS):
            b.store(b.fmul(b.load(means[j]), code.all_lanes(share)), means[j])
        with code.steps(channels, 1) as (channel, _):
            places = code.line(y, channel, y_pitch, column)
            for j in range(_VECTORS):
                value = b.fsub(code.load(places[j]), b.load(means[j]))
                b.store(code.fma(value, value, b.load(spreads[j])), spreads[j])
        deviations = [code.load(place) for place in code.line(deviation, zero, zero, column)]
        for j in range(_VECTORS):
            least = b.fmul(b.fmul(deviations[j], deviations[j]), code.all_lanes(eps))
            variance = code.fma(b.load(spreads[j]), code.all_lanes(share), least)
            b.store(b.fdiv(code.constant(1.0), code.root(variance)), spreads[j])
        with code.steps(channels, 1) as (channel, _):
            places = code.line(y, channel, y_pitch, column)
            gain, shift = code.spread(code.at(weight, channel)), code.spread(code.at(bias, channel))
            for j in range(_VECTORS):
                value = b.fmul(b.fsub(code.load(places[j]), b.load(means[j])), b.load(spreads[j]))
                code.store(code.gelu(code.fma(value, gain, shift)), places[j])


def _gelu_and_dots(masks: int) -> Any:
    @intrinsic
    def gelu_and_dots(  # type: ignore[no-untyped-def]
        typing_context, z, z_start, z_pitch, bias, weights, weights_start, weights_pitch, out, out_start, out_pitch,
        channels, columns,
    ):  # fmt: skip
        """OUT = weights @ GELU(Z + bias): (masks, columns) of (masks, channels) and (channels, columns)."""

        def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
            _gelu_and_dots_code(_Code(context, builder), signature.args, values, masks)
            return context.get_dummy_value()

        return types.none(z, *_MATRIX, bias, weights, *_MATRIX, out, *_MATRIX, types.intp, types.intp), code

    return gelu_and_dots


gelu_and_dot = _gelu_and_dots(1)
gelu_and_3_dots = _gelu_and_dots(3)


def _gelu_and_dots_code(code: _Code, kinds: Any, values: Any, masks: int) -> None:
    b = code.builder
    z, weights, out = (code.data(kinds[i], values[i], values[i + 1]) for i in (0, 4, 7))
    bias = code.data(kinds[3], values[3], code.number(0))
    z_pitch, weights_pitch, out_pitch, (channels, columns) = values[2], values[6], values[9], values[10:]
    width = 2
    sums = code.sums(masks * width)
    with code.steps(columns, LANES * width) as (column, _):
        code.clear(sums)
        with code.steps(channels, 1) as (channel, _):
            shift = code.spread(code.at(bias, channel))
            places = code.line(z, channel, z_pitch, column, width)
            factors = [code.spread(code.element(weights, code.number(m), weights_pitch, channel)) for m in range(masks)]
            for j in range(width):
                value = code.gelu(b.fadd(code.load(places[j]), shift))
                for m in range(masks):
                    place = sums[m * width + j]
                    b.store(code.fma(factors[m], value, b.load(place)), place)
        for m in range(masks):
            places = code.line(out, code.number(m), out_pitch, column, width)
            for j in range(width):
                code.store(b.load(sums[m * width + j]), places[j])


@intrinsic
def shares_of_tokens(typing_context, scores, start, pitch, tokens, out, out_start, out_pitch, columns):  # type: ignore[no-untyped-def]
    """OUT = softmax over the rows of (tokens, columns) scores, the last row left out; SCORES are overwritten."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _shares_of_tokens(_Code(context, builder), signature.args, values)
        return context.get_dummy_value()

    return types.none(scores, *_MATRIX, types.intp, out, *_MATRIX, types.intp), code


def _shares_of_tokens(code: _Code, kinds: Any, values: Any) -> None:
    b, width = code.builder, 2
    scores, out = (code.data(kinds[i], values[i], values[i + 1]) for i in (0, 4))
    pitch, tokens, out_pitch, columns = values[2], values[3], values[6], values[7]
    tops, sums = code.sums(width), code.sums(width)
    with code.steps(columns, LANES * width) as (column, _):
        code.clear(sums)
        for top, place in zip(tops, code.line(scores, code.number(0), pitch, column, width), strict=True):
            b.store(code.load(place), top)
        with code.steps(tokens, 1) as (token, _):
            for top, place in zip(tops, code.line(scores, token, pitch, column, width), strict=True):
                b.store(code.greater(code.load(place), b.load(top)), top)
        with code.steps(tokens, 1) as (token, _):
            for j, place in enumerate(code.line(scores, token, pitch, column, width)):
                value = code.exp(b.fsub(code.load(place), b.load(tops[j])))
                code.store(value, place)
                b.store(b.fadd(b.load(sums[j]), value), sums[j])
        inverse = [b.fdiv(code.constant(1.0), b.load(place)) for place in sums]
        with code.steps(b.sub(tokens, code.number(1)), 1) as (token, _):
            ins, outs = code.line(scores, token, pitch, column, width), code.line(out, token, out_pitch, column, width)
            for j in range(width):
                code.store(b.fmul(code.load(ins[j]), inverse[j]), outs[j])


@intrinsic
def combine(typing_context, a, a_start, b, b_start, c, c_start, scale, scale_start, columns):  # type: ignore[no-untyped-def]
    """A = (A + B) * scale + C for one row; returns the greatest."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        it = _Code(context, builder)
        own, other, last, scales = (it.data(signature.args[i], values[i], values[i + 1]) for i in (0, 2, 4, 6))

        def value(column: Any) -> Any:
            both = builder.fadd(it.load(it.at(own, column)), it.load(it.at(other, column)))
            return it.fma(both, it.load(it.at(scales, column)), it.load(it.at(last, column)))

        return _combine(it, own, value, values[8])

    return types.float32(a, *_ROW, b, *_ROW, c, *_ROW, scale, *_ROW, types.intp), code


@intrinsic
def combine_twice(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, b, b_start, c, c_start, d, d_start, scale1, scale1_start, scale2, scale2_start, columns
):
    """A = (A * scale1 + B + C) * scale2 + D for one row; returns the greatest."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        it = _Code(context, builder)
        own, second, third, last, scales1, scales2 = (
            it.data(signature.args[i], values[i], values[i + 1]) for i in range(0, 12, 2)
        )

        def value(column: Any) -> Any:
            both = it.fma(it.load(it.at(own, column)), it.load(it.at(scales1, column)), it.load(it.at(second, column)))
            all_three = builder.fadd(both, it.load(it.at(third, column)))
            return it.fma(all_three, it.load(it.at(scales2, column)), it.load(it.at(last, column)))

        return _combine(it, own, value, values[12])

    rows = (part for array in (a, b, c, d, scale1, scale2) for part in (array, *_ROW))
    return types.float32(*rows, types.intp), code


def _combine(code: _Code, own: Any, value: Callable[[Any], Any], columns: Any) -> Any:
    b = code.builder
    (most,) = code.sums(1)
    b.store(code.constant(float("-inf")), most)
    with code.steps(columns, LANES) as (column, _):
        here = value(column)
        code.store(here, code.at(own, column))
        b.store(code.greater(here, b.load(most)), most)
    return code.most(b.load(most))


@intrinsic
def weigh(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, top, scale1, scale1_start, scale2, scale2_start, out, out_start, columns
):
    """OUT = e**(A - top) * scale1, A = OUT * scale2, for one row; returns the sum of e**(A - top)."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        it = _Code(context, builder)
        own, scales1, scales2, out = (it.data(signature.args[i], values[i], values[i + 1]) for i in (0, 3, 5, 7))
        (total,) = it.sums(1)
        it.clear([total])
        with it.steps(values[9], LANES) as (column, _):
            value = it.exp(builder.fsub(it.load(it.at(own, column)), it.all_lanes(values[2])))
            builder.store(builder.fadd(builder.load(total), value), total)
            value = builder.fmul(value, it.load(it.at(scales1, column)))
            it.store(value, it.at(out, column))
            it.store(builder.fmul(value, it.load(it.at(scales2, column))), it.at(own, column))
        return it.total(builder.load(total))

    rows = (scale1, *_ROW, scale2, *_ROW, out, *_ROW)
    return types.float32(a, *_ROW, types.float32, *rows, types.intp), code


@intrinsic
def add_distances(  # type: ignore[no-untyped-def]
    typing_context, a, a_start, scale, far, far_start, near, near_start, groups, columns
):
    """A = A * scale + far[group] + near for one row of groups of columns; returns the greatest."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        it = _Code(context, builder)
        own, far, near = (it.data(signature.args[i], values[i], values[j]) for i, j in ((0, 1), (3, 4), (5, 6)))
        groups, columns = values[7:]
        (most,) = it.sums(1)
        builder.store(it.constant(float("-inf")), most)
        with it.steps(groups, 1) as (group, _):
            shift = it.spread(it.at(far, group))
            with it.steps(columns, LANES) as (column, _):
                place = it.element(own, group, columns, column)
                value = it.fma(it.load(place), it.all_lanes(values[2]), it.load(it.at(near, column)))
                value = builder.fadd(value, shift)
                it.store(value, place)
                builder.store(it.greater(value, builder.load(most)), most)
        return it.most(builder.load(most))

    rows = (far, *_ROW, near, *_ROW)
    return types.float32(a, *_ROW, types.float32, *rows, types.intp, types.intp), code


@intrinsic
def exponentials(typing_context, a, a_start, top, columns):  # type: ignore[no-untyped-def]
    """A = e**(A - top) for one row; returns the sum."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        it = _Code(context, builder)
        own = it.data(signature.args[0], values[0], values[1])
        (total,) = it.sums(1)
        it.clear([total])
        with it.steps(values[3], LANES) as (column, _):
            value = it.exp(builder.fsub(it.load(it.at(own, column)), it.all_lanes(values[2])))
            builder.store(builder.fadd(builder.load(total), value), total)
            it.store(value, it.at(own, column))
        return it.total(builder.load(total))

    return types.float32(a, *_ROW, types.float32, types.intp), code
