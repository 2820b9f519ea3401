"""Tensors that several ranks hold a part of each (DTensor, by FSDP2)."""

from __future__ import annotations

from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this rank holds; a plain tensor as it is. It shares its memory."""
    to_local = getattr(tensor, "to_local", None)  # DTensor's; its import takes a second
    part: Tensor = tensor if to_local is None else to_local()
    return part


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights of a model are parts of sharded tensors."""
    return any(hasattr(weight, "to_local") for weight in model.parameters())
