"""Rows of logits of every kind, on which the samplers are compared with their definition and with one another."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

KINDS = ["flat", "peaked", "tied", "two values", "equal", "one finite", "subnormal"]
ELEMENTS = st.one_of(
    st.floats(-8, 8, width=32),
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5]),
    st.just(-np.inf),
    st.integers(-1000, 1000).map(lambda n: n * 2.0**-149),
)
ROWS = (
    st.lists(ELEMENTS, min_size=1, max_size=200)
    .filter(lambda row: max(row) > -np.inf)
    .map(lambda row: np.array(row, dtype=np.float32))
)


def row_of(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(size)
    return {
        "flat": lambda: random.normal(size=size),
        "peaked": lambda: random.normal(size=size) * 3 + 12 * (random.random(size) < 5 / size),
        "tied": lambda: np.round(random.normal(size=size) * 4) / 4,
        "two values": lambda: np.where(random.random(size) < 0.1, 3.0, 0.0),
        "equal": lambda: np.full(size, -7.5),
        "one finite": lambda: np.where(np.arange(size) == size // 2, 0.0, -np.inf),
        "subnormal": lambda: random.normal(size=size) * 1e-40,
    }[kind]().astype(np.float32)
