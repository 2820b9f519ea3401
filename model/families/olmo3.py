"""OLMo 3: OLMo 2 in which three of four layers have a sliding window, and RoPE without the scaling of the others.

Source: OLMo team 2025, https://allenai.org/blog/olmo3.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.families.layer_types import FULL, SLIDING, LocalRopeConfig, full_every, rope_by_type
from bpe_llama.model.families.olmo2 import OLMO_FIXED, OLMO_MODULES, WINDOW, Olmo2Config, Olmo2Layer
from bpe_llama.model.family import Family, GGUFLayout, register

THETA = 500_000.0


@dataclass(frozen=True)
class Olmo3Config(Olmo2Config, LocalRopeConfig):  # in this order the defaults are OLMo 2's
    """The fields of OLMo 3, with the defaults of transformers."""

    sliding_window: int | None = 4096
    model_type: str = "olmo3"

    LOCAL_THETA = THETA

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them: every fourth one has no window."""
        return full_every(4, self.num_hidden_layers)


def _prepare(values: Mapping[str, Any]) -> dict[str, Any]:
    by_type, theta = rope_by_type(values), values.get("rope_theta")
    local = by_type.get(SLIDING) or {}
    if theta not in (None, THETA) and (not isinstance(local, Mapping) or "rope_theta" not in local):
        warnings.warn(
            f"rope_theta is {shown(theta)}, which transformers' olmo3 reads for layers without the window alone: "
            f"those with it have {THETA!r}, and so they have here",
            stacklevel=6,
        )
    return {**values, "rope_parameters": by_type.get(FULL), "local_rope_parameters": local}


_LOCAL_BASE = "rope.freq_base_swa"


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]) -> None:
    theta, stated = fields["rope_parameters"]["rope_theta"], fields["local_rope_parameters"]
    if stated not in (None, theta):
        raise ValueError(
            f"metadata 'olmo2.{_LOCAL_BASE}' is {shown(stated)}; llama.cpp computes with {theta!r} in all layers"
        )
    fields["local_rope_parameters"] = {"rope_type": "default", "rope_theta": theta}


def _write_gguf(config: Olmo3Config) -> dict[str, Any]:
    return {
        _LOCAL_BASE: (config.local_rope or config.rope)["rope_theta"],
        "attention.sliding_window_pattern": [window is not None for window in config.windows],
    }


register(
    Family(
        "olmo3",
        "Olmo3",
        Olmo3Config,
        Olmo2Layer,
        prepare=_prepare,
        rope_theta=THETA,
        biases=("attention_bias",),
        gguf=GGUFLayout(
            "olmo2",
            OLMO_MODULES,
            keys={WINDOW: "sliding_window", _LOCAL_BASE: "local_rope_parameters"},
            absent={_LOCAL_BASE: None},
            fixed=OLMO_FIXED,
            head_key=None,
            window_pattern=4,
            fits=lambda metadata, shapes: WINDOW in metadata,
            read=_read_gguf,
            write=_write_gguf,
        ),
    )
)
