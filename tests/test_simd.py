"""The vector code of the mask decoder against numpy and scipy."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf

from amg.kernels import gelu as activation
from amg.kernels import products, simd, softmax

GUARD = np.float32(12345)


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@numba.njit
def _product(a, b, c, rows, columns, inner):  # type: ignore[no-untyped-def]
    products.product(a, 0, a.shape[1], b, b.shape[1], b.shape[1], c, 0, c.shape[1], rows, columns, inner)


@numba.njit
def _add_products_of_rows(a, b, c, rows, columns, inner):  # type: ignore[no-untyped-def]
    products.add_products_of_rows(a, 0, a.shape[1], b, b.shape[1], b.shape[1], c, 0, c.shape[1], rows, columns, inner)


@numba.njit
def _normalise_and_gelu(y, base, scale, deviation, weight, bias, eps, columns):  # type: ignore[no-untyped-def]
    activation.normalise_and_gelu(
        y, 0, y.shape[1], base, 0, base.shape[1], scale, 0, deviation, 0, weight, bias, eps, len(weight), columns
    )


@numba.njit
def _gelu_and_dots(z, bias, weights, out, columns):  # type: ignore[no-untyped-def]
    args = z.shape[1], bias
    activation.gelu_and_dot(z, 0, args[0], bias, weights, 0, weights.shape[1], out, 0, out.shape[1], len(bias), columns)
    activation.gelu_and_3_dots(
        z, 0, args[0], bias, weights, 0, weights.shape[1], out, out.shape[1], out.shape[1], len(bias), columns
    )


@numba.njit
def _weigh(a, top, scale1, scale2, out, columns):  # type: ignore[no-untyped-def]
    return softmax.weigh(a, 16, top, scale1, 0, scale2, 0, out, 0, columns)


@numba.njit
def _combine(a, b, c, scale, columns):  # type: ignore[no-untyped-def]
    return softmax.combine(a, 0, b, 16, c, 0, scale, 0, columns)


@numba.njit
def _combine_twice(a, b, c, d, scale1, scale2, columns):  # type: ignore[no-untyped-def]
    return softmax.combine_twice(a, 0, b, 16, c, 0, d, 0, scale1, 0, scale2, 0, columns)


@numba.njit
def _shares(scores, tokens, out, columns):  # type: ignore[no-untyped-def]
    softmax.shares_of_tokens(scores, 0, scores.shape[1], tokens, out, out.shape[1], out.shape[1], columns)


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
    x = np.linspace(-86, 0, 128 * 1000, dtype=np.float32)
    a, ones, out = np.concatenate([np.zeros(16, np.float32), x]), np.ones(x.size, np.float32), np.zeros_like(x)
    total = _weigh(a, np.float32(0), ones, ones, out, x.size)
    wanted = np.exp(x.astype(np.float64))
    assert np.abs(out / wanted - 1).max() <= 2e-7
    assert abs(total / wanted.sum() - 1) <= 1e-5
    a[16:] = -np.inf
    _weigh(a, np.float32(0), ones, ones, out, x.size)
    assert (out < 1e-37).all()
    assert (out >= 0).all()


def test_weights_are_scaled_twice_and_their_sum_is_not() -> None:
    a, scale1, scale2 = numbers(16 + 512), numbers(512, seed=1), numbers(512, seed=2)
    before, out = a.copy(), np.zeros(512, np.float32)
    total = _weigh(a, np.float32(5), scale1, scale2, out, 512)
    wanted = np.exp(before[16:].astype(np.float64) - 5)
    np.testing.assert_allclose(out, wanted * scale1, rtol=1e-5)
    np.testing.assert_allclose(a[16:], wanted * scale1 * scale2, rtol=1e-5)
    assert total == pytest.approx(wanted.sum(), rel=1e-5)
    assert (a[:16] == before[:16]).all()


def test_rows_are_combined_and_the_greatest_is_told() -> None:
    a, b, c, d = (numbers(16 + 512, seed=seed) - 9 for seed in range(4))
    scale1, scale2 = numbers(512, seed=5), numbers(512, seed=6)
    once = (a[:512] + b[16:]).astype(np.float64) * scale1 + c[:512]
    twice = (a[:512].astype(np.float64) * scale1 + b[16:] + c[:512]) * scale2 + d[:512]
    first, second = a.copy(), a.copy()
    assert _combine(first, b, c, scale1, 512) == pytest.approx(once.max(), rel=1e-5)
    assert _combine_twice(second, b, c, d, scale1, scale2, 512) == pytest.approx(twice.max(), rel=1e-5)
    np.testing.assert_allclose(first[:512], once, atol=2e-5)
    np.testing.assert_allclose(second[:512], twice, atol=2e-5)


@pytest.mark.parametrize("tokens", [2, 5, 7, 13])
def test_shares_of_tokens_are_a_softmax_without_its_last(tokens: int) -> None:
    scores, out = 20 * numbers(tokens, 528), np.full((tokens + 1, 528), GUARD)
    weights = np.exp(scores[:, :512].astype(np.float64) - scores[:, :512].max(0))
    _shares(scores, tokens, out, 512)
    np.testing.assert_allclose(out[1:tokens, :512], (weights / weights.sum(0))[:-1], atol=1e-6)
    assert (out[0] == GUARD).all()
    assert (out[tokens] == GUARD).all()
    assert (out[:, 512:] == GUARD).all()
