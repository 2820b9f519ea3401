"""Several models over one set of weights."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def copy_sharing_weights(model: AnyModel) -> AnyModel:
    """Return a copy of a model with the same parameters and buffers, not copies of them, and modules of its own.

    An adapter that is added to the copy changes the copy alone, so a server holds a model once and each adapter once.
    Adapters must not be merged into shared weights, and training either model changes both.

    Example:
        >>> base = nn.Sequential(nn.Linear(2, 2))
        >>> other = copy_sharing_weights(base)
        >>> other[0].weight is base[0].weight, other[0] is base[0]
        (True, False)
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
