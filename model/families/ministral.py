"""Ministral: Mistral in which ``layer_types`` says which layers have the sliding window.

transformers reads a file of ``model_type`` mistral that has ``layer_types`` as one of this family, and so does
`bpe_llama.model.config_json.family_of`.

Source: Mistral AI 2024, https://mistral.ai/news/ministraux.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama.model.families.layer_types import SLIDING, LayerTypesConfig
from bpe_llama.model.families.llama import LLAMA_GGUF
from bpe_llama.model.family import Family, register
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class MinistralConfig(LayerTypesConfig):
    """The fields of Ministral, with the defaults of transformers."""

    intermediate_size: int = 14_336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 4096
    model_type: str = "ministral"


def _window(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    types = fields.get("layer_types")
    if isinstance(types, list) and SLIDING in types and values.get("use_sliding_window") is False:
        warnings.warn(
            "use_sliding_window is False, but transformers' ministral does not read it: layer_types says which layers "
            "have the window, and so it does here",
            stacklevel=6,
        )


register(
    Family(
        "ministral",
        "Ministral",
        MinistralConfig,
        DecoderLayer,
        prepare=lambda values: {**values, "model_type": "ministral"},
        read=_window,
        gguf=LLAMA_GGUF,
    )
)
