"""Command-R7B and Command A: as Cohere, but three layers with a window and RoPE, then one with neither.

Source: Cohere et al. 2025, arXiv:2504.00698; Yang et al. 2025, arXiv:2501.18795.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpe_llama.model.config_values import check_count
from bpe_llama.model.families.cohere import (
    GGUF_FIXED,
    GGUF_KEYS,
    OF_THE_FIRST_CODE,
    CohereConfig,
    CohereLayer,
    no_scaling,
    scaled_logits,
)
from bpe_llama.model.families.layer_types import LayerTypesConfig, full_every
from bpe_llama.model.family import Family, GGUFLayout, register


@dataclass(frozen=True)
class Cohere2Config(CohereConfig, LayerTypesConfig):  # in this order the defaults are Cohere's
    """The fields of Cohere 2, with the defaults of transformers.

    Without ``layer_types`` every layer has the window but each ``sliding_window_pattern``-th.

    Raises:
        ValueError: If ``sliding_window_pattern`` is below 1, or queries and keys are to be normalized.
    """

    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    model_type: str = "cohere2"

    def __post_init__(self) -> None:
        check_count("sliding_window_pattern", self.sliding_window_pattern, 1)
        super().__post_init__()
        if self.use_qk_norm:
            raise ValueError("use_qk_norm is true, but transformers' cohere2 has no such norm; expected false")

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them."""
        return full_every(self.sliding_window_pattern, self.num_hidden_layers)

    @property
    def rotated_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether queries and keys are rotated: if it has a window."""
        return tuple(window is not None for window in self.windows)


register(
    Family(
        "cohere2",
        "Cohere2",
        Cohere2Config,
        CohereLayer,
        logits=scaled_logits,
        has_classifier=False,
        ignored=OF_THE_FIRST_CODE,
        biases=("attention_bias",),
        gguf=GGUFLayout(
            "cohere2",
            keys=GGUF_KEYS | {"attention.sliding_window": "sliding_window"},
            fixed=GGUF_FIXED,
            head_key=None,
            window_pattern=4,
            rope_types=("default",),
            unstored=frozenset({"sliding_window_pattern"}),
            write=no_scaling,
        ),
    )
)
