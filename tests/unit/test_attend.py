"""`_core.attend` against a NumPy oracle, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpe_llama._core import attend

HEADS, KV_HEADS, SIZE, CAPACITY = 6, 2, 20, 40
Floats = NDArray[np.float32]


def given(seed: int, rows: int = 3, slots: int = 3) -> dict[str, Any]:
    """Return arguments for tokens in two slots, two of them consecutive, over a cache of two layers."""
    random = np.random.default_rng(seed)
    angles = random.standard_normal((rows, 8)).astype(np.float32)
    return {
        "qkv": random.standard_normal((rows, (HEADS + 2 * KV_HEADS) * SIZE)).astype(np.float32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "cache": random.standard_normal((2, 2, slots, KV_HEADS, CAPACITY, SIZE)).astype(np.float32),
        "layer": 1,
        "positions": np.array([[2, 30], [2, 31], [0, 0]])[:rows],
        "out": np.zeros((rows, HEADS * SIZE), dtype=np.float32),
    }


def oracle(
    qkv: Floats,
    cos: Floats,
    sin: Floats,
    cache: Floats,
    layer: int,
    positions: Any,
    window: int,
    softcap: float,
    interleaved: bool,
) -> Floats:
    """Return the attention output; the cache is extended."""
    heads = qkv.reshape(len(qkv), -1, SIZE).copy()
    rotated = heads[:, : HEADS + KV_HEADS]
    one, other = (slice(0, 16, 2), slice(1, 16, 2)) if interleaved else (slice(0, 8), slice(8, 16))
    first, second = rotated[..., one].copy(), rotated[..., other].copy()
    rotated[..., one] = first * cos[:, None] - second * sin[:, None]
    rotated[..., other] = second * cos[:, None] + first * sin[:, None]
    keys, values = cache[:, layer]
    for row, (slot, position) in zip(heads, positions, strict=True):
        keys[slot, :, position] = row[HEADS : HEADS + KV_HEADS]
        values[slot, :, position] = row[HEADS + KV_HEADS :]
    outputs = []
    for row, (slot, position) in zip(heads, positions, strict=True):
        attended = slice(max(0, position + 1 - window) if window else 0, position + 1)
        for head in range(HEADS):
            scores = keys[slot, head // 3, attended] @ row[head] / np.sqrt(SIZE)
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            weights = np.exp(scores - scores.max())
            outputs.append(weights / weights.sum() @ values[slot, head // 3, attended])
    return np.array(outputs, dtype=np.float32).reshape(len(qkv), -1)


@pytest.mark.parametrize("window", [0, 1, 7, 100])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("softcap", "interleaved"), [(0.0, False), (0.7, True), (50.0, False)])
def test_attention_agrees_with_the_oracle(window: int, threads: int, softcap: float, interleaved: bool) -> None:
    ours, kind = given(window), {"window": window, "softcap": softcap, "interleaved": interleaved}
    cache = ours["cache"].copy()
    attend(**ours, **kind, num_threads=threads)
    expected = oracle(**{name: ours[name] for name in ("qkv", "cos", "sin", "layer", "positions")}, cache=cache,
                      **kind)  # fmt: skip
    np.testing.assert_allclose(ours["out"], expected, atol=1e-5)
    np.testing.assert_allclose(ours["cache"], cache, atol=1e-6)


def test_attention_is_batch_invariant() -> None:
    together = given(5)
    alone = {name: value[2:] if name in ("qkv", "cos", "sin", "positions", "out") else value for name, value in
             given(5).items()}  # fmt: skip
    attend(**together)
    attend(**alone)
    assert np.array_equal(together["out"][2:], alone["out"])


def test_a_bfloat16_cache_rounds_to_the_nearest() -> None:
    ours = given(6)
    wide = ours["cache"]
    bits = (wide.view(np.uint32) >> 16).astype(np.uint16)
    wide[:] = (bits.astype(np.uint32) << 16).view(np.float32)
    exact = {**given(6), "cache": wide}
    attend(**{**ours, "cache": bits})
    attend(**exact)
    found = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(found, wide, rtol=2**-8)
    np.testing.assert_allclose(ours["out"], exact["out"], atol=0.02)


def test_rows_with_negative_positions_are_skipped() -> None:
    ours = given(7)
    ours["positions"][1] = -1
    ours["out"][:] = 5
    before = ours["cache"].copy()
    attend(**ours)
    assert (ours["out"][1] == 5).all()
    assert (ours["out"][[0, 2]] != 5).any(axis=1).all()
    assert np.array_equal(ours["cache"][:, 1, 2, :, 31], before[:, 1, 2, :, 31])


def test_invalid_arguments() -> None:
    def raises(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            attend(**{**given(0), **changes})

    cache = given(0)["cache"]
    raises(TypeError, "expected a float32 or uint16 array", cache=cache.astype(np.float64))
    raises(TypeError, "expected a float32 or uint16 array", cache=cache[0])
    raises(ValueError, "not contiguous", cache=cache[:, :, 1:])
    raises(ValueError, "layer 2 of a cache", layer=2)
    raises(ValueError, "layer 0 of a cache", layer=0, cache=cache[:1].copy())
    raises(ValueError, "position 40 of slot 0", positions=np.array([[0, 0], [0, 40], [1, 0]]))
    raises(ValueError, "position 0 of slot 3", positions=np.array([[0, 0], [3, 0], [1, 0]]))
    raises(
        ValueError,
        "position 9223372036854775807 of slot 0",
        positions=np.array([[0, 0], [0, 2**63 - 1], [0, 2**63 - 1]]),
    )
    for shape in ((2, 2), (3, 3), (1, 6), (6, 1)):
        raises(ValueError, r"positions have shape .*; expected \(3, 2\)", positions=np.zeros(shape, dtype=np.int64))
    raises(ValueError, "cosines", sin=np.zeros((3, 7), dtype=np.float32))
    raises(ValueError, "cosines", cos=np.zeros((3, 11), dtype=np.float32), sin=np.zeros((3, 11), dtype=np.float32))
    raises(ValueError, r"sin has shape \[6, 4\]; expected 3 rows", sin=np.zeros((6, 4), dtype=np.float32))
    raises(ValueError, "elements in", qkv=np.zeros((3, 5), dtype=np.float32))
    raises(ValueError, "expected a multiple", out=np.zeros((3, 7), dtype=np.float32))
    raises(ValueError, "layer is -1; expected at least 0", layer=-1)
    raises(ValueError, "window is -1; expected at least 0", window=-1)
    raises(ValueError, "num_threads is 0; expected at least 1", num_threads=0)
    raises(ValueError, "a soft cap of -1; expected a positive number, or 0", softcap=-1.0)
    raises(ValueError, "a soft cap of inf", softcap=float("inf"))
    fixed = np.zeros((3, HEADS * SIZE), dtype=np.float32)
    fixed.flags.writeable = False
    raises(TypeError, "out: ", out=fixed)
