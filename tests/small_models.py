"""Small models for parity tests."""

from __future__ import annotations

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
"""Fields of a config whose weights are large enough for mistakes to show."""


@torch.no_grad()
def perturb_vectors(model: torch.nn.Module) -> None:
    """Add noise to norms and biases: ones and zeros would hide a mistake."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2
