"""Command-R and Aya: LayerNorm without a bias, parallel blocks, interleaved RoPE, scaled logits, a tied head.

Source: https://huggingface.co/CohereForAI/c4ai-command-r-v01; Dehghani et al. 2023, arXiv:2302.05442 (query norm).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bpe_llama.model.config_values import check_flag
from bpe_llama.model.families.parallel import LayerNormConfig, ParallelLayer
from bpe_llama.model.family import HEAD_NORMS, Family, GGUFLayout, register
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.logits import Scale
from bpe_llama.model.layers.norm import LayerNorm
from bpe_llama.model.layers.rope import Rotation, apply_interleaved_rope

OF_THE_FIRST_CODE = frozenset(
    (
        "layer_switch",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "rotary_pct",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
    )
)
"""Keys of Cohere's own code, which transformers does not read."""


@dataclass(frozen=True)
class CohereConfig(LayerNormConfig):
    """The fields of Cohere, with the defaults of transformers.

    Raises:
        TypeError: If ``use_qk_norm`` is neither true nor false.
    """

    vocab_size: int = 256_000
    hidden_size: int = 8192
    intermediate_size: int = 22_528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    max_position_embeddings: int = 8192
    bos_token_id: int | None = 5
    eos_token_id: int | list[int] | None = 255_001
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    logit_scale: float = 0.0625
    use_qk_norm: bool = False
    model_type: str = "cohere"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "use_qk_norm", self.use_qk_norm or False)  # null is false
        self._fill_floats("logit_scale")
        self._check(check_flag, "use_qk_norm")


class CohereAttention(Attention):
    """Attention with interleaved RoPE, and LayerNorm over each head of queries and keys if ``use_qk_norm``."""

    def __init__(self, config: CohereConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.use_qk_norm:
            self.q_norm = LayerNorm((config.num_attention_heads, self.head_dim), config.norm_eps)
            self.k_norm = LayerNorm((config.kv_heads, self.head_dim), config.norm_eps)

    @staticmethod
    def rotate(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
        """Return rotated queries or keys, same shape and dtype."""
        return apply_interleaved_rope(x_BNTH, rotation)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, N, T, H), keys and values (B, K, T, H), before they are rotated."""
        query_BNTH, key_BKTH, value_BKTH = super().project(x_BTD)
        if self.q_norm is not None and self.k_norm is not None:  # their weights are (N, H) and (K, H)
            query_BNTH = self.q_norm(query_BNTH.transpose(1, 2)).transpose(1, 2)
            key_BKTH = self.k_norm(key_BKTH.transpose(1, 2)).transpose(1, 2)
        return query_BNTH, key_BKTH, value_BKTH


class CohereLayer(ParallelLayer):
    """A parallel layer with LayerNorm."""

    attention_class = CohereAttention
    norm_class = LayerNorm


def scaled_logits(config: CohereConfig) -> Scale:
    """Return the function that multiplies logits by the config's ``logit_scale``."""
    return Scale(config.logit_scale)


GGUF_KEYS = {"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"}
GGUF_FIXED = {"tie_word_embeddings": True, "attention_bias": False}
"""Fields that llama.cpp's Cohere has no choice of."""


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]) -> None:
    fields["use_qk_norm"] = fields["num_hidden_layers"] >= 64  # llama.cpp's rule


def no_scaling(config: CohereConfig) -> dict[str, str]:
    """Return what a GGUF file says of RoPE's scaling."""
    return {"rope.scaling.type": "none"}


register(
    Family(
        "cohere",
        "Cohere",
        CohereConfig,
        CohereLayer,
        logits=scaled_logits,
        has_classifier=False,
        ignored=OF_THE_FIRST_CODE,
        rope_theta=500_000.0,
        biases=("attention_bias",),
        has_window=False,
        gguf=GGUFLayout(
            "command-r",
            HEAD_NORMS,
            keys=GGUF_KEYS,
            absent={"logit_scale": 1.0},
            fixed=GGUF_FIXED,
            head_key=None,
            rope_types=("default",),
            read=_read_gguf,
            write=no_scaling,
        ),
    )
)
