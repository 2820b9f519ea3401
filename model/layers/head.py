"""A language-model head that changes its logits after the product.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Finish = Callable[[Tensor], Tensor]
"""What a head does with the product of hidden states and weights; it has no weights of its own."""


@dataclass(frozen=True)
class Scale:
    """Multiplies logits by a constant."""

    factor: float

    def __call__(self, logits_BTV: Tensor) -> Tensor:
        """Return the scaled logits, same shape and dtype."""
        return logits_BTV * self.factor


class Head(nn.Linear):
    """A linear head without a bias that finishes its product, for example by a `Scale`.

    Quantized and adapted layers that replace it finish their product, too.

    Args:
        inputs: D.
        outputs: V.
        finish: What is done with the product.
        **options: Those of `torch.nn.Linear`.

    Example:
        >>> import torch
        >>> head, hidden = Head(4, 8, Scale(0.25)), torch.ones(1, 4)
        >>> torch.equal(head(hidden), head.unfinished(hidden) * 0.25)
        True
    """

    def __init__(self, inputs: int, outputs: int, finish: Finish, **options: Any) -> None:
        super().__init__(inputs, outputs, bias=False, **options)
        self.finish = finish

    def unfinished(self, hidden_BTD: Tensor) -> Tensor:
        """Return the product of hidden states and weights, (B, T, V)."""
        return super().forward(hidden_BTD)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the logits, (B, T, V)."""
        return self.finish(self.unfinished(hidden_BTD))
