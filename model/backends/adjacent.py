"""Weights that are adjacent in memory, so that one product serves the linear layers that share an input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def adjacent(weights: Sequence[Tensor]) -> Tensor | None:
    """Return one matrix over several that are adjacent in memory, sharing it; None if they are not.

    Example:
        >>> whole = torch.arange(12.0).view(6, 2)
        >>> adjacent([whole[:2], whole[2:5]]).shape
        torch.Size([5, 2])
        >>> adjacent([whole[:2], whole[3:]]) is None
        True
    """
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        same_kind = weight.dtype == first.dtype and weight.shape[1:] == first.shape[1:]
        if not (same_kind and weight.is_contiguous() and weight.data_ptr() == end):
            return None
        end += weight.numel() * weight.element_size()
    if end - first.data_ptr() > first.untyped_storage().nbytes() - first.storage_offset() * first.element_size():
        return None  # adjacent by chance: each has storage of its own
    rows = sum(weight.shape[0] for weight in weights)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def make_adjacent(weights: Sequence[Tensor]) -> Tensor:
    """Return one matrix over several, which share its memory from then on; they are moved if they are not adjacent.

    Example:
        >>> first, second = torch.zeros(2, 3), torch.ones(4, 3)
        >>> make_adjacent([first, second]).shape, second.storage_offset()
        (torch.Size([6, 3]), 6)
    """
    whole = adjacent(weights)
    if whole is None:
        whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, torch.split(whole, [len(weight) for weight in weights]), strict=True):
            weight.data = part
    return whole
