"""LLaMA: biases are optional, and a sliding window is ignored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.llama import DecoderLayer


def _no_window(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    window, layer_types = fields.get("sliding_window"), values.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise ValueError(f"layer_types is {shown(layer_types)}; expected a list of one type for each layer")
    stated = window is not None and values.get("use_sliding_window") is not False
    if stated or any(layer_type != "full_attention" for layer_type in layer_types or ()):
        warnings.warn(
            f"sliding_window is {shown(window)}, but transformers' llama attends to all tokens, and so does this "
            "model; a window needs model_type 'mistral'",
            stacklevel=6,
        )
    fields["sliding_window"] = None


LLAMA_GGUF = GGUFLayout(
    "llama",
    modules={
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    },
    aliases=("mistral3",),  # the text model of Mistral Small 3, without the temperature of Ministral 3
    interleaved=True,
    rope_types=("default", "linear", "yarn", "llama3"),
)
"""llama.cpp's architecture of LLaMA, Mistral, Mixtral, and Ministral without windows."""

register(
    Family(
        "llama",
        "Llama",
        LlamaConfig,
        DecoderLayer,
        read=_no_window,
        biases=("attention_bias", "mlp_bias"),
        gguf=LLAMA_GGUF,
    )
)
