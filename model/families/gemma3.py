"""Gemma 3: Gemma 2 without caps of attention scores, with norms of queries and keys; five of six layers are local.

Local layers have the window and a RoPE base of their own. Of a multi-modal folder (``gemma3``) the text model is read.

Source: Gemma Team 2025, arXiv:2503.19786.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.config_values import check_size
from bpe_llama.model.families.gemma import scaled_embedding, with_activation
from bpe_llama.model.families.gemma2 import NORM_MODULES, Gemma2Config, Gemma2Layer, capped_logits, read_scalar
from bpe_llama.model.families.layer_types import FULL, SLIDING, LocalRopeConfig, full_every, rope_by_type
from bpe_llama.model.family import HEAD_NORMS, Family, GGUFLayout, register
from bpe_llama.model.layers.attention import HeadNormAttention
from bpe_llama.model.layers.norm import ZeroCenteredRMSNorm
from bpe_llama.model.rope_parameters import merge_rope

_PATTERN = 6


@dataclass(frozen=True)
class Gemma3TextConfig(Gemma2Config, LocalRopeConfig):  # in this order the defaults are Gemma 2's
    """The fields of Gemma 3's text model, with the defaults of transformers.

    A ``config.json`` may have the bases of RoPE as ``rope_theta`` and ``rope_local_base_freq``, too.
    """

    vocab_size: int = 262_208
    max_position_embeddings: int = 131_072
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    model_type: str = "gemma3_text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attn_logit_softcapping is not None:
            raise ValueError(
                f"attn_logit_softcapping is {self.attn_logit_softcapping}, which gemma3_text has not; expected null"
            )

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them: every sixth one has no window."""
        return full_every(_PATTERN, self.num_hidden_layers)

    @property
    def context_length(self) -> int:
        """Return ``max_position_embeddings``, the context length after RoPE scaling."""
        return self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``, spelled so that transformers 4 and 5 both read it."""
        values = super().to_dict()
        return values | {"rope_local_base_freq": values["rope_parameters"][SLIDING]["rope_theta"]}


class Gemma3Attention(HeadNormAttention):
    """Attention with Gemma's norm of queries and keys."""

    norm_class = ZeroCenteredRMSNorm


class Gemma3Layer(Gemma2Layer):
    """A layer with normalized queries and keys."""

    attention_class = Gemma3Attention


def _prepare(values: Mapping[str, Any]) -> dict[str, Any]:
    prepared = with_activation(values, "hidden_activation", "hidden_act")
    by_type = rope_by_type(values)
    if prepared.get("local_rope_parameters") is not None:
        raise ValueError(
            f"local_rope_parameters is {shown(prepared['local_rope_parameters'])}, which is no key of a file; expected "
            f"rope_parameters with {SLIDING!r}"
        )
    prepared["rope_parameters"] = by_type.get(FULL)
    local_theta = prepared.pop("rope_local_base_freq", None)
    prepared["local_rope_parameters"] = merge_rope(by_type.get(SLIDING), local_theta, None)
    pattern = prepared.pop("sliding_window_pattern", None)
    types = prepared.get("layer_types")
    if types is None and pattern is not None:
        layers = prepared.get("num_hidden_layers", Gemma3TextConfig.num_hidden_layers)
        check_size("num_hidden_layers", layers)
        check_size("sliding_window_pattern", pattern)
        prepared["layer_types"] = full_every(pattern, layers)
    if types is not None or prepared.get("_sliding_window_pattern") == _PATTERN:  # transformers does not read it
        prepared.pop("_sliding_window_pattern", None)
    if prepared.get("attn_logit_softcapping") is not None:
        warnings.warn(
            f"attn_logit_softcapping is {shown(prepared['attn_logit_softcapping'])}, but transformers' gemma3_text "
            "caps no attention scores, and so does this model",
            stacklevel=6,
        )
        prepared["attn_logit_softcapping"] = None
    return prepared


_LOCAL_BASE = "rope.freq_base_swa"


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]) -> None:
    read_scalar(62, fields, metadata, names)
    fields["attn_logit_softcapping"] = None
    fields["local_rope_parameters"] = {"rope_type": "default", "rope_theta": fields["local_rope_parameters"]}


register(
    Family(
        "gemma3_text",
        "Gemma3",
        Gemma3TextConfig,
        Gemma3Layer,
        embedding=scaled_embedding,
        logits=capped_logits,
        prepare=_prepare,
        rope_theta=1_000_000.0,
        biases=("attention_bias",),
        classifier="Gemma3Text",
        multimodal="gemma3",
        left_out=("vision_tower", "multi_modal_projector"),
        gguf=GGUFLayout(
            "gemma3",
            NORM_MODULES | HEAD_NORMS,
            keys={
                "attention.sliding_window": "sliding_window",
                "final_logit_softcapping": "final_logit_softcapping",
                _LOCAL_BASE: "local_rope_parameters",
            },
            absent={"attention.sliding_window": None, "final_logit_softcapping": None, _LOCAL_BASE: 10_000.0},
            fixed={"attention_bias": False},
            norm_offset=1.0,
            window_pattern=_PATTERN,
            rope_types=("default", "linear"),
            read=_read_gguf,
            write=lambda config: {_LOCAL_BASE: config.local_rope["rope_theta"]},
        ),
    )
)
