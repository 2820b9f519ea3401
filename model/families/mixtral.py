"""Mixtral: a mixture of experts instead of the MLP; no biases.

Source: Jiang et al. 2024, arXiv:2401.04088.
"""

from __future__ import annotations

from torch import Tensor

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.families.llama import LLAMA_GGUF
from bpe_llama.model.family import Family, register, window_of_all_layers
from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.llama import DecoderLayer


class MixtralLayer(DecoderLayer):
    """A layer with a mixture of experts as its feed-forward block."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.mlp
        self.block_sparse_moe = MixtureOfExperts(config)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Return the output of the mixture of experts, (B, T, D)."""
        return self.block_sparse_moe(x_BTD)


register(
    Family(
        "mixtral",
        "Mixtral",
        LlamaConfig,
        MixtralLayer,
        read=window_of_all_layers,
        defaults={
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "num_local_experts": 8,
        },
        rope_theta=1_000_000.0,
        has_experts=True,
        gguf=LLAMA_GGUF,
    )
)
