"""How far back a layer's queries attend: a sliding window, or chunks of the sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Chunked attention: a sequence is cut into chunks of ``size`` tokens, and a query attends to keys of its own.

    Source: https://github.com/meta-llama/llama-models, ``models/llama4/model.py``, ``create_chunked_attention_mask``.
    """

    size: int


Window = int | Chunk
"""A sliding window in tokens, the query's own included, or a chunk."""


def most_keys(window: Window) -> int:
    """Return the most keys that a query attends to.

    Example:
        >>> most_keys(4), most_keys(Chunk(8))
        (4, 8)
    """
    return window.size if isinstance(window, Chunk) else window


def is_near(window: Window, query: Tensor, key: Tensor, first: Tensor | int = 0) -> Tensor:
    """Return whether keys are not too far from queries, bool; later keys are not excluded.

    Args:
        window: The window or chunk of the layer.
        query: The columns of queries.
        key: The columns of keys.
        first: The column of each sequence's first token, from which chunks are counted.

    Example:
        >>> import torch
        >>> key = torch.arange(6)
        >>> is_near(3, torch.tensor(4), key).int().tolist(), is_near(Chunk(3), torch.tensor(4), key).int().tolist()
        ([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1])
    """
    if isinstance(window, Chunk):
        return (key - first) // window.size == (query - first) // window.size
    return key > query - window


def sliding_windows(windows: Iterable[Window | None]) -> list[int | None]:
    """Return the windows of layers, for a computation that knows no chunks.

    Raises:
        ValueError: If a layer has chunks.
    """
    found = list[int | None]()
    for window in windows:
        if isinstance(window, Chunk):
            raise ValueError(f"a layer has chunks of {window.size} tokens; expected a sliding window or none")
        found.append(window)
    return found
