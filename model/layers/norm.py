"""RMSNorm and LayerNorm.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.layers import fused


class RMSNorm(nn.Module):
    """Divides each vector by its root mean square, and multiplies each feature by a weight.

    The root mean square is computed in float32. The quotient is rounded to the input's dtype before it is multiplied
    by the weight, as in Meta's and Hugging Face's code.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.

    Example:
        >>> RMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0])).mul(12.5**0.5).round().tolist()
        [3.0, 4.0]
    """

    initial: ClassVar[float] = 1.0
    """The value of all weights before training."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), self.initial))
        self.eps = eps

    def normalized(self, x_BTD: Tensor) -> Tensor:
        """Return the input divided by its root mean square, float32."""
        x = x_BTD.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the normalized input, same shape and dtype."""
        if fused.is_used(x_BTD, self.weight):
            return fused.rms_norm(x_BTD, self.weight, self.eps)
        return self.weight * self.normalized(x_BTD).to(x_BTD.dtype)

    def extra_repr(self) -> str:
        """Return the text that ``print(model)`` shows for this layer."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class ZeroCenteredRMSNorm(RMSNorm):
    """RMSNorm with the factor ``1 + weight``, so that weights begin at 0.

    The product is computed in float32 and rounded once to the input's dtype; `RMSNorm` rounds the quotient, too.

    Source: Gemma Team 2024, arXiv:2403.08295; https://github.com/google/gemma_pytorch, ``gemma/model.py``, ``RMSNorm``.

    Example:
        >>> ZeroCenteredRMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0])).mul(12.5**0.5).round().tolist()
        [3.0, 4.0]
    """

    initial = 0.0

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the normalized input, same shape and dtype."""
        return (self.normalized(x_BTD) * (1.0 + self.weight.float())).to(x_BTD.dtype)


class LayerNorm(nn.Module):
    """Subtracts each vector's mean, divides by its standard deviation, and multiplies by a weight; there is no bias.

    All is computed in float32 and rounded once to the input's dtype.

    Args:
        size: The shape of the weight, which is broadcast to the input. The last dimension is normalized alone.
        eps: Added to the variance.

    Source: Ba et al. 2016, arXiv:1607.06450.

    Example:
        >>> LayerNorm(2, eps=0.0)(torch.tensor([3.0, 5.0])).tolist()
        [-1.0, 1.0]
    """

    def __init__(self, size: int | tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized input, same shape and dtype."""
        normed = functional.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (normed * self.weight.float()).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the text that ``print(model)`` shows for this layer."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"
