"""Mistral: a sliding window in all layers, or in none of them; no biases.

Source: Jiang et al. 2023, arXiv:2310.06825.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.families.llama import LLAMA_GGUF
from bpe_llama.model.family import Family, register, window_of_all_layers
from bpe_llama.model.llama import DecoderLayer


def _window(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    layer_types = values.get("layer_types")
    if layer_types is None:
        window_of_all_layers(fields, values)
        return
    # transformers loads such a file as a Ministral.
    layers = fields.get("num_hidden_layers", 32)
    if not isinstance(layer_types, list) or len(set(map(str, layer_types))) != 1 or len(layer_types) != layers:
        raise ValueError(
            f"layer_types is {layer_types!r:.100}; expected one type for each of num_hidden_layers, all the same"
        )
    if layer_types[0] not in ("full_attention", "sliding_attention"):
        raise ValueError(f"layer_types names {layer_types[0]!r}; expected 'full_attention' or 'sliding_attention'")
    if layer_types[0] == "full_attention":
        fields["sliding_window"] = None


register(
    Family(
        "mistral",
        "Mistral",
        LlamaConfig,
        DecoderLayer,
        read=_window,
        defaults={
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
        gguf=LLAMA_GGUF,
    )
)
