"""What a family does with the product of hidden states and the head's weights.

Adapters and quantized layers replace the product alone.

Shapes: ``B`` batch, ``T`` length, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Finish = Callable[[Tensor], Tensor]
"""Takes the product, (..., V), and returns the logits."""


@dataclass(frozen=True)
class Scale:
    """Multiplies the product by a constant.

    Example:
        >>> import torch
        >>> Scale(0.5)(torch.tensor([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """

    factor: float

    def __call__(self, product_BTV: Tensor) -> Tensor:
        """Return the logits, same shape and dtype."""
        return product_BTV * self.factor


@dataclass(frozen=True)
class SoftCap:
    """Bounds the product smoothly: ``cap * tanh(product / cap)``.

    Source: Gemma Team 2024, arXiv:2408.00118, section 2.

    Example:
        >>> import torch
        >>> SoftCap(30.0)(torch.tensor([0.0, 1e9])).tolist()
        [0.0, 30.0]
    """

    cap: float

    def __call__(self, product_BTV: Tensor) -> Tensor:
        """Return the logits, same shape and dtype."""
        return torch.tanh(product_BTV / self.cap) * self.cap
