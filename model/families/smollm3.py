"""SmolLM3: every fourth layer has no RoPE (NoPE); the sliding window of ``use_sliding_window`` is in those layers.

Source: Bakouch et al. 2025, https://huggingface.co/blog/smollm3; Yang et al. 2025, arXiv:2501.18795 (NoPE layers).
"""

from __future__ import annotations

from dataclasses import dataclass

from bpe_llama._core import shown
from bpe_llama.model.families.layer_types import FULL, SLIDING, RotatedLayersConfig
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class SmolLM3Config(RotatedLayersConfig):
    """The fields of SmolLM3, with the defaults of transformers.

    Raises:
        ValueError: If ``layer_types`` names a sliding layer although ``use_sliding_window`` is false.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sliding_window and SLIDING in (self.layer_types or ()):
            raise ValueError(
                f"layer_types names {shown(SLIDING)}, but use_sliding_window is false, and the attention backends of "
                "transformers disagree on such a file; expected both or neither"
            )

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them: layers without RoPE have the window."""
        windowed = self.use_sliding_window and self.sliding_window is not None
        return [SLIDING if windowed and not rotated else FULL for rotated in self.rotated_layers]


register(
    Family(
        "smollm3",
        "SmolLM3",
        SmolLM3Config,
        DecoderLayer,
        ignored=frozenset({"pretraining_tp"}),  # the published files have 2
        rope_theta=2_000_000.0,
        biases=("attention_bias", "mlp_bias"),
        gguf=GGUFLayout("smollm3", fixed={"attention_bias": False, "mlp_bias": False}, interleaved=True),
    )
)
