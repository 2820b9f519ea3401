"""What `bpe_llama.model.config_json` needs to know of a model family."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What transformers' class of a ``model_type`` computes, and its defaults.

    Attributes:
        name: The ``model_type``.
        read_window: Called with the fields and the file; sets the field ``sliding_window``.
        defaults: Of the keys that a file leaves out, where they differ from `LlamaConfig`'s.
        rope_theta: The default of this parameter.
        has_biases: Whether ``attention_bias`` and ``mlp_bias`` are computed.
        has_experts: Whether the MLP is a mixture of experts.
    """

    name: str
    read_window: Callable[[dict[str, Any], Mapping[str, Any]], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rope_theta: float = 10_000.0
    has_biases: bool = False
    has_experts: bool = False


def window_of_all_layers(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Leave ``sliding_window`` as it is; warn if a key that the family's class does not read restricts it."""
    window = fields.get("sliding_window")
    stated = values.get("use_sliding_window") is False or values.get("max_window_layers") or values.get("layer_types")
    if window is not None and stated:
        unread = next(
            key for key in ("use_sliding_window", "max_window_layers", "layer_types") if values.get(key) is not None
        )
        warnings.warn(
            f"{unread} is {values[unread]!r:.100}, but transformers' {values['model_type']} does not read it: all "
            f"layers attend to sliding_window ({window}) tokens, and so they do here; set sliding_window to null for "
            "none",
            stacklevel=6,
        )
