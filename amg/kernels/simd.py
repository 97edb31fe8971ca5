"""Vector code that is written out, for functions compiled by Numba: memory, arithmetic and loops in float32.

A library's matrix product is fast on large matrices; the mask decoder has thousands of small ones between steps on
single values, and each call would read and write memory that could stay in the cache. The routines of `products`,
`gelu` and `softmax` are called from inside a compiled function, on pieces of arrays. Their arguments: of a matrix an
array, the offset of its first element in the array's memory, and the distance of two rows; of a row the first two. A
row's end is never crossed, so arrays need no room behind them.

The width of a vector is that of the machine that compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

_FEATURES = binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4
"""Numbers of float32 in a vector."""

_REGISTERS = 16 if LANES == 8 else 32
ROWS = 4
"""The rows of a left matrix come in multiples of this."""
VECTORS = 4 if _REGISTERS == 32 else 2
"""Vectors side by side that a routine works on at once: so many sums for each row stay in registers."""
COLUMNS = LANES * VECTORS
"""The columns of a right matrix come in multiples of this."""

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
WORDS = ir.VectorType(ir.IntType(32), LANES)
_INDEX = ir.IntType(64)

MATRIX = (types.intp, types.intp)
"""The types of what follows a matrix's array among the arguments: start and pitch."""
ROW = (types.intp,)
"""The same of a row: its start."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """The address of its first element, and the distance of two rows in elements."""

    base: Any
    pitch: Any


class Code:
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

    def element(self, matrix: Matrix, row: Any, column: Any) -> Any:
        """The address of an element of a matrix."""
        b = self.builder
        return self.at(matrix.base, b.add(b.mul(row, matrix.pitch), column))

    def line(self, matrix: Matrix, row: Any, column: Any, n: int = VECTORS) -> list[Any]:
        """The addresses of `n` vectors that lie side by side in a row."""
        return self.neighbours(self.element(matrix, row, column), n)

    def neighbours(self, start: Any, n: int = VECTORS) -> list[Any]:
        """The addresses of `n` vectors that lie side by side."""
        return [self.at(start, self.number(LANES * j)) for j in range(n)]

    def load(self, pointer: Any) -> Any:
        return self.builder.load(self._as_vector(pointer), align=4)

    def spread(self, pointer: Any) -> Any:
        """A number of an array in all lanes."""
        return self.all_lanes(self.builder.load(pointer))

    def all_lanes(self, value: Any) -> Any:
        undefined = ir.Constant(VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(WORDS, None))

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self._as_vector(pointer), align=4)

    def _as_vector(self, pointer: Any) -> Any:
        return self.builder.bitcast(pointer, VECTOR.as_pointer())

    def constant(self, value: float) -> Any:
        """One known number in all lanes."""
        return ir.Constant(VECTOR, [ir.Constant(FLOAT, float(np.float32(value)))] * LANES)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self._llvm("fma", VECTOR, [VECTOR] * 3), [a, b, c])

    def root(self, x: Any) -> Any:
        return self.builder.call(self._llvm("sqrt", VECTOR, [VECTOR]), [x])

    def polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        """The highest power's coefficient first."""
        value = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def greater(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def at_least(self, x: Any, bound: float) -> Any:
        """What is no number stays none."""
        least = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered("<", x, least), least, x)

    def at_most(self, x: Any, bound: float) -> Any:
        most = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered(">", x, most), most, x)

    def total(self, vector: Any) -> Any:
        """The sum of all lanes, in pairs."""
        function = self._llvm("vector.reduce.fadd", FLOAT, [FLOAT, VECTOR])
        return self.builder.call(function, [ir.Constant(FLOAT, 0.0), vector], fastmath=("reassoc",))

    def most(self, vector: Any) -> Any:
        """The greatest lane."""
        return self.builder.call(self._llvm("vector.reduce.fmax", FLOAT, [VECTOR]), [vector], fastmath=("nnan",))

    def _llvm(self, name: str, gives: Any, takes: Sequence[Any]) -> Any:
        kind = ir.FunctionType(gives, takes)
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.v{LANES}f32")

    def places(self, n: int) -> list[Any]:
        """For n vectors; the compiler keeps them in registers."""
        return [cgutils.alloca_once(self.builder, VECTOR) for _ in range(n)]

    def clear(self, places: Sequence[Any]) -> None:
        for place in places:
            self.builder.store(ir.Constant(VECTOR, None), place)

    def add_to(self, place: Any, value: Any) -> None:
        self.builder.store(self.builder.fadd(self.builder.load(place), value), place)

    def add_product_to(self, place: Any, a: Any, b: Any) -> None:
        self.builder.store(self.fma(a, b, self.builder.load(place)), place)

    def steps(self, end: Any, step: int, first: Any = None) -> Any:
        """A loop over 0 (or `first`), then a step further, below `end`."""
        first = self.number(0) if first is None else first
        return cgutils.for_range_slice(self.builder, first, end, self.number(step), intp=_INDEX)


class Arguments:
    """What a routine was called with, taken one after the other in the order of its signature."""

    def __init__(self, code: Code, kinds: Sequence[Any], values: Sequence[Any]) -> None:
        self._code = code
        self._left: Iterator[tuple[Any, Any]] = zip(kinds, values, strict=True)

    def matrix(self) -> Matrix:
        return Matrix(self.row(), self.value())

    def row(self) -> Any:
        """The address of its first element."""
        kind, array = next(self._left)
        return self._code.data(kind, array, self.value())

    def whole(self) -> Any:
        """The address of an array's first element."""
        return self._code.data(*next(self._left), self._code.number(0))

    def value(self) -> Any:
        return next(self._left)[1]


Emit = Callable[[Code, Arguments], Any]


def routine(emit: Emit) -> Callable[..., Any]:
    """The second result of a Numba intrinsic: `emit` writes its instructions, and gives its result if it has one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        code = Code(context, builder)
        result = emit(code, Arguments(code, signature.args, values))
        return context.get_dummy_value() if result is None else result

    return generate
