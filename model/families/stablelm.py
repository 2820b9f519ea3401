"""StableLM: LayerNorm with a bias, a quarter of each head is rotated; biases, normalized heads, parallel blocks by key.

Source: Tow et al. 2023, https://huggingface.co/stabilityai/stablelm-3b-4e1t; Bellagente et al. 2024, arXiv:2402.17834.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.config_values import check_flag, check_probability
from bpe_llama.model.families.parallel import LayerNormConfig, ParallelLayer
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class StableLmConfig(LayerNormConfig):
    """The fields of StableLM, with the defaults of transformers.

    Raises:
        TypeError: If a switch is neither true nor false.
        ValueError: If heads are not ``hidden_size / num_attention_heads`` wide.
    """

    vocab_size: int = 50_304
    hidden_size: int = 2560
    intermediate_size: int = 6912
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    hidden_dropout: float = 0.0
    model_type: str = "stablelm"

    PARTIAL_ROTARY_FACTOR: ClassVar[float] = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_flag, "use_qkv_bias", "qk_layernorm", "use_parallel_residual")
        self._check(check_probability, "hidden_dropout")
        if self.head_size * self.num_attention_heads != self.hidden_size:
            raise ValueError(
                f"head_dim is {self.head_dim}; model_type 'stablelm' has hidden_size / num_attention_heads "
                f"({self.hidden_size} / {self.num_attention_heads})"
            )

    @property
    def attention_biases(self) -> tuple[bool, bool]:
        """Return whether queries, keys and values have biases, and whether the attention output has one."""
        return self.use_qkv_bias, False


class NormPerHead(nn.Module):
    """LayerNorm without a bias over each head, with weights of its own for each."""

    def __init__(self, heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size, eps, bias=False) for _ in range(heads))

    def forward(self, x_BNTH: Tensor) -> Tensor:
        """Return the normalized heads, same shape and dtype."""
        return torch.cat(
            [norm(head) for norm, head in zip(self.norms, torch.split(x_BNTH, 1, dim=1), strict=True)], dim=1
        )


class StableLmAttention(Attention):
    """Attention with normalized queries and keys if ``qk_layernorm``."""

    def __init__(self, config: StableLmConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_layernorm: nn.Module | None = None
        self.k_layernorm: nn.Module | None = None
        if config.qk_layernorm:
            self.q_layernorm = NormPerHead(config.num_attention_heads, self.head_dim, config.norm_eps)
            self.k_layernorm = NormPerHead(config.kv_heads, self.head_dim, config.norm_eps)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, N, T, H), keys and values (B, K, T, H), before they are rotated."""
        query_BNTH, key_BKTH, value_BKTH = super().project(x_BTD)
        if self.q_layernorm is not None and self.k_layernorm is not None:
            query_BNTH, key_BKTH = self.q_layernorm(query_BNTH), self.k_layernorm(key_BKTH)
        return query_BNTH, key_BKTH, value_BKTH


class StableLmLayer(ParallelLayer):
    """A layer with parallel blocks if ``use_parallel_residual``, else with one after the other."""

    attention_class = StableLmAttention
    norm_class = nn.LayerNorm

    def __init__(self, config: StableLmConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.blocks = ParallelLayer if config.use_parallel_residual else DecoderLayer
        self.residual_dropout = config.hidden_dropout
        if not config.use_parallel_residual:
            self.post_attention_layernorm = self.norm_class(config.hidden_size, config.norm_eps)

    def forward(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return the hidden states after this layer, (B, T, D)."""
        return self.blocks.forward(self, x_BTD, *context)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Return the output of the MLP, (B, T, D), with features dropped in training."""
        return functional.dropout(super().feed_forward(x_BTD), self.residual_dropout, self.training)


def _prepare(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file without ``rope_pct``, which transformers does not read, where it says the same."""
    stated = values.get("partial_rotary_factor", StableLmConfig.PARTIAL_ROTARY_FACTOR)
    if isinstance(rope := values.get("rope_parameters"), Mapping):
        stated = rope.get("partial_rotary_factor", stated)
    return {key: value for key, value in values.items() if (key, value) != ("rope_pct", stated)}


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]) -> None:
    fields["use_qkv_bias"] = "blk.0.attn_q.bias" in names
    fields["qk_layernorm"] = "blk.0.attn_q_norm.weight" in names
    fields["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in names  # so llama.cpp does, whatever the key says


register(
    Family(
        "stablelm",
        "StableLm",
        StableLmConfig,
        StableLmLayer,
        prepare=_prepare,
        has_partial_rotary=True,
        has_window=False,
        gguf=GGUFLayout(
            "stablelm",
            {"attn_q_norm": "self_attn.q_layernorm.norms.{}", "attn_k_norm": "self_attn.k_layernorm.norms.{}"},
            keys={"attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
            absent={"use_parallel_residual": None},
            fixed={"tie_word_embeddings": False},
            head_key=None,
            unstored=frozenset({"hidden_dropout"}),
            read=_read_gguf,
        ),
    )
)
