"""What config, model and checkpoints need to know of a model family; ``families/`` has one file for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpe_llama._core import shown


@dataclass(frozen=True)
class GGUFSplit:
    """A tensor of a layer that a GGUF file holds in another shape, or as several tensors.

    Attributes:
        names: Of the tensors in the file, without the layer.
        split: Called with the config and the tensor; returns the tensors in the file, views of it, in this order.
        join: Called with the config and the tensors in the file; returns the tensor.
    """

    names: tuple[str, ...]
    split: Callable[[Any, Any], Sequence[Any]] = lambda config, tensor: [tensor]
    join: Callable[[Any, Sequence[Any]], Any] = lambda config, tensors: tensors[0]


@dataclass(frozen=True)
class GGUFLayout:
    """How llama.cpp stores a family's models in a GGUF file, where that differs from LLaMA.

    Attributes:
        architecture: llama.cpp's name, with which the metadata keys of the architecture begin.
        modules: The module in a layer of a tensor: ``{"attn_q_norm": "self_attn.q_norm"}``. With ``{}`` for a number,
            one tensor holds the weights of all the modules.
        splits: Tensors of a layer that differ in more than the name.
        aliases: Other architectures that llama.cpp computes alike; they are read, not written.
        keys: Metadata keys, without the architecture, and the fields of the config that hold their values.
        absent: The values of keys that a file leaves out, as llama.cpp's loader has them; a function returns the value
            from the other fields. Other keys are required.
        fixed: Fields for which there is no key, and the value with which llama.cpp computes.
        interleaved: Whether rows of queries and keys are ordered for RoPE pairs ``(2 i, 2 i + 1)``.
        head_key: The key of ``head_dim``. Without the key, or with None, it is ``hidden_size / num_attention_heads``.
        derived: Further keys, which `read` checks and `write` states.
        norm_offset: Added to the weights of norms in the file.
        window_pattern: Every so many layers one has no sliding window, unless the file says otherwise.
        rope_types: The values of ``rope_type`` that llama.cpp computes.
        unstored: Fields that change no computation which llama.cpp has.
        fits: Called with the metadata and the shapes of all tensors; whether a file of the architecture is of this
            family.
        read: Called with the fields, the metadata and the shapes of all tensors, to set fields that follow from them.
        write: Called with the config; returns values of metadata keys that are no field.

    Source: ``conversion/`` and ``src/models/`` of https://github.com/ggml-org/llama.cpp.
    """

    architecture: str
    modules: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, GGUFSplit] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    interleaved: bool = False
    head_key: str | None = "attention.key_length"
    derived: frozenset[str] = frozenset()
    norm_offset: float = 0.0
    window_pattern: int | None = None
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    unstored: frozenset[str] = frozenset()
    fits: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], bool] = lambda metadata, shapes: True
    read: Callable[[dict[str, Any], Mapping[str, Any], Mapping[str, tuple[int, ...]]], None] = (
        lambda fields, metadata, shapes: None
    )
    write: Callable[[Any], Mapping[str, Any]] = lambda config: {}


HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
"""The norms of queries and keys in llama.cpp, and their modules in most families."""


@dataclass(frozen=True)
class Family:
    """A model family: how its ``config.json`` is read, and the modules in which it differs from LLaMA.

    Attributes:
        name: The ``model_type``.
        architecture: The name of transformers' classes without ``ForCausalLM``.
        config: The class of its config: `LlamaConfig` or a subclass with the family's fields.
        layer: The class of a decoder layer, built from the config and the layer's number.
        embedding: Builds the token embedding from the config; None for a plain one.
        logits: Builds from the config the function that turns the head's product into logits; None if the product is.
        unrotated: Called with the config, the rotation by 0 and the positions; returns what `rotations_of_layers` gives
            to layers without RoPE; None leaves the rotation by 0.
        prepare: Called with the file before its keys are read; returns it with the keys of `LlamaConfig`.
        read: Called with the fields and the file, to set fields that depend on several keys.
        defaults: Of the keys that a file leaves out, where they differ from those of the config's class.
        ignored: Keys of a file that transformers' class does not read.
        rope_theta: The default of this parameter.
        biases: Those of ``attention_bias`` and ``mlp_bias`` that are computed.
        has_experts: Whether the MLP may be a mixture of experts.
        has_window: Whether ``sliding_window`` is computed.
        has_partial_rotary: Whether ``partial_rotary_factor`` is computed.
        recomputes_keys: Whether generation computes a sequence's keys and values anew when it outgrows the original
            length of LongRoPE; otherwise earlier ones keep the short factors.
        has_classifier: Whether transformers has a class for sequence classification.
        classifier: ``architecture`` of its classifier, without ``ForSequenceClassification``, if it differs.
        multimodal: The ``model_type`` of the multi-modal models of which this is the text model, if any.
        left_out: Their other parts: the first parts of the names of tensors.
        gguf: How llama.cpp stores it; None if it does not, or not in a way known here.
        layers_after: The field with the number of layers that a checkpoint has after those of the model, if any. They
            predict further tokens, and neither transformers nor this package reads them.
    """

    name: str
    architecture: str
    config: type[Any]
    layer: type[Any]
    embedding: Callable[[Any], Any] | None = None
    logits: Callable[[Any], Callable[[Any], Any] | None] | None = None
    unrotated: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: values
    read: Callable[[dict[str, Any], Mapping[str, Any]], None] = lambda fields, values: None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    rope_theta: float = 10_000.0
    biases: tuple[str, ...] = ()
    has_experts: bool = False
    has_window: bool = True
    has_partial_rotary: bool = False
    recomputes_keys: bool = False
    has_classifier: bool = True
    classifier: str | None = None
    multimodal: str | None = None
    left_out: tuple[str, ...] = ()
    gguf: GGUFLayout | None = None
    layers_after: str | None = None


FAMILIES: dict[str, Family] = {}
"""The families by ``model_type``; importing `bpe_llama.model.families` fills it."""


def register(family: Family) -> Family:
    """Add a family to `FAMILIES` and return it."""
    FAMILIES[family.name] = family
    return family


def without_constants(values: Mapping[str, Any], **constants: Any) -> Mapping[str, Any]:
    """Return a file without keys that state what its family always has and transformers' class does not read.

    Raises:
        ValueError: If a key states another value.
    """
    for name, value in constants.items():
        if values.get(name, value) not in (value, None):
            raise ValueError(f"{name} is {shown(values[name])}; transformers' {values['model_type']} has {value!r}")
    return {name: value for name, value in values.items() if name not in constants}


def window_of_all_layers(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Leave ``sliding_window`` as it is; warn if a key that the family's class does not read restricts it."""
    window = fields.get("sliding_window")
    stated = values.get("use_sliding_window") is False or values.get("max_window_layers") or values.get("layer_types")
    if window is not None and stated:
        unread = next(
            key for key in ("use_sliding_window", "max_window_layers", "layer_types") if values.get(key) is not None
        )
        warnings.warn(
            f"{unread} is {shown(values[unread])}, but transformers' {values['model_type']} does not read it: all "
            f"layers attend to sliding_window ({window}) tokens, and so they do here; set sliding_window to null for "
            "none",
            stacklevel=6,
        )
