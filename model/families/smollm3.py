"""SmolLM3: every fourth layer has no RoPE (NoPE); the sliding window of ``use_sliding_window`` is in those layers.

Source: Bakouch et al. 2025, https://huggingface.co/blog/smollm3; Yang et al. 2025, arXiv:2501.18795 (NoPE layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama.model.families.layer_types import FULL, SLIDING, LayerTypesConfig
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class SmolLM3Config(LayerTypesConfig):
    """The fields of SmolLM3, with the defaults of transformers.

    ``no_rope_layers`` has 1 for each layer with RoPE and 0 for each without; by default every
    ``no_rope_layer_interval``-th layer is without.

    Raises:
        ValueError: If ``no_rope_layers`` is not a list of at least one 0 or 1 for each layer, or ``layer_types`` names
            a sliding layer although ``use_sliding_window`` is false.

    Example:
        >>> SmolLM3Config(num_hidden_layers=4).rotated_layers
        (True, True, True, False)
    """

    vocab_size: int = 128_256
    hidden_size: int = 2048
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32_768
    pad_token_id: int | None = 128_004
    bos_token_id: int | None = 128_000
    eos_token_id: int | list[int] | None = 128_001
    tie_word_embeddings: bool = True
    model_type: str = "smollm3"
    use_sliding_window: bool = False
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4

    def __post_init__(self) -> None:
        layers, interval = self.num_hidden_layers, self.no_rope_layer_interval
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"no_rope_layer_interval is {interval!r}; expected an integer of at least 1")
        if self.no_rope_layers is None:
            every = [int((layer + 1) % interval != 0) for layer in range(layers)]
            object.__setattr__(self, "no_rope_layers", every)
        rotated = self.no_rope_layers
        if not isinstance(rotated, list) or len(rotated) < layers or any(one not in (0, 1) for one in rotated):
            raise ValueError(f"no_rope_layers is {rotated!r:.100}; expected 0 or 1 for each of {layers} layers")
        super().__post_init__()
        if not self.use_sliding_window and SLIDING in (self.layer_types or ()):
            raise ValueError(
                f"layer_types names {SLIDING!r}, but use_sliding_window is false, and the attention backends of "
                "transformers disagree on such a file; expected both or neither"
            )

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them: layers without RoPE have the window."""
        windowed = self.use_sliding_window and self.sliding_window is not None
        return [SLIDING if windowed and not rotated else FULL for rotated in self.rotated_layers]

    @property
    def rotated_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether queries and keys are rotated."""
        return tuple(bool(one) for one in (self.no_rope_layers or ())[: self.num_hidden_layers])


def _whole_products(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    fields.pop("pretraining_tp", None)  # the published files have 2, and transformers' class does not read it


register(
    Family(
        "smollm3",
        "SmolLM3",
        SmolLM3Config,
        DecoderLayer,
        read=_whole_products,
        rope_theta=2_000_000.0,
        biases=("attention_bias", "mlp_bias"),
        gguf=GGUFLayout("smollm3", fixed={"attention_bias": False, "mlp_bias": False}, interleaved=True),
    )
)
