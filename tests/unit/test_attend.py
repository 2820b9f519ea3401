"""`_core.attend`: what it computes, said once more in NumPy, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpe_llama._core import attend

HEADS, KV_HEADS, SIZE, CAPACITY = 6, 2, 20, 40
Floats = NDArray[np.float32]


def given(seed: int, rows: int = 3, slots: int = 3) -> dict[str, Any]:
    """Return arguments: tokens in the last slots, two of them in one, over a cache of two layers."""
    random = np.random.default_rng(seed)
    angles = random.standard_normal((rows, 8)).astype(np.float32)
    return {
        "qkv": random.standard_normal((rows, (HEADS + 2 * KV_HEADS) * SIZE)).astype(np.float32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "store": random.standard_normal((2, 2, slots, KV_HEADS, CAPACITY, SIZE)).astype(np.float32),
        "layer": 1,
        "places": np.array([[2, 30], [2, 31], [0, 0]])[:rows],
        "out": np.zeros((rows, HEADS * SIZE), dtype=np.float32),
    }


def by_definition(qkv: Floats, cos: Floats, sin: Floats, store: Floats, layer: int, places: Any, window: int) -> Floats:
    """Return what each row gathers; the cache is extended."""
    heads = qkv.reshape(len(qkv), -1, SIZE).copy()
    first, second = heads[:, : HEADS + KV_HEADS, :8].copy(), heads[:, : HEADS + KV_HEADS, 8:16].copy()
    heads[:, : HEADS + KV_HEADS, :8] = first * cos[:, None] - second * sin[:, None]
    heads[:, : HEADS + KV_HEADS, 8:16] = second * cos[:, None] + first * sin[:, None]
    keys, values = store[:, layer]
    for row, (slot, column) in zip(heads, places, strict=True):
        keys[slot, :, column] = row[HEADS : HEADS + KV_HEADS]
        values[slot, :, column] = row[HEADS + KV_HEADS :]
    gathered = []
    for row, (slot, column) in zip(heads, places, strict=True):
        seen = slice(max(0, column + 1 - window) if window else 0, column + 1)
        for head in range(HEADS):
            scores = keys[slot, head // 3, seen] @ row[head] / np.sqrt(SIZE)
            shares = np.exp(scores - scores.max())
            gathered.append(shares / shares.sum() @ values[slot, head // 3, seen])
    return np.array(gathered, dtype=np.float32).reshape(len(qkv), -1)


@pytest.mark.parametrize("window", [0, 1, 7, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_gather_what_the_definition_says(window: int, threads: int) -> None:
    ours = given(window)
    store = ours["store"].copy()
    attend(**ours, window=window, num_threads=threads)
    expected = by_definition(**{name: ours[name] for name in ("qkv", "cos", "sin", "layer", "places")}, store=store,
                             window=window)  # fmt: skip
    np.testing.assert_allclose(ours["out"], expected, atol=1e-5)
    np.testing.assert_allclose(ours["store"], store, atol=1e-6)


def test_a_row_gathers_the_same_bits_alone() -> None:
    together = given(5)
    alone = {name: value[2:] if name in ("qkv", "cos", "sin", "places", "out") else value for name, value in
             given(5).items()}  # fmt: skip
    attend(**together)
    attend(**alone)
    assert np.array_equal(together["out"][2:], alone["out"])


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    ours = given(6)
    wide = ours["store"]
    bits = (wide.view(np.uint32) >> 16).astype(np.uint16)
    wide[:] = (bits.astype(np.uint32) << 16).view(np.float32)
    exact = {**given(6), "store": wide}
    attend(**{**ours, "store": bits})
    attend(**exact)
    found = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(found, wide, rtol=2**-8)
    np.testing.assert_allclose(ours["out"], exact["out"], atol=0.02)


def test_rows_without_a_place_are_left_alone() -> None:
    ours = given(7)
    ours["places"][1] = -1
    ours["out"][:] = 5
    before = ours["store"].copy()
    attend(**ours)
    assert (ours["out"][1] == 5).all()
    assert (ours["out"][[0, 2]] != 5).any(axis=1).all()
    assert np.array_equal(ours["store"][:, 1, 2, :, 31], before[:, 1, 2, :, 31])


def test_refusals() -> None:
    def refused(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            attend(**{**given(0), **changes})

    store = given(0)["store"]
    refused(TypeError, "expected a float32 or uint16 array", store=store.astype(np.float64))
    refused(TypeError, "expected a float32 or uint16 array", store=store[0])
    refused(ValueError, "not contiguous", store=store[:, :, 1:])
    refused(ValueError, "layer 2 of a store", layer=2)
    refused(ValueError, "layer 0 of a store", layer=0, store=store[:1].copy())
    refused(ValueError, "column 40 of slot 0", places=np.array([[0, 0], [0, 40], [1, 0]]))
    refused(ValueError, "column 0 of slot 3", places=np.array([[0, 0], [3, 0], [1, 0]]))
    refused(
        ValueError, "column 9223372036854775807 of slot 0", places=np.array([[0, 0], [0, 2**63 - 1], [0, 2**63 - 1]])
    )
    for shape in ((2, 2), (3, 3), (1, 6), (6, 1)):
        refused(ValueError, r"places have shape .*; expected \(3, 2\)", places=np.zeros(shape, dtype=np.int64))
    refused(ValueError, "cosines", sin=np.zeros((3, 7), dtype=np.float32))
    refused(ValueError, "cosines", cos=np.zeros((3, 11), dtype=np.float32), sin=np.zeros((3, 11), dtype=np.float32))
    refused(ValueError, r"sin has shape \[6, 4\]; expected 3 rows", sin=np.zeros((6, 4), dtype=np.float32))
    refused(ValueError, "numbers in", qkv=np.zeros((3, 5), dtype=np.float32))
    refused(ValueError, "expected a multiple", out=np.zeros((3, 7), dtype=np.float32))
    refused(ValueError, "layer is -1; expected at least 0", layer=-1)
    refused(ValueError, "window is -1; expected at least 0", window=-1)
    refused(ValueError, "num_threads is 0; expected at least 1", num_threads=0)
    fixed = np.zeros((3, HEADS * SIZE), dtype=np.float32)
    fixed.flags.writeable = False
    refused(TypeError, "out: ", out=fixed)
