"""Configs in which ``layer_types`` says which layers have the sliding window; several families share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_size
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT
from bpe_llama.model.rope_parameters import PARAMETERS, check_rope_parameters, merge_rope
from bpe_llama.model.windows import Window

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True)
class LayerTypesConfig(LlamaConfig):
    """A config with the type of each layer.

    ``layer_types`` has ``"full_attention"`` or ``"sliding_attention"`` for each layer; sliding ones have the window
    ``sliding_window``. A family with another kind of window overrides ``LOCAL``.

    Raises:
        ValueError: If there is not one known type for each layer, or a sliding layer and no window.
    """

    layer_types: list[str] | None = None

    LOCAL: ClassVar[tuple[str, str]] = (SLIDING, "sliding_window")
    """The type of layers that do not attend to all tokens, and the key of how many they attend to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        types = self.default_layer_types() if self.layer_types is None else self.layer_types
        if not isinstance(types, list | tuple) or len(types) != self.num_hidden_layers:
            raise ValueError(f"layer_types is {shown(types)}; expected one type for each of num_hidden_layers")
        local, key = self.LOCAL
        unknown = next((kind for kind in types if kind not in (FULL, local)), None)
        if unknown is not None:
            raise ValueError(f"layer_types names {shown(unknown)}; expected {FULL!r} or {local!r}")
        if local in types and self.local_window is None:
            raise ValueError(f"layer_types names {shown(local)}, but {key} is None; expected a number of tokens")
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
    def local_window(self) -> Window | None:
        """Return the window of layers that have one."""
        return self.sliding_window

    @property
    def windows(self) -> tuple[Window | None, ...]:
        """Return the window of each layer; None attends to all tokens."""
        return tuple(None if kind == FULL else self.local_window for kind in self.layer_types or ())


@dataclass(frozen=True)
class RotatedLayersConfig(LayerTypesConfig):
    """A config in which some layers have no RoPE (NoPE).

    ``no_rope_layers`` has 1 for each layer with RoPE and 0 for each without; by default every
    ``no_rope_layer_interval``-th layer is without.

    Raises:
        ValueError: If ``no_rope_layers`` is not a list of at least one 0 or 1 for each layer.

    Source: Yang et al. 2025, arXiv:2501.18795.
    """

    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4

    def __post_init__(self) -> None:
        layers = self.num_hidden_layers
        self._check(check_size, "num_hidden_layers", "no_rope_layer_interval")
        if self.no_rope_layers is None:
            object.__setattr__(self, "no_rope_layers", self._default_rotated())
        rotated = self.no_rope_layers
        if (
            not isinstance(rotated, list)
            or len(rotated) < layers
            or not all(isinstance(one, int | float) and one in (0, 1) for one in rotated)
        ):
            raise ValueError(f"no_rope_layers is {shown(rotated)}; expected 0 or 1 for each of {layers} layers")
        super().__post_init__()

    def _default_rotated(self) -> list[int]:
        return [int((layer + 1) % self.no_rope_layer_interval != 0) for layer in range(self.num_hidden_layers)]

    def replace(self, **changes: Any) -> LlamaConfig:
        """Return a copy with some values changed; layers that follow from the other values follow from the new ones."""
        if self.no_rope_layers == self._default_rotated():
            changes.setdefault("no_rope_layers", None)
        return super().replace(**changes)

    @property
    def rotated_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether queries and keys are rotated."""
        return tuple(bool(one) for one in (self.no_rope_layers or ())[: self.num_hidden_layers])


@dataclass(frozen=True)
class LocalRopeConfig(LayerTypesConfig):
    """A config in which layers with the window have RoPE parameters of their own, ``local_rope_parameters``.

    The RoPE fields are those of layers without the window. A ``config.json`` has both in ``rope_parameters``, by the
    type of the layers.

    Raises:
        ValueError: If a parameter is unknown or out of range, or the type depends on the length of the sequence.
    """

    local_rope_parameters: dict[str, Any] | None = None

    LOCAL_THETA: ClassVar[float] = 10_000.0
    """The RoPE base of layers with the window, if none is stated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rope = merge_rope(self.local_rope_parameters, None, None, self.LOCAL_THETA)
        types = [name for name in PARAMETERS if name not in LENGTH_DEPENDENT]
        if rope["rope_type"] not in types:
            raise ValueError(
                f"rope_type of {SLIDING!r} is {shown(rope['rope_type'])}; expected one of {', '.join(types)}"
            )
        known = PARAMETERS[rope["rope_type"]]
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            known -= {"partial_rotary_factor"}
        unknown = next((name for name in rope if name not in known), None)
        if unknown is not None:
            raise ValueError(
                f"{unknown} of {SLIDING!r} is {shown(rope[unknown])}, which rope_type {rope['rope_type']!r} lacks"
            )
        if "original_max_position_embeddings" in known:
            rope.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        check_rope_parameters(rope, self.head_size)
        object.__setattr__(self, "local_rope_parameters", rope)

    @property
    def local_rope(self) -> dict[str, Any] | None:
        """Return the RoPE parameters of layers with a sliding window."""
        return self.local_rope_parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json`` as transformers 5 reads it."""
        values = super().to_dict()
        values["rope_parameters"] = {FULL: values["rope_parameters"], SLIDING: values.pop("local_rope_parameters")}
        return values


def full_every(period: int, layers: int) -> list[str]:
    """Return the types of layers of which every ``period``-th has no window."""
    return [SLIDING if layer % period else FULL for layer in range(1, layers + 1)]


def rope_by_type(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the RoPE parameters of a file by the type of the layers.

    Raises:
        ValueError: If they are no object of known types, or ``rope_scaling`` has ``type`` without ``rope_type``:
            transformers ignores it in these families, and computes without scaling.
    """
    by_type = {} if values.get("rope_parameters") is None else values["rope_parameters"]
    if not isinstance(by_type, Mapping) or set(by_type) - {FULL, SLIDING}:
        raise ValueError(f"rope_parameters is {shown(by_type)}; expected an object with {FULL!r} and {SLIDING!r}")
    scaling = values.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling.get("type", "default") != "default" and "rope_type" not in scaling:
        raise ValueError(
            f"rope_scaling is {shown(scaling)}, but transformers' {values['model_type']} does not read 'type'; "
            "expected 'rope_type'"
        )
    return by_type
