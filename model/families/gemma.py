"""Gemma: norms with the factor ``1 + weight``, GELU, embeddings multiplied by ``sqrt(hidden_size)``; tied.

Source: Gemma Team 2024, arXiv:2403.08295.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.layers.embedding import ScaledEmbedding
from bpe_llama.model.layers.norm import ZeroCenteredRMSNorm
from bpe_llama.model.llama import DecoderLayer

TANH_GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """The fields of Gemma, with the defaults of transformers. A file's activation ``"gelu"`` is tanh GELU."""

    vocab_size: int = 256_000
    hidden_size: int = 3072
    intermediate_size: int = 24_576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int | None = 256
    hidden_act: str = TANH_GELU
    max_position_embeddings: int = 8192
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    model_type: str = "gemma"

    ACTIVATIONS: ClassVar[tuple[str, ...]] = (TANH_GELU, "silu", "swish")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``; transformers 4 reads ``hidden_activation``."""
        return super().to_dict() | {"hidden_activation": self.hidden_act}


class GemmaLayer(DecoderLayer):
    """A layer with Gemma's norms."""

    norm_class = ZeroCenteredRMSNorm


def scaled_embedding(config: LlamaConfig) -> ScaledEmbedding:
    """Return the embedding of a config, which is multiplied by the square root of its width."""
    return ScaledEmbedding(config, config.hidden_size**0.5)


def with_activation(values: Mapping[str, Any], read: str, ignored: str) -> dict[str, Any]:
    """Return a file with ``hidden_act``, of which one key of the two that may state it is read.

    Warns:
        UserWarning: If the other key states another activation.
    """
    stated = TANH_GELU if values.get(read) is None else values[read]
    other = values.get(ignored)
    if other not in (stated, "gelu", None):
        warnings.warn(
            f"{ignored} is {shown(other)}, but transformers' {values['model_type']} reads {read} alone: the "
            f"activation is {stated!r}, and so it is here",
            stacklevel=6,
        )
    return {key: value for key, value in values.items() if key not in (read, ignored)} | {"hidden_act": stated}


def _prepare(values: Mapping[str, Any]) -> dict[str, Any]:
    names = ("hidden_act", "hidden_activation")
    meant = {name: TANH_GELU for name in names if values.get(name) == "gelu"}
    return with_activation({**values, **meant}, *names)


GGUF_FIXED = {"tie_word_embeddings": True, "attention_bias": False}
"""Fields that llama.cpp's Gemma 1 and 2 have no choice of."""

register(
    Family(
        "gemma",
        "Gemma",
        GemmaConfig,
        GemmaLayer,
        embedding=scaled_embedding,
        prepare=_prepare,
        biases=("attention_bias",),
        has_window=False,
        gguf=GGUFLayout("gemma", fixed=GGUF_FIXED, norm_offset=1.0),
    )
)
