"""The factors and biases that the kernels take for each class of norm.

Shapes: ``H`` features that are normalized together: hidden_size, those of a head, or those of all heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama.model.families.olmo2 import Olmo2Norm
from bpe_llama.model.families.stablelm import NormPerHead
from bpe_llama.model.layers.norm import LayerNorm, RMSNorm, ZeroCenteredRMSNorm


def _factors_and_biases(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the factors and biases of LayerNorm side by side, float32 (H, 2)."""
    weight = weight.float()
    return torch.stack((weight, torch.zeros_like(weight) if bias is None else bias.float()), dim=-1)


NORMS: dict[type[nn.Module], Callable[[Tensor, Tensor | None], Tensor]] = {
    RMSNorm: lambda weight, bias: weight,
    Olmo2Norm: lambda weight, bias: weight.float().clone(),
    ZeroCenteredRMSNorm: lambda weight, bias: 1.0 + weight.float(),
    LayerNorm: _factors_and_biases,
    nn.LayerNorm: _factors_and_biases,
}
"""The function from a norm's weights and biases to the weight of `Norm`, by the class of the norm."""


NORM_CLASSES = (RMSNorm, LayerNorm, nn.LayerNorm)
"""The base classes of all norms. A subclass that is not in `NORMS` is not supported."""


class Norm:
    """RMSNorm with one factor for each feature, or LayerNorm with one factor and one bias for each feature.

    Args:
        module: A norm of a class in `NORMS`.
        head: The row of the module's weights, if each head has its own.

    Attributes:
        is_copy: Whether the weight is computed from the parameters, and does not share their memory.
        eps: The epsilon.
    """

    def __init__(self, module: Any, head: int | None = None) -> None:
        self.module, self.head = module, head
        self.is_copy = type(module) is not RMSNorm
        self.eps: float = module.eps

    @cached_property
    def weight(self) -> Tensor:
        """Return the factors of RMSNorm, (H,), or the factors and biases of LayerNorm, float32 (H, 2).

        Factors with the dtype of the activations multiply the normalized value after it is rounded to that dtype, as in
        `RMSNorm`. With float32 factors only the product is rounded.
        """
        return self._computed()

    @property
    def is_layer_norm(self) -> bool:
        """Return whether the mean is subtracted first."""
        return isinstance(self.module, LayerNorm | nn.LayerNorm)

    def refresh(self) -> None:
        """Compute the weight anew from the parameters, if it does not share their memory."""
        if self.is_copy:
            self.weight.copy_(self._computed())

    def _computed(self) -> Tensor:
        weight, bias = self.module.weight.detach(), getattr(self.module, "bias", None)
        weight = weight if self.head is None else weight[self.head]
        return NORMS[type(self.module)](weight, None if bias is None else bias.detach())


def norm_modules(module: nn.Module) -> list[nn.Module]:
    """Return the norms in a module: the module itself, or one for each head."""
    return list(module.norms) if isinstance(module, NormPerHead) else [module]


def norms_of_heads(module: nn.Module, columns: slice) -> list[tuple[slice, Norm]]:
    """Return the norms of queries or keys, each with the columns that it normalizes in groups.

    There is one norm for all columns, unless each head has its own weights.

    Args:
        module: The norm of queries or of keys.
        columns: The columns of the queries or keys of all heads.

    Example:
        >>> [columns for columns, _ in norms_of_heads(LayerNorm((2, 4), 1e-5), slice(8, 16))]
        [slice(8, 12, None), slice(12, 16, None)]
    """
    norms = [Norm(part) for part in norm_modules(module)]
    own_rows = norms[0].module.weight.ndim == 2
    if own_rows:
        norms = [Norm(module, head) for head in range(len(norms[0].module.weight))]
    width = (columns.stop - columns.start) // len(norms)
    starts = range(columns.start, columns.stop, width)
    return [(slice(start, start + width), norm) for start, norm in zip(starts, norms, strict=True)]
