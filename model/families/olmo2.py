"""OLMo 2: RMSNorm after attention and MLP instead of before them, and over all queries and keys of a token.

Source: OLMo team 2024, arXiv:2501.00656, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.family import HEAD_NORMS, Family, GGUFLayout, register
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class Olmo2Config(LlamaConfig):
    """The fields of OLMo 2, with the defaults of transformers."""

    vocab_size: int = 50_304
    rms_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 50_279
    model_type: str = "olmo2"


class Olmo2Norm(RMSNorm):
    """RMSNorm that rounds to the input's dtype after the multiplication by the weight, not before it."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the normalized input, same shape and dtype."""
        return (self.weight * self.normalized(x_BTD)).to(x_BTD.dtype)


class Olmo2Attention(Attention):
    """Attention with RMSNorm over the queries of all heads of a token, and over the keys, before they are rotated."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = Olmo2Norm(config.num_attention_heads * self.head_dim, config.norm_eps)
        self.k_norm = Olmo2Norm(config.kv_heads * self.head_dim, config.norm_eps)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalized queries (B, N, T, H) and keys, and values (B, K, T, H)."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        query_BNTH = self.q_norm(self.q_proj(x_BTD)).view(heads).transpose(1, 2)
        key_BKTH = self.k_norm(self.k_proj(x_BTD)).view(heads).transpose(1, 2)
        return query_BNTH, key_BKTH, self.v_proj(x_BTD).view(heads).transpose(1, 2)


class Olmo2Layer(DecoderLayer):
    """A layer that normalizes what attention and MLP add to the hidden states."""

    attention_class = Olmo2Attention
    norm_class = Olmo2Norm

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.input_layernorm
        self.post_feedforward_layernorm = self.norm_class(config.hidden_size, config.norm_eps)

    def attention_branch(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return what attention adds to the hidden states, (B, T, D)."""
        return self.post_attention_layernorm(self.self_attn(x_BTD, *context))

    def mlp_branch(self, x_BTD: Tensor) -> Tensor:
        """Return what the MLP adds to the hidden states, (B, T, D)."""
        return self.post_feedforward_layernorm(self.feed_forward(x_BTD))


OLMO_MODULES = HEAD_NORMS | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""The tensors in which llama.cpp's OLMo 2 and 3 differ from LLaMA, and their modules."""
OLMO_FIXED = {"attention_bias": False, "tie_word_embeddings": False}
WINDOW = "attention.sliding_window"
"""The key that files of OLMo 3 have, and those of OLMo 2 lack."""

register(
    Family(
        "olmo2",
        "Olmo2",
        Olmo2Config,
        Olmo2Layer,
        biases=("attention_bias",),
        has_window=False,
        gguf=GGUFLayout(
            "olmo2",
            OLMO_MODULES,
            fixed=OLMO_FIXED,
            head_key=None,
            fits=lambda metadata, shapes: WINDOW not in metadata,
        ),
    )
)
