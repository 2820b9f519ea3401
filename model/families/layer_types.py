"""Configs in which ``layer_types`` says which layers have the sliding window; several families share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_flag
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT
from bpe_llama.model.rope_parameters import PARAMETERS, check_rope_parameters, merge_rope

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class LayerTypesConfig(LlamaConfig):
    """A config with the type of each layer.

    ``layer_types`` has ``"full_attention"`` or ``"sliding_attention"`` for each layer; the latter has the window
    ``sliding_window``.

    Raises:
        ValueError: If there is not one known type for each layer, or a sliding layer and no window.
    """

    layer_types: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        types = self.default_layer_types() if self.layer_types is None else self.layer_types
        if not isinstance(types, list | tuple) or len(types) != self.num_hidden_layers:
            raise ValueError(f"layer_types is {types!r:.100}; expected one type for each of num_hidden_layers")
        unknown = next((kind for kind in types if kind not in (FULL, SLIDING)), None)
        if unknown is not None:
            raise ValueError(f"layer_types names {unknown!r}; expected {FULL!r} or {SLIDING!r}")
        if SLIDING in types and self.sliding_window is None:
            raise ValueError(f"layer_types names {SLIDING!r}, but sliding_window is None; expected a number of tokens")
        object.__setattr__(self, "layer_types", list(types))

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them."""
        return [FULL if self.sliding_window is None else SLIDING] * self.num_hidden_layers

    def replace(self, **changes: Any) -> LlamaConfig:
        """Return a copy with some values changed; types that follow from the other values follow from the new ones."""
        if self.layer_types == self.default_layer_types():
            changes.setdefault("layer_types", None)
        return super().replace(**changes)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Return the sliding window of each layer in tokens; None attends to all."""
        return tuple(self.sliding_window if kind == SLIDING else None for kind in self.layer_types or ())


@dataclass(frozen=True)
class UpperWindowConfig(LayerTypesConfig):
    """A config in which the layers from ``max_window_layers`` on have the window, if ``use_sliding_window`` is true."""

    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28

    def __post_init__(self) -> None:
        check_flag("use_sliding_window", self.use_sliding_window)
        if type(self.max_window_layers) is not int or self.max_window_layers < 0:
            raise ValueError(f"max_window_layers is {self.max_window_layers!r}; expected an integer of at least 0")
        if not self.use_sliding_window:
            object.__setattr__(self, "sliding_window", None)
        super().__post_init__()

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them."""
        layers = range(self.num_hidden_layers)
        return [SLIDING if self.sliding_window and layer >= self.max_window_layers else FULL for layer in layers]


def checked_local_rope(
    config: LlamaConfig, parameters: Mapping[str, Any] | None, default_theta: float
) -> dict[str, Any]:
    """Return the checked RoPE parameters of layers with the window, in a family that has others for the rest.

    Raises:
        ValueError: If a parameter is unknown or out of range, or the type depends on the length of the sequence.
    """
    rope = merge_rope(parameters, None, None, default_theta)
    if rope["rope_type"] not in (types := [name for name in PARAMETERS if name not in LENGTH_DEPENDENT]):
        raise ValueError(f"rope_type of {SLIDING!r} is {rope['rope_type']!r}; expected one of {', '.join(types)}")
    known = PARAMETERS[rope["rope_type"]] - {"partial_rotary_factor"}
    unknown = next((name for name in rope if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{unknown} of {SLIDING!r} is {rope[unknown]!r}, which rope_type {rope['rope_type']!r} lacks")
    if "original_max_position_embeddings" in known:
        rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    check_rope_parameters(rope, config.head_size)
    return rope
