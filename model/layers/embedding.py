"""Token embeddings: ids to vectors.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bpe_llama.model.config import LlamaConfig


def token_embedding(config: LlamaConfig) -> nn.Embedding:
    """Return the embedding of a config's vocabulary, uninitialized."""
    # Without _weight, nn.Embedding initializes itself, which costs seconds of imports on the meta device.
    empty = torch.empty(config.vocab_size, config.hidden_size)
    return nn.Embedding(config.vocab_size, config.hidden_size, _weight=empty)


class ScaledEmbedding(nn.Embedding):
    """An embedding that is multiplied by a constant.

    Args:
        config: Its vocabulary and width.
        scale: The constant; it is rounded to the dtype of the weights first, as in transformers.

    Example:
        >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_attention_heads=1)
        >>> ScaledEmbedding(config, 2.0)(torch.tensor([[1, 2]])).shape
        torch.Size([1, 2, 4])
    """

    def __init__(self, config: LlamaConfig, scale: float) -> None:
        empty = torch.empty(config.vocab_size, config.hidden_size)
        super().__init__(config.vocab_size, config.hidden_size, _weight=empty)
        self.scale = scale

    def scaled(self, vectors: Tensor) -> Tensor:
        """Return vectors multiplied by the constant; those of adapters are, too."""
        return vectors * torch.tensor(self.scale, dtype=self.weight.dtype).to(vectors.dtype)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the vectors, (B, T, D)."""
        return self.scaled(super().forward(ids_BT))
