"""What a family does with the product of hidden states and the head's weights.

Adapters and quantized layers replace the product alone.

Shapes: ``B`` batch, ``T`` length, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
