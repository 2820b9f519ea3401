"""Qwen 2 and 2.5: biases of queries, keys and values, none of the output; upper layers may have a window.

DeepSeek-R1-Distill-Qwen is such a model.

Source: Yang et al. 2024, arXiv:2407.10671; arXiv:2412.15115 (2.5).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.config_values import check_count, check_flag
from bpe_llama.model.families.layer_types import FULL, SLIDING, LayerTypesConfig
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.llama import DecoderLayer

CHUNKS = "dual_chunk_attention_config"


@dataclass(frozen=True)
class QwenConfig(LayerTypesConfig):
    """The fields that Qwen 2 and 3 share, with the defaults of transformers.

    The layers from ``max_window_layers`` on have the window, if ``use_sliding_window`` is true.
    """

    vocab_size: int = 151_936
    intermediate_size: int = 22_016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32_768
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28

    def __post_init__(self) -> None:
        self._check(check_flag, "use_sliding_window")
        check_count("max_window_layers", self.max_window_layers, 0)
        if not self.use_sliding_window:
            object.__setattr__(self, "sliding_window", None)
        super().__post_init__()

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them."""
        layers = range(self.num_hidden_layers)
        return [SLIDING if self.sliding_window and layer >= self.max_window_layers else FULL for layer in layers]


@dataclass(frozen=True)
class Qwen2Config(QwenConfig):
    """The fields of Qwen 2, with the defaults of transformers."""

    model_type: str = "qwen2"

    @property
    def attention_biases(self) -> tuple[bool, bool]:
        """Return that queries, keys and values have biases, and the attention output has none."""
        return True, False


def _whole_attention(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    if values.get(CHUNKS):
        warnings.warn(
            f"{CHUNKS} is {shown(values[CHUNKS])}, but transformers' qwen2 does not read it: the positions of long "
            "prompts are not split into chunks, and so it is here",
            stacklevel=6,
        )


register(
    Family(
        "qwen2",
        "Qwen2",
        Qwen2Config,
        DecoderLayer,
        read=_whole_attention,
        ignored=frozenset({CHUNKS, "attention_bias"}),
        gguf=GGUFLayout("qwen2", head_key=None),
    )
)
