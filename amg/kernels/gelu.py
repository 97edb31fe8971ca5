"""GELU of rows that lie in the cache, with what comes before and after it in the mask decoder; for compiled functions.

How matrices and rows are given stands in `simd`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from amg.kernels.simd import COLUMNS, FLOAT, LANES, MATRIX, ROW, VECTORS, Arguments, Code, Matrix, routine

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


def gelu(code: Code, x: Any) -> Any:
    """x times the normal distribution's share below x; absolute error 1e-6 at 9, 1e-7 near 0, as torch's."""
    b = code.builder
    z = code.at_most(code.at_least(x, -SHARE_END), SHARE_END)
    u = b.fmul(z, z)
    quotient = b.fdiv(b.fmul(z, code.polynomial(u, SHARE_ABOVE)), code.polynomial(u, SHARE_BELOW))
    return b.fmul(x, b.fadd(code.constant(0.5), quotient))


@intrinsic
def normalise_and_gelu(  # type: ignore[no-untyped-def]
    typing_context, y, y_start, y_pitch, base, base_start, base_pitch, scale, scale_start, deviation, deviation_start,
    weight, bias, eps, channels, columns,
):  # fmt: skip
    """Y + scale * base, then layer norm over the rows, then GELU, in place: (channels, columns), COLUMNS at a time.

    `eps` is multiplied with a column's `deviation` squared: the rows are those of the norm's input times it.
    """
    matrices = (y, *MATRIX, base, *MATRIX, scale, *ROW, deviation, *ROW)
    signature = types.none(*matrices, weight, bias, types.float32, types.intp, types.intp)
    return signature, routine(_normalise_and_gelu)


def _normalise_and_gelu(code: Code, given: Arguments) -> None:
    y, base, scale, deviation = given.matrix(), given.matrix(), given.row(), given.row()
    weight, bias, eps = given.whole(), given.whole(), given.value()
    channels, columns = given.value(), given.value()
    b = code.builder
    share = b.fdiv(ir.Constant(FLOAT, 1.0), b.sitofp(channels, FLOAT))
    means, spreads = code.places(VECTORS), code.places(VECTORS)
    with code.steps(columns, COLUMNS) as (column, _):
        code.clear([*means, *spreads])
        _add_base(code, y, base, code.at(scale, column), (channels, column), means)
        for mean in means:
            b.store(b.fmul(b.load(mean), code.all_lanes(share)), mean)
        with code.steps(channels, 1) as (channel, _):
            for j, place in enumerate(code.line(y, channel, column)):
                value = b.fsub(code.load(place), b.load(means[j]))
                code.add_product_to(spreads[j], value, value)
        deviations = [code.load(place) for place in code.neighbours(code.at(deviation, column))]
        for own, spread in zip(deviations, spreads, strict=True):
            least = b.fmul(b.fmul(own, own), code.all_lanes(eps))
            variance = code.fma(b.load(spread), code.all_lanes(share), least)
            b.store(b.fdiv(code.constant(1.0), code.root(variance)), spread)
        with code.steps(channels, 1) as (channel, _):
            gain, shift = code.spread(code.at(weight, channel)), code.spread(code.at(bias, channel))
            for j, place in enumerate(code.line(y, channel, column)):
                value = b.fmul(b.fsub(code.load(place), b.load(means[j])), b.load(spreads[j]))
                code.store(gelu(code, code.fma(value, gain, shift)), place)


def _add_base(code: Code, y: Matrix, base: Matrix, scale: Any, within: tuple[Any, Any], sums: list[Any]) -> None:
    """Y + scale * base of all channels in some columns, and the sums over the channels."""
    channels, column = within
    scales = [code.load(place) for place in code.neighbours(scale)]
    with code.steps(channels, 1) as (channel, _):
        places, bases = code.line(y, channel, column), code.line(base, channel, column)
        for j, place in enumerate(places):
            value = code.fma(code.load(bases[j]), scales[j], code.load(place))
            code.store(value, place)
            code.add_to(sums[j], value)


def _gelu_and_dots(masks: int) -> Any:
    def emit(code: Code, given: Arguments) -> None:
        _emit_gelu_and_dots(code, given, masks)

    @intrinsic
    def gelu_and_dots(  # type: ignore[no-untyped-def]
        typing_context, z, z_start, z_pitch, bias, weights, weights_start, weights_pitch, out, out_start, out_pitch,
        channels, columns,
    ):  # fmt: skip
        signature = types.none(z, *MATRIX, bias, weights, *MATRIX, out, *MATRIX, types.intp, types.intp)
        return signature, routine(emit)

    return gelu_and_dots


gelu_and_dot = _gelu_and_dots(1)
gelu_and_3_dots = _gelu_and_dots(3)
"""OUT = weights @ GELU(Z + bias): (masks, columns) of (masks, channels) and (channels, columns), for so many masks."""


def _emit_gelu_and_dots(code: Code, given: Arguments, masks: int) -> None:
    z, bias, weights, out = given.matrix(), given.whole(), given.matrix(), given.matrix()
    channels, columns = given.value(), given.value()
    b, width = code.builder, 2
    sums = code.places(masks * width)
    with code.steps(columns, LANES * width) as (column, _):
        code.clear(sums)
        with code.steps(channels, 1) as (channel, _):
            shift = code.spread(code.at(bias, channel))
            factors = [code.spread(code.element(weights, code.number(m), channel)) for m in range(masks)]
            for j, place in enumerate(code.line(z, channel, column, width)):
                value = gelu(code, b.fadd(code.load(place), shift))
                for m in range(masks):
                    code.add_product_to(sums[m * width + j], factors[m], value)
        for m in range(masks):
            for j, place in enumerate(code.line(out, code.number(m), column, width)):
                code.store(b.load(sums[m * width + j]), place)
