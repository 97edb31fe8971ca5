"""The vector code of the mask decoder against numpy and scipy."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf

from amg.kernels import decoder, simd

GUARD = np.float32(12345)


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@numba.njit
def _product(a, b, c, rows, columns, inner):  # type: ignore[no-untyped-def]
    simd.product(a, 0, a.shape[1], b, b.shape[1], b.shape[1], c, 0, c.shape[1], rows, columns, inner)


@numba.njit
def _add_products_of_rows(a, b, c, rows, columns, inner):  # type: ignore[no-untyped-def]
    simd.add_products_of_rows(a, 0, a.shape[1], b, b.shape[1], b.shape[1], c, 0, c.shape[1], rows, columns, inner)


@numba.njit
def _normalise_and_gelu(y, base, scale, deviation, weight, bias, eps, columns):  # type: ignore[no-untyped-def]
    simd.normalise_and_gelu(
        y, 0, y.shape[1], base, 0, base.shape[1], scale, 0, deviation, 0, weight, bias, eps, len(weight), columns
    )


@numba.njit
def _gelu_and_dots(z, bias, weights, out, columns):  # type: ignore[no-untyped-def]
    args = z.shape[1], bias
    simd.gelu_and_dot(z, 0, args[0], bias, weights, 0, weights.shape[1], out, 0, out.shape[1], len(bias), columns)
    simd.gelu_and_3_dots(
        z, 0, args[0], bias, weights, 0, weights.shape[1], out, out.shape[1], out.shape[1], len(bias), columns
    )


@numba.njit
def _exp(x, out):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        out[i] = decoder._exp(x[i])


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * 0.5 * (1 + erf(x / 2**0.5))


@pytest.mark.parametrize(("rows", "columns", "inner"), [(4, simd.COLUMNS, 1), (28, 128, 16), (108, 512, 49)])
def test_a_product_is_numpys_and_writes_nowhere_else(rows: int, columns: int, inner: int) -> None:
    a, b = numbers(rows, inner), numbers(1 + inner, columns + 16, seed=1)  # it begins at the second row
    c = np.full((rows + 1, columns + 16), GUARD)
    _product(a, b, c, rows, columns, inner)
    wanted = a.astype(np.float64) @ b[1:, :columns]
    np.testing.assert_allclose(c[:rows, :columns], wanted, atol=1e-5 * inner**0.5)
    assert (c[:rows, columns:] == GUARD).all()
    assert (c[rows] == GUARD).all()


@pytest.mark.parametrize(("rows", "columns", "inner"), [(4, 4, simd.LANES), (56, 52, 512), (28, 16, 64)])
def test_products_of_rows_are_added_to_what_was_there(rows: int, columns: int, inner: int) -> None:
    a, b = numbers(rows, inner + 16), numbers(1 + columns, inner + 16, seed=1)
    c = np.full((rows + 1, columns + 4), GUARD)
    c[:rows, :columns] = before = numbers(rows, columns, seed=2)
    _add_products_of_rows(a, b, c, rows, columns, inner)
    wanted = before + a[:, :inner].astype(np.float64) @ b[1:, :inner].T
    np.testing.assert_allclose(c[:rows, :columns], wanted, atol=1e-5 * inner**0.5)
    assert (c[:rows, columns:] == GUARD).all()
    assert (c[rows] == GUARD).all()


def test_normalisation_and_gelu_are_those_of_the_decoder() -> None:
    y, base = numbers(8, 144), numbers(8, 528, seed=1)
    scale, deviation = np.abs(numbers(528, seed=2)), np.abs(numbers(528, seed=3))
    weight, bias = numbers(8, seed=4), numbers(8, seed=5)
    x = y[:, :128].astype(np.float64) + base[:, :128] * scale[:128].astype(np.float64)
    x -= x.mean(0)
    x /= np.sqrt((x**2).mean(0) + 1e-3 * deviation[:128].astype(np.float64) ** 2)
    beyond = y[:, 128:].copy()
    _normalise_and_gelu(y, base, scale, deviation, weight, bias, np.float32(1e-3), 128)
    np.testing.assert_allclose(y[:, :128], gelu(x * weight[:, None] + bias[:, None]), atol=2e-6)
    assert (y[:, 128:] == beyond).all()


def test_dots_are_weights_times_gelu() -> None:
    z, bias, weights = numbers(32, 144), numbers(32, seed=1), numbers(3, 32, seed=2)
    out = np.full((5, 144), GUARD)
    _gelu_and_dots(z, bias, weights, out, 128)
    wanted = weights.astype(np.float64) @ gelu(z[:, :128].astype(np.float64) + bias[:, None])
    np.testing.assert_allclose(out[0, :128], wanted[0], atol=1e-5)
    np.testing.assert_allclose(out[1:4, :128], wanted, atol=1e-5)
    assert (out[:, 128:] == GUARD).all()
    assert (out[4] == GUARD).all()


def test_gelu_is_as_near_as_a_librarys() -> None:
    x = np.linspace(-12, 12, 128 * 1000, dtype=np.float32)
    one, nothing = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    out = np.zeros((4, x.size), np.float32)
    _gelu_and_dots(x[None], nothing, np.repeat(one, 3, 0), out, x.size)
    error = np.abs(out[0] - gelu(x.astype(np.float64)))
    assert error.max() <= 2e-6
    assert error[np.abs(x) < 1].max() <= 2e-7


def test_the_exponential_function_is_as_near_as_a_librarys() -> None:
    x = np.linspace(-86, 0, 100_001, dtype=np.float32)
    out = np.zeros_like(x)
    _exp(x, out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() <= 3e-7
    _exp(np.array([-1000, -np.inf], np.float32), out[:2])
    assert (out[:2] < 1e-37).all()
    assert (out[:2] >= 0).all()
