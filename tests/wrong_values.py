"""Values of the wrong type or size, which every public function must refuse with one of a few kinds of errors."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch


class Long(list):  # type: ignore[type-arg]
    """A list that lies about its length."""

    def __len__(self) -> int:
        return 1 << 62


COMMON: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "2**64": 2**64,
    "10**5000": 10**5000,  # Python shows no int of more than 4300 digits
    "1.5": 1.5,
    "nan": float("nan"),
    "bytes": b"\xff",
    "text": "no such thing",
    "long text": "y" * 100_000,
    "object": object(),
    "deep": reduce(lambda inner, _: [inner], range(5000), []),  # its `repr` raises RecursionError
    "no numbers": torch.zeros(2, device="meta"),
}
RAISED = (ValueError, TypeError, MemoryError, KeyError, OSError)
