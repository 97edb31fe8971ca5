"""Products of small float32 matrices for compiled functions; how matrices are given stands in `simd`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from amg.kernels.simd import COLUMNS, LANES, MATRIX, ROWS, VECTORS, Arguments, Code, Matrix, routine

Shape = tuple[Any, Any, Any]


def _product_of(emit: Callable[[Code, Matrix, Matrix, Matrix, Shape], None]) -> Any:
    def take(code: Code, given: Arguments) -> None:
        a, b, c = given.matrix(), given.matrix(), given.matrix()
        emit(code, a, b, c, (given.value(), given.value(), given.value()))

    @intrinsic
    def product_of(typing_context, a, a_start, a_pitch, b, b_start, b_pitch, c, c_start, c_pitch, rows, columns, inner):  # type: ignore[no-untyped-def]
        assert all(array.layout == "C" for array in (a, b, c)), f"wanted contiguous arrays: {a}, {b}, {c}"
        return types.none(a, *MATRIX, b, *MATRIX, c, *MATRIX, *[types.intp] * 3), routine(take)

    return product_of


def _product(code: Code, a: Matrix, b: Matrix, c: Matrix, shape: Shape) -> None:
    rows, columns, inner = shape
    build = code.builder
    whole = build.sub(columns, build.urem(columns, code.number(COLUMNS)))
    _columns_of_product(code, a, b, c, (rows, whole, inner), code.number(0), VECTORS)
    _columns_of_product(code, a, b, c, shape, whole, 1)


def _columns_of_product(code: Code, a: Matrix, b: Matrix, c: Matrix, shape: Shape, first: Any, vectors: int) -> None:
    """The columns from `first` on, so many vectors of them at once."""
    rows, columns, inner = shape
    build, zero = code.builder, code.number(0)
    sums = code.places(ROWS * vectors)
    with code.steps(columns, LANES * vectors, first) as (column, _), code.steps(rows, ROWS) as (row, _):
        code.clear(sums)
        left_rows = [code.element(a, build.add(row, code.number(i)), zero) for i in range(ROWS)]
        with code.steps(inner, 1) as (k, _):
            values_k = [code.load(place) for place in code.line(b, k, column, vectors)]
            for i in range(ROWS):
                factor = code.spread(code.at(left_rows[i], k))
                for j in range(vectors):
                    code.add_product_to(sums[i * vectors + j], factor, values_k[j])
        for i in range(ROWS):
            for j, place in enumerate(code.line(c, build.add(row, code.number(i)), column, vectors)):
                code.store(build.load(sums[i * vectors + j]), place)


product = _product_of(_product)
"""C = A B of shapes (rows, inner) and (inner, columns): multiples of ROWS and of LANES, fastest of COLUMNS."""


def _add_products_of_rows(code: Code, a: Matrix, b: Matrix, c: Matrix, shape: Shape) -> None:
    build = code.builder
    in_eights = build.icmp_unsigned("==", build.urem(shape[0], code.number(2 * ROWS)), code.number(0))
    with build.if_else(in_eights) as (eights, fours):
        with eights:
            _tiles_of_row_products(code, a, b, c, shape, 2 * ROWS, VECTORS // 2)
        with fours:
            _tiles_of_row_products(code, a, b, c, shape, ROWS, VECTORS)


def _tiles_of_row_products(code: Code, a: Matrix, b: Matrix, c: Matrix, shape: Shape, height: int, width: int) -> None:
    """`height` rows of A stay in the first cache while all rows of B go by, `width` at a time."""
    rows, columns, inner = shape
    build, zero = code.builder, code.number(0)
    sums = code.places(height * width)
    with code.steps(rows, height) as (row, _), code.steps(columns, width) as (column, _):
        code.clear(sums)
        left_rows = [code.element(a, build.add(row, code.number(i)), zero) for i in range(height)]
        right_rows = [code.element(b, build.add(column, code.number(j)), zero) for j in range(width)]
        with code.steps(inner, LANES) as (k, _):
            vectors = [code.load(code.at(line, k)) for line in right_rows]
            for i in range(height):
                factor = code.load(code.at(left_rows[i], k))
                for j in range(width):
                    code.add_product_to(sums[i * width + j], factor, vectors[j])
        for i in range(height):
            line = code.element(c, build.add(row, code.number(i)), column)
            for j in range(width):
                at = code.at(line, code.number(j))
                build.store(build.fadd(build.load(at), code.total(build.load(sums[i * width + j]))), at)


add_products_of_rows = _product_of(_add_products_of_rows)
"""C += A B^T of shapes (rows, inner) and (columns, inner): rows and columns multiples of ROWS, inner of LANES."""
