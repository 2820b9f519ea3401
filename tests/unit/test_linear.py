"""`_core.Linear` and `_core.normalize`: weight formats, shapes, threads, forks and errors."""

from __future__ import annotations

import multiprocessing
import sys
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from bpe_llama._core import Linear, normalize

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def halves(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def wide(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def product(linear: Linear, x: NDArray[np.float32], rows: int, threads: int = 1) -> NDArray[np.float32]:
    out = np.full((len(x), rows), np.nan, dtype=np.float32)
    linear.multiply(x, out, num_threads=threads)
    return out


def test_every_format_is_the_product_with_its_dequantized_weights() -> None:
    columns = 192
    plain, half = floats(5, columns), halves(floats(3, columns))
    bytes_, scales = RANDOM.integers(-128, 128, (7, columns), dtype=np.int8), floats(7)
    codes, groups = RANDOM.integers(0, 256, (4, columns // 2), dtype=np.uint8), halves(floats(4, 3, 2))
    four = np.stack([codes & 15, codes >> 4], axis=-1).reshape(4, 3, 64).astype(np.float32) - 8
    whole = np.concatenate(
        [
            plain,
            wide(half),
            bytes_ * scales[:, None],
            (four * wide(groups)[..., :1] + wide(groups)[..., 1:]).reshape(4, columns),
        ]
    ).astype(np.float64)
    x, norm = floats(3, columns), floats(columns)
    parts = [plain, half, (bytes_, scales), (codes, groups)]
    expected = x @ whole.T
    np.testing.assert_allclose(product(Linear(parts), x, 19), expected, atol=0.05, rtol=1e-4)
    normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-2) * norm
    found = product(Linear(parts, norm=norm, eps=1e-2), x, 19)
    np.testing.assert_allclose(found, normed @ whole.T, atol=0.05, rtol=1e-4)
    gates = floats(3, columns)
    gated = gates / (1 + np.exp(-gates)) * x
    found = product(Linear(parts, gate="silu"), np.concatenate([gates, x], axis=1), 19)
    np.testing.assert_allclose(found, gated @ whole.T, atol=0.05, rtol=1e-4)
    gated = 0.5 * gates * (1 + np.tanh((2 / np.pi) ** 0.5 * (gates + 0.044715 * gates**3))) * x
    found = product(Linear(parts, gate="gelu_tanh"), np.concatenate([gates, x], axis=1), 19)
    np.testing.assert_allclose(found, gated @ whole.T, atol=0.05, rtol=1e-4)

    out = floats(3, 19)
    before = out.copy()
    Linear(parts).multiply(x, out, add=True)
    np.testing.assert_array_equal(out, before + product(Linear(parts), x, 19))


@pytest.mark.parametrize("rows", [1, 300])
def test_norms_of_heads_and_of_rows(rows: int) -> None:
    x, norm = floats(rows, 200), halves(floats(24))
    heads = x[:, 8:152].reshape(rows, 6, 24).astype(np.float64)
    expected = x.copy()
    expected[:, 8:152] = (heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-2) * wide(norm)).reshape(rows, 144)
    for threads in (1, 3):
        found = x.copy()
        normalize(found, norm, 1e-2, 8, 152, threads)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    whole, found = floats(200), x.copy()
    normalize(found, whole, 1e-2, 0, 200)
    np.testing.assert_allclose(found, x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-2) * whole, atol=1e-5)

    pairs, found = floats(200, 2), x.copy()
    normalize(found, pairs, 1e-2, 0, 200)
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-2) * pairs[:, 0] + pairs[:, 1]
    np.testing.assert_allclose(found, normed, atol=1e-5)
    weights = floats(3, 200)
    result = product(Linear([weights], norm=pairs, eps=1e-2), x, 3)
    np.testing.assert_allclose(result, normed @ weights.T, atol=1e-3)


def test_norms_refuse_what_does_not_fit() -> None:
    x, norm = floats(2, 8), floats(3)
    for start, stop in ((0, 4), (0, 9), (6, 3)):
        with pytest.raises(ValueError, match=f"3 weights for columns {start} to {stop} of 16 elements in rows of 8"):
            normalize(x, norm, 0.0, start, stop)
    with pytest.raises(ValueError, match="start is -1; expected at least 0"):
        normalize(x, norm, 0.0, -1, 3)
    with pytest.raises(ValueError, match="num_threads is 0; expected at least 1"):
        normalize(x, norm, 0.0, 0, 3, 0)
    with pytest.raises(ValueError, match="not contiguous"):
        normalize(x[:, ::2], norm, 0.0, 0, 3)
    for weights in (norm.astype(np.float64), floats(3, 3), floats(1, 3, 2)):
        with pytest.raises(TypeError, match=r"expected float32 or uint16 \(I,\), or float32 \(I, 2\)"):
            normalize(x, weights, 0.0, 0, 3)
    x.flags.writeable = False
    with pytest.raises(TypeError, match="x: "):
        normalize(x, norm, 0.0, 0, 3)


