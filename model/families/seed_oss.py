"""Seed-OSS: queries, keys and values have biases, the attention output if ``attention_out_bias``; residual dropout.

Source: ByteDance Seed team 2025, https://github.com/ByteDance-Seed/seed-oss.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_flag, check_probability
from bpe_llama.model.families.residual_dropout import ResidualDropoutLayer
from bpe_llama.model.family import Family, GGUFLayout, register


@dataclass(frozen=True)
class SeedOssConfig(LlamaConfig):
    """The fields of Seed-OSS, with the defaults of transformers."""

    vocab_size: int = 155_136
    intermediate_size: int = 27_648
    num_hidden_layers: int = 64
    num_attention_heads: int = 80
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 524_288
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    attention_bias: bool = True
    attention_dropout: float = 0.1
    model_type: str = "seed_oss"
    attention_out_bias: bool = False
    residual_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_flag, "attention_out_bias")
        self._check(check_probability, "residual_dropout")

    @property
    def attention_biases(self) -> tuple[bool, bool]:
        """Return whether queries, keys and values have biases, and whether the attention output has one."""
        return self.attention_bias, self.attention_out_bias


register(
    Family(
        "seed_oss",
        "SeedOss",
        SeedOssConfig,
        ResidualDropoutLayer,
        ignored=frozenset({"pretraining_tp"}),
        biases=("attention_bias", "mlp_bias"),
        has_window=False,
        gguf=GGUFLayout(
            "seed_oss",
            {"post_attention_norm": "post_attention_layernorm"},
            fixed={"mlp_bias": False, "attention_out_bias": False},
            unstored=frozenset({"residual_dropout"}),
        ),
    )
)
