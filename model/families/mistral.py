"""Mistral: a sliding window in all layers, or in none of them; no biases. With ``layer_types`` see `ministral`.

Source: Jiang et al. 2023, arXiv:2310.06825.
"""

from __future__ import annotations

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.families.llama import LLAMA_GGUF
from bpe_llama.model.family import Family, register, window_of_all_layers
from bpe_llama.model.llama import DecoderLayer

register(
    Family(
        "mistral",
        "Mistral",
        LlamaConfig,
        DecoderLayer,
        read=window_of_all_layers,
        defaults={
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
        gguf=LLAMA_GGUF,
    )
)
