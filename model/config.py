"""The config of a LLaMA: the values of a checkpoint's ``config.json``, checked when the config is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bpe_llama._core import shown
from bpe_llama._files import complete_writes, read_json_object
from bpe_llama.model.config_json import OUR_TYPE, family_of, fields_of, text_of
from bpe_llama.model.config_values import (
    check_experts,
    check_flag,
    check_number,
    check_probability,
    check_size,
    check_token_id,
    check_token_ids,
    is_one_of,
    labels_by_id,
)
from bpe_llama.model.family import FAMILIES, Family
from bpe_llama.model.rope_parameters import (
    PARAMETERS,
    check_rope_parameters,
    merge_rope,
    read_parameters,
    scaled_length,
)
from bpe_llama.model.windows import Window

POSITION_ENCODINGS = ("rotary", "sinusoidal", "none")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class LlamaConfig:
    """The hyperparameters of one model, named as in Hugging Face's ``config.json``.

    A family with fields of its own has a subclass in ``families/``; `from_dict` and `from_json` return it.

    The RoPE parameters may be given as ``rope_parameters`` (transformers 5) or as ``rope_theta`` and ``rope_scaling``
    (transformers 4). A built config has all three: ``rope_parameters`` holds everything, ``rope_theta`` the base, and
    ``rope_scaling`` the rest, or None if the type is ``default``.

    ``id2label`` names a classifier's labels and gives ``num_labels``; None if they are ``LABEL_0``, ``LABEL_1`` ...

    Raises:
        ValueError: If a value is out of range or two values contradict each other; it names both.
        TypeError: If a size is not an integer.

    Example:
        >>> config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
        >>> config.head_dim
        16
    """

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    position_encoding: str = "rotary"
    sliding_window: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.001
    router_z_loss_coef: float = 0.0
    pretraining_tp: int = 1
    num_labels: int = 2
    id2label: dict[int, str] | None = None
    problem_type: str | None = None
    dtype: str | None = None
    model_type: str = "llama"

    ACTIVATIONS: ClassVar[tuple[str, ...]] = ("silu", "swish")
    """The values of ``hidden_act`` that the family computes."""
    PARTIAL_ROTARY_FACTOR: ClassVar[float] = 1.0
    """The ``partial_rotary_factor`` of a config that states none."""

    def __post_init__(self) -> None:
        self._check_model_type()
        self._fill_labels()
        self._check(
            check_size,
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("max_position_embeddings", "num_experts_per_tok", "pretraining_tp", "num_labels"),
        )
        self._fill_floats("rms_norm_eps", "initializer_range", "attention_dropout")
        self._fill_floats("router_aux_loss_coef", "router_z_loss_coef")
        self._fill_heads()
        self._fill_rope()
        self._fill_variants()
        if not is_one_of(self.hidden_act, self.ACTIVATIONS):
            raise ValueError(
                f"hidden_act is {shown(self.hidden_act)}; model_type {self.model_type!r} has {self.ACTIVATIONS[0]!r}"
            )
        check_probability("attention_dropout", self.attention_dropout)
        self._check(check_flag, "tie_word_embeddings", "attention_bias", "mlp_bias")
        if not is_one_of(self.dtype, (None, *DTYPES)):
            raise ValueError(f"dtype is {shown(self.dtype)}; expected one of {', '.join(DTYPES)}")
        for name in ("bos_token_id", "pad_token_id"):
            check_token_id(name, getattr(self, name), self.vocab_size)
        check_token_ids("eos_token_id", self.eos_token_id, self.vocab_size)

    def _check(self, check: Callable[[str, Any], None], *names: str) -> None:
        """Check fields by a function of `config_values`."""
        for name in names:
            check(name, getattr(self, name))

    def _fill_floats(self, *names: str) -> None:
        """Check fields that are numbers, and make them floats: transformers accepts no int."""
        self._check(check_number, *names)
        for name in names:
            object.__setattr__(self, name, float(getattr(self, name)))

    def _check_model_type(self) -> None:
        if not is_one_of(self.model_type, FAMILIES):
            raise ValueError(f"model_type is {shown(self.model_type)}; expected one of {', '.join(FAMILIES)}")
        if type(self) is not self.family.config:
            raise ValueError(
                f"model_type is {shown(self.model_type)}, which {type(self).__name__} does not describe; "
                f"expected a {self.family.config.__name__}, or LlamaConfig.from_dict"
            )

    def _fill_labels(self) -> None:
        names = labels_by_id(self.id2label)
        if names:
            object.__setattr__(self, "num_labels", len(names))
        usual = names == {label: f"LABEL_{label}" for label in range(len(names))}
        object.__setattr__(self, "id2label", None if usual else names)

    def _fill_heads(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        check_size("num_key_value_heads", self.num_key_value_heads)
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                    f"({self.num_attention_heads}), and no head_dim is given"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        check_size("head_dim", self.head_dim)

    def _fill_rope(self) -> None:
        theta = 10_000.0 if type(self) is LlamaConfig else self.family.rope_theta
        rope: dict[str, Any] = {"partial_rotary_factor": self.PARTIAL_ROTARY_FACTOR}
        rope |= merge_rope(self.rope_parameters, self.rope_theta, self.rope_scaling, theta)
        if "original_max_position_embeddings" in PARAMETERS.get(rope["rope_type"], ()):
            rope.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        check_rope_parameters(rope, self.head_size)
        rope = read_parameters(rope, stacklevel=4)
        if rope["partial_rotary_factor"] == self.PARTIAL_ROTARY_FACTOR == 1.0:
            del rope["partial_rotary_factor"]
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        object.__setattr__(self, "rope_parameters", rope)
        object.__setattr__(self, "rope_theta", rope["rope_theta"])
        object.__setattr__(self, "rope_scaling", None if scaling == {"rope_type": "default"} else scaling)

    def _fill_variants(self) -> None:
        for name, allowed in (("position_encoding", POSITION_ENCODINGS), ("problem_type", (None, *PROBLEM_TYPES))):
            if not is_one_of(value := getattr(self, name), allowed):
                raise ValueError(f"{name} is {shown(value)}; expected one of {', '.join(map(str, allowed))}")
        if self.sliding_window is not None:
            check_size("sliding_window", self.sliding_window)
        if self.num_local_experts is not None:
            check_experts(self.num_hidden_layers, self.num_local_experts, self.num_experts_per_tok)
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
            if getattr(self, name) % self.pretraining_tp:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) is not a multiple of pretraining_tp ({self.pretraining_tp})"
                )
        if self.num_local_experts is not None and self.mlp_bias:
            raise ValueError("mlp_bias is true, but experts (num_local_experts) have no biases; expected false")
        if type(self) is not LlamaConfig:
            for name, value in self.unknown_to_transformers.items():
                raise ValueError(f"{name} is {shown(value)}, which model_type {self.model_type!r} does not compute")
            return
        # The family whose class in transformers computes this config: llama has no window and no experts, and its heads
        # divide hidden_size.
        if self.num_local_experts is not None:
            object.__setattr__(self, "model_type", "mixtral")
        elif self.model_type == "mixtral":
            raise ValueError("model_type is 'mixtral', but num_local_experts is not given")
        elif (
            self.sliding_window is not None or self.hidden_size % self.num_attention_heads or self.initializer_range > 1
        ):
            object.__setattr__(self, "model_type", "mistral")

    @property
    def family(self) -> Family:
        """Return the model family, which says what modules the model has."""
        return FAMILIES[self.model_type]

    @property
    def kv_heads(self) -> int:
        """Return ``num_key_value_heads``, which is not None once the config is built."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Return ``head_dim``, which is not None once the config is built."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def cache_shape(self) -> tuple[int, int]:
        """Return the heads that a KV cache stores of a token's keys, and of its values, and the size of one."""
        return self.kv_heads, self.head_size

    @property
    def rope(self) -> dict[str, Any]:
        """Return ``rope_parameters``, which is not None once the config is built."""
        return self.rope_parameters or {}

    @property
    def norm_eps(self) -> float:
        """Return the epsilon of the norms."""
        return self.rms_norm_eps

    @property
    def attention_biases(self) -> tuple[bool, bool]:
        """Return whether queries, keys and values have biases, and whether the attention output has one."""
        return self.attention_bias, self.attention_bias

    @property
    def query_scale(self) -> float:
        """Return the factor of queries beyond ``head_dim ** -0.5``."""
        return 1.0

    @property
    def local_rope(self) -> dict[str, Any] | None:
        """Return the RoPE parameters of layers with a sliding window; None if they are those of all layers."""
        return None

    @property
    def rotated_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether queries and keys are rotated."""
        return (True,) * self.num_hidden_layers

    @property
    def sparse_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether it has experts."""
        return (self.num_local_experts is not None,) * self.num_hidden_layers

    @property
    def windows(self) -> tuple[Window | None, ...]:
        """Return the sliding window of each layer in tokens, or its chunk; None attends to all.

        Example:
            >>> LlamaConfig(num_hidden_layers=2, sliding_window=8).windows
            (8, 8)
        """
        return (self.sliding_window,) * self.num_hidden_layers

    @property
    def unknown_to_transformers(self) -> dict[str, Any]:
        """Return the options and their values that transformers' class of this ``model_type`` does not compute.

        Example:
            >>> LlamaConfig(sliding_window=8, attention_bias=True).unknown_to_transformers
            {'attention_bias': True}
        """
        computed: dict[str, Any] = {"position_encoding": "rotary"}
        computed |= {} if self.family.has_partial_rotary else {"partial_rotary_factor": 1.0}
        computed |= {} if self.family.has_window else {"sliding_window": None}
        computed |= {name: False for name in ("attention_bias", "mlp_bias") if name not in self.family.biases}
        values = {**vars(self), "partial_rotary_factor": self.rope.get("partial_rotary_factor", 1.0)}
        return {name: values[name] for name, value in computed.items() if values[name] != value}

    @property
    def context_length(self) -> int:
        """Return the context length in tokens, after RoPE scaling.

        Example:
            >>> LlamaConfig(rope_scaling={"rope_type": "linear", "factor": 4.0}).context_length
            8192
        """
        return scaled_length(self.rope, self.max_position_embeddings)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the EOS ids."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def label_names(self) -> list[str]:
        """Return the names of a classifier's labels, by id.

        Example:
            >>> LlamaConfig(id2label={0: "no", 1: "yes"}).label_names, LlamaConfig().label_names
            (['no', 'yes'], ['LABEL_0', 'LABEL_1'])
        """
        names = self.id2label or {}
        return [names.get(label, f"LABEL_{label}") for label in range(self.num_labels)]

    def replace(self, **changes: Any) -> LlamaConfig:
        """Return a copy with some values changed; a RoPE field replaces the values of all three RoPE fields.

        A new ``num_labels`` drops the labels' names. ``head_dim`` and ``num_key_value_heads`` follow new values of
        ``hidden_size`` and ``num_attention_heads`` if they have the values that a config without them gets.

        Example:
            >>> LlamaConfig().replace(rope_theta=500_000.0).rope_parameters["rope_theta"]
            500000.0
        """
        if changes.get("num_labels", self.num_labels) != self.num_labels:
            changes.setdefault("id2label", None)
        derived = {"head_dim": self.hidden_size / self.num_attention_heads}
        if "num_attention_heads" in changes:
            derived["num_key_value_heads"] = self.num_attention_heads
        if {"hidden_size", "num_attention_heads"} & changes.keys():
            for name, value in derived.items():
                if getattr(type(self), name) is None and getattr(self, name) == value:
                    changes.setdefault(name, None)
        if "rope_theta" in changes:
            changes.setdefault("rope_scaling", self.rope_scaling)
        elif "rope_scaling" in changes:
            changes.setdefault("rope_theta", self.rope_theta)
        if {"rope_theta", "rope_scaling", "rope_parameters"} & changes.keys():
            changes = {"rope_theta": None, "rope_scaling": None, "rope_parameters": None} | changes
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LlamaConfig:
        """Return the config that a parsed ``config.json`` describes, with the defaults of its ``model_type``.

        Each key is honoured, known to change nothing, or refused: see `bpe_llama.model.config_json`. Of a multi-modal
        model it is the config of the text model, and a warning names the parts that are left out.

        Raises:
            ValueError: If the file is of another architecture, a key is not supported, or values contradict each other.

        Example:
            >>> LlamaConfig.from_dict({"hidden_size": 64, "num_attention_heads": 4, "use_cache": True}).head_dim
            16
        """
        values = text_of(values)
        family = family_of(values)
        config_class: type[LlamaConfig] = cls if family is None else family.config
        if not issubclass(config_class, cls):
            raise ValueError(f"model_type is {shown(values['model_type'])}; expected that of a {cls.__name__}")
        picked = fields_of(values, {field.name for field in dataclasses.fields(config_class)})
        slices = picked.get("pretraining_tp")
        try:
            return config_class(**picked)
        except ValueError:
            if not isinstance(slices, int) or slices < 2:
                raise
            # transformers computes without slices; they change rounding alone, so slices that do not fit are dropped.
            return config_class(**(picked | {"pretraining_tp": 1}))

    @classmethod
    def from_json(cls, path: str | Path) -> LlamaConfig:
        """Return the config stored in a ``config.json``, given the file or the folder that holds it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not JSON, not an object, or not a LLaMA's.
        """
        path = Path(path)
        if path.is_dir():
            complete_writes(path)
            path = path / "config.json"
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``, spelled so that transformers 4 and 5 both read it.

        Example:
            >>> LlamaConfig.from_dict(LlamaConfig().to_dict()) == LlamaConfig()
            True
        """
        values = dataclasses.asdict(self)
        values["torch_dtype"] = self.dtype
        if self.unknown_to_transformers:
            values["model_type"] = OUR_TYPE
        values["id2label"] = {str(label): name for label, name in enumerate(self.label_names)}
        values["label2id"] = {name: label for label, name in enumerate(self.label_names)}
        if "partial_rotary_factor" in self.rope:
            values["partial_rotary_factor"] = self.rope["partial_rotary_factor"]
        return values
