"""What Cohere and StableLM share: LayerNorm's epsilon, and attention and feed-forward block side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class LayerNormConfig(LlamaConfig):
    """A config with ``layer_norm_eps``, the epsilon of all norms.

    Raises:
        ValueError: If it is out of range, or there is an ``rms_norm_eps``.
    """

    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        self._fill_floats("layer_norm_eps")
        if self.rms_norm_eps != LlamaConfig.rms_norm_eps:
            raise ValueError(
                f"rms_norm_eps is {self.rms_norm_eps}, but model_type {self.model_type!r} has LayerNorm; "
                "expected layer_norm_eps alone"
            )
        super().__post_init__()

    @property
    def norm_eps(self) -> float:
        """Return the epsilon of the norms."""
        return self.layer_norm_eps


class ParallelLayer(DecoderLayer):
    """A layer in which attention and feed-forward block have the same normalized input, and both outputs are added.

    Source: Wang and Komatsuzaki 2021, https://github.com/kingoflolz/mesh-transformer-jax (GPT-J).
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.post_attention_layernorm

    def forward(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return the hidden states after this layer, (B, T, D)."""
        normed_BTD = self.input_layernorm(x_BTD)
        attention_BTD: Tensor = self.self_attn(normed_BTD, *context)
        return x_BTD + attention_BTD + self.feed_forward(normed_BTD)
