"""Shapes of the small models that tests share. Their weights are large enough for mistakes to show."""

from __future__ import annotations

from typing import Any

import torch

from bpe_llama.model import LlamaConfig, LlamaForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
"""Fields of a config for comparisons with other tools."""

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
"""Fields of a config for what only has to run."""


def small_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**(SMALL | changes))


def small_model(seed: int = 1, **changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(small_config(**changes), seed=seed).eval()


def tiny_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**(TINY | changes))


def tiny_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny_config(**changes), seed=seed).eval()


@torch.no_grad()
def perturb_vectors(model: torch.nn.Module) -> None:
    """Add noise to norms and biases: ones and zeros would hide a mistake."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or "norm" in name:
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2