def test_weights_are_read_in_place() -> None:
    weights = np.zeros((2, 4), dtype=np.float32)
    linear = Linear([weights])
    weights[:] = 1
    assert product(linear, np.ones((1, 4), dtype=np.float32), 2).tolist() == [[4, 4]]


@pytest.mark.parametrize(("rows", "fewer"), [(8, 1), (40, 1), (40, 9)])
def test_products_do_not_depend_on_threads_callers_or_batch(rows: int, fewer: int) -> None:
    linear, x = Linear([floats(2000, 100)]), floats(rows, 100)
    expected = product(linear, x, 2000)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(product(linear, x, 2000, threads), expected)
    for row in range(rows - fewer + 1):
        some = slice(row, row + fewer)
        np.testing.assert_array_equal(product(linear, x[some], 2000, 2), expected[some])
    found: list[bool] = []

    def call() -> None:
        found.extend(bool((product(linear, x, 2000, 2) == expected).all()) for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 60


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="processes do not fork there")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_multiply() -> None:
    linear, x = Linear([floats(2000, 100)]), floats(1, 100)
    expected = product(linear, x, 2000, 2)
    with multiprocessing.get_context("fork").Pool(1, initializer=_remember, initargs=(linear, x)) as pool:
        np.testing.assert_array_equal(pool.apply_async(_compute).get(timeout=60), expected)


def _remember(linear: Linear, x: NDArray[np.float32]) -> None:
    _compute.operands = linear, x  # type: ignore[attr-defined]  # a lambda cannot be pickled


def _compute() -> NDArray[np.float32]:
    linear, x = _compute.operands  # type: ignore[attr-defined]
    return product(linear, x, 2000, 2)


def test_invalid_arguments() -> None:
    plain = floats(2, 4)
    linear = Linear([plain])
    with pytest.raises(TypeError, match="expected a float32 or uint16 array"):
        Linear([plain.astype(np.float64)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a float32 or uint16 array"):
        Linear([(plain, plain)])
    with pytest.raises(TypeError, match="expected float32 or uint16"):
        Linear([plain], norm=plain)
    with pytest.raises(ValueError, match="not contiguous"):
        Linear([plain[:, ::2]])
    with pytest.raises(ValueError, match="not contiguous"):
        Linear([np.asfortranarray(plain)])
    unaligned = np.zeros(33, dtype=np.uint8)[1:].view(np.float32).reshape(2, 4)
    with pytest.raises(ValueError, match="aligned"):
        Linear([unaligned])
    with pytest.raises(ValueError, match="matrices of 4 and 3 columns"):
        Linear([plain, floats(2, 3)])
    with pytest.raises(ValueError, match="no matrix"):
        Linear([])
    with pytest.raises(ValueError, match="a norm of 3 weights for 4 columns"):
        Linear([plain], norm=floats(3))
    with pytest.raises(ValueError, match="gated input is not normalized"):
        Linear([plain], norm=floats(4), gate="silu")
    with pytest.raises(ValueError, match='gate is "relu"; expected "silu", "gelu_tanh" or None'):
        Linear([plain], gate="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scales do not fit"):
        Linear([(np.zeros((2, 24), dtype=np.uint8), np.zeros((2, 1, 2), dtype=np.uint16))])
    for shape in ((1, 2, 2), (2, 2, 1), (2, 1, 3)):
        with pytest.raises(ValueError, match=r"expected \(2, Q, 2\)"):
            Linear([(np.zeros((2, 16), dtype=np.uint8), np.zeros(shape, dtype=np.uint16))])
    with pytest.raises(ValueError, match="columns; expected 1 to"):
        Linear([(np.zeros((0, 2**62), dtype=np.int8), floats(0))])
    for x, out in ((floats(1, 3), floats(1, 2)), (floats(2, 4), floats(1, 2)), (floats(1, 4), floats(1, 3))):
        with pytest.raises(ValueError, match=r"expected \(M, 4\) and \(M, 2\)"):
            linear.multiply(x, out)
    with pytest.raises(ValueError, match="not contiguous"):
        linear.multiply(floats(1, 8)[:, ::2], floats(1, 2))
    for x, out in ((floats(4, 2).T, floats(2, 2)), (floats(2, 4), floats(2, 2).T)):
        with pytest.raises(ValueError, match="not contiguous"):
            linear.multiply(x, out)
    for threads in (0, -1):
        with pytest.raises(ValueError, match=f"num_threads is {threads}; expected at least 1"):
            linear.multiply(floats(1, 4), floats(1, 2), num_threads=threads)
    fixed = floats(1, 2)
    fixed.flags.writeable = False
    with pytest.raises(TypeError, match="out: "):
        linear.multiply(floats(1, 4), fixed)
    both = floats(1, 4)
    with pytest.raises(TypeError, match="out: "):
        Linear([floats(4, 4)]).multiply(both, both)
