"""``adapter_config.json``: an adapter's target modules, ranks and scales.

peft ignores fields that it does not know. Here each field is honoured, listed in `HARMLESS` because it does not change
the output, or refused by name.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bpe_llama._core import shown
from bpe_llama._files import complete_writes, read_json_object
from bpe_llama.model.adapters.patterns import Matcher, check_number, checked_pattern

CONFIG = "adapter_config.json"
DEFAULT_TARGETS = ("q_proj", "v_proj")
"""peft's default target modules of LLaMA, Mistral and Mixtral, if ``target_modules`` is null."""
ALL_LINEAR = "all-linear"
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",  # this and the next three: initialization, but the file holds trained matrices
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "fan_in_fan_out",  # peft resets it for torch.nn.Linear, the only layers here
        "inference_mode",
        "megatron_core",  # without effect unless megatron_config is given
        "peft_type",
        "peft_version",
        "qalora_group_size",  # without effect unless use_qalora is given
        "revision",
        "runtime_config",
    }
)
"""peft's fields that do not change the output, whatever their value."""
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` with the model's weight as the base weight."""
OFFSET_INITS = ("pissa", "olora")
"""Values with the model's weight minus the scaled product of the initial matrices as the base weight."""
_REFUSED_INITS = {
    "loftq": "its base is the model's weight as LoftQ quantizes it",
    "corda": "its base depends on data that the folder does not hold",
    "lora_ga": "its base depends on gradients that the folder does not hold",
    "pissa_niter": "its base follows from a randomized decomposition",
}
_ADVICE = (
    "save it with peft's path_initial_model_for_weight_conversion, or beside its own base with init_lora_weights true"
)
_UNSET: tuple[object, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of peft's ``LoraConfig`` that are honoured, with peft's defaults.

    Example:
        >>> config = AdapterConfig.of({"r": 8, "lora_alpha": 16, "rank_pattern": {"layers.0.self_attn.q_proj": 4}})
        >>> config.rank("model.layers.0.self_attn.q_proj"), config.scale("model.layers.0.self_attn.q_proj")
        (4, 4.0)
        >>> config.targets("model.layers.0.self_attn.v_proj"), config.targets("model.layers.0.self_attn.k_proj")
        (True, False)
    """

    r: int = 8
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    target_modules: tuple[str, ...] | str = DEFAULT_TARGETS
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    ensure_weight_tying: bool = False
    task_type: str | None = "CAUSAL_LM"
    described: Mapping[str, Any] = field(default_factory=dict)
    """The given fields, which `to_json` writes again."""

    @classmethod
    def of(cls, described: Mapping[str, Any], source: str = CONFIG) -> AdapterConfig:
        """Return the config with these fields.

        Args:
            described: Fields of ``adapter_config.json``; absent fields have peft's defaults.
            source: The name of the file in error messages.

        Raises:
            ValueError: If a field is not honoured or has a wrong value; it names the source, the field, the value and
                the expectation.
        """
        for name, value in described.items():
            if name not in _PARSERS and name not in HARMLESS and value not in _UNSET:
                raise ValueError(f"{source}: {name} is {shown(value)}, which is not supported; expected it left out")
        values: dict[str, Any] = {}
        for name, (parse, expected) in _PARSERS.items():
            given = described.get(name)
            if given is None:
                if name == "task_type" and "task_type" in described:
                    values[name] = None
                continue
            try:
                values[name] = parse(given)
            except (ValueError, TypeError, AttributeError) as error:
                reason = f" ({error})" if isinstance(error, ValueError) and str(error) else ""
                raise ValueError(f"{source}: {name} is {shown(given)}; expected {expected}{reason}") from error
        if values.get("task_type") == "SEQ_CLS":  # peft adds the classifier's head
            saved = values.get("modules_to_save", ())
            values["modules_to_save"] = saved if "score" in saved else (*saved, "score")
        config = cls(**values, described=dict(described))
        config._check(source)
        return config

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Return the config of a folder's ``adapter_config.json``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: As `of` does, or if the file is not JSON or not of a LoRA adapter.
        """
        source = folder / CONFIG
        if folder.is_dir():
            complete_writes(folder)
        if not source.exists():
            of_run = folder / "adapter"
            hint = f"; {of_run} does" if (of_run / CONFIG).is_file() else ""
            raise FileNotFoundError(f"{folder}: holds no {CONFIG}, as `bpe-llama finetune` and peft write it{hint}")
        try:
            described = read_json_object(source)
            kind = described["peft_type"]
            missing = [name for name in ("r", "lora_alpha") if described[name] is None]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{source}: does not describe a LoRA adapter ({error!r})") from error
        if kind != "LORA":
            raise ValueError(f"{source}: peft_type is {shown(kind)}; expected 'LORA'")
        if missing:
            raise ValueError(f"{source}: {missing[0]} is null; expected a number")
        return cls.of(described, str(source))

    def _check(self, source: str) -> None:
        init = self.init_lora_weights
        for refused, reason in _REFUSED_INITS.items():
            if isinstance(init, str) and init.startswith(refused):
                raise ValueError(f"{source}: init_lora_weights is {shown(init)}: {reason}; {_ADVICE}")
        if isinstance(init, str) and init not in PLAIN_INITS + OFFSET_INITS:
            expected = ", ".join(map(repr, PLAIN_INITS + OFFSET_INITS))
            raise ValueError(f"{source}: init_lora_weights is {shown(init)}; expected true, false, {expected}")
        if self.use_dora and (self.lora_bias or init == "mica"):
            other = "lora_bias" if self.lora_bias else "init_lora_weights 'mica'"
            raise ValueError(f"{source}: use_dora is true together with {other}; peft has no such adapter")
        if isinstance(self.target_modules, str) and (self.layers_to_transform is not None or self.layers_pattern):
            raise ValueError(f"{source}: layers_to_transform is given, but target_modules is a pattern, not a list")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"{source}: layers_pattern is given without layers_to_transform")

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher()

    def rank(self, path: str) -> int:
        """Return the rank of a layer's update."""
        return int(self._of_pattern("rank_pattern", self.rank_pattern, path, self.r))

    def alpha(self, path: str) -> float:
        """Return the ``lora_alpha`` of a layer."""
        return float(self._of_pattern("alpha_pattern", self.alpha_pattern, path, self.lora_alpha))

    def scale(self, path: str) -> float:
        """Return the scale of a layer's update: alpha / rank or, with ``use_rslora``, alpha / sqrt(rank).

        Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732, for ``use_rslora``.
        """
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, path: str, in_head: bool = False) -> bool:
        """Return whether a linear layer or an embedding has low-rank matrices.

        Args:
            path: Path of the module.
            in_head: Whether the module is the model's head, which "all-linear" excludes.
        """
        if self.exclude_modules and self._named("exclude_modules", self.exclude_modules, path):
            return False
        if any(
            self._matcher.match("modules_to_save", rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save
        ):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == ALL_LINEAR:
                return not in_head and not self.is_embedding(path)
            return self._matcher.match("target_modules", self.target_modules, path, whole=True) is not None
        if path in self.target_modules:
            return True
        return self._named("target_modules", self.target_modules, path) and self._transforms(path)

    def _named(self, field: str, names: tuple[str, ...] | str, path: str) -> bool:
        """Return whether names match a path: a regex all of it, a list the path or its last parts."""
        if isinstance(names, str):
            return self._matcher.match(field, names, path, whole=True) is not None
        return path in names or any(path.endswith(f".{name}") for name in names)

    def _of_pattern(self, field: str, patterns: Mapping[str, float], path: str, default: float) -> float:
        """Return the value of the first pattern that matches the path's last parts."""
        return next(
            (value for key, value in patterns.items() if self._matcher.match(field, rf"(.*\.)?({key})$", path)), default
        )

    @staticmethod
    def is_embedding(path: str) -> bool:
        """Return whether a path is that of the input embedding."""
        return path.rpartition(".")[2] == "embed_tokens"

    def _transforms(self, path: str) -> bool:
        """Return whether the layer number, the first number in the path, is in ``layers_to_transform``."""
        if not self.layers_to_transform:
            return True
        if self.layers_pattern:
            patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern]
        else:
            patterns = [r".*?\.[^.]*\.(\d+)\."]
        found = next(filter(None, (self._matcher.match("layers_pattern", pattern, path) for pattern in patterns)), None)
        return found is not None and int(found[1]) in self.layers_to_transform

    def saves(self, path: str) -> bool:
        """Return whether a module is in ``modules_to_save``: as in peft, its path may end inside a name."""
        return path.endswith(self.modules_to_save) if self.modules_to_save else False

    def rows(self) -> Mapping[str, tuple[int, ...]]:
        """Return the ids of ``trainable_token_indices`` by the name of their embedding."""
        if self.trainable_token_indices is None:
            return {}
        if isinstance(self.trainable_token_indices, tuple):
            return {"embed_tokens": self.trainable_token_indices}
        return self.trainable_token_indices

    def to_json(self, base: str | None = None) -> str:
        """Return the text of ``adapter_config.json``, with all given fields."""
        usual, own = AdapterConfig(), {}
        for name in _PARSERS:
            value = getattr(self, name)
            is_new = name not in self.described and (value != getattr(usual, name) or name in _SHOWN)
            if is_new or value != self._was(name):
                own[name] = _plain(value)
        fixed = {"peft_type": "LORA", "fan_in_fan_out": False, "inference_mode": True}
        described = {**fixed, **self.described, **own}
        if base is not None or "base_model_name_or_path" not in described:
            described["base_model_name_or_path"] = base
        return json.dumps(described, indent=2, sort_keys=True) + "\n"

    def _was(self, name: str) -> Any:
        """Return a field's value in the file; its current value if the file lacks it."""
        given = self.described.get(name)
        return getattr(self, name) if given is None else _PARSERS[name][0](given)


_SHOWN = ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "task_type")


def _plain(value: Any) -> Any:
    """Return a value for JSON; floats without a fraction become integers, as in peft."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(low: float, high: float = math.inf, whole: bool = False, open_end: bool = False) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise TypeError
        if not (low <= value < high if open_end else low <= value <= high) or abs(value) > sys.float_info.max:
            raise ValueError
        return value if whole else float(value)

    return parse


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, Mapping)) or not all(isinstance(text, str) and text for text in value):
        raise TypeError
    return tuple(value)


def _expressions(value: Any) -> tuple[str, ...]:
    texts = _strings([value] if isinstance(value, str) else value)
    check_number(texts)
    for text in texts:
        checked_pattern(text)
    return texts


def _layers_pattern(value: Any) -> tuple[str, ...]:
    return () if value == "" else _expressions(value)


def _strings_or_pattern(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str):
        if value.lower() != ALL_LINEAR:
            checked_pattern(value)
        return value
    return _strings(value)


def _patterns(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def parse(value: Any) -> dict[str, Any]:
        check_number(value.keys())  # a list, which has no keys, is refused
        for key in value:
            checked_pattern(key)
        return {key: of(inner) for key, inner in value.items()}

    return parse


def _numbers(value: Any) -> tuple[int, ...]:
    whole = _number(0, whole=True)
    return tuple(map(whole, value)) if isinstance(value, Sequence) and not isinstance(value, str) else (whole(value),)


def _indices(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _indices(inner) for name, inner in value.items()}
    if not isinstance(value, Sequence) or isinstance(value, str) or len(set(value)) < len(value):
        raise TypeError
    return _numbers(value)


def _one_of(*texts: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in texts:
            raise ValueError
        return str(value)

    return parse


def _init(value: Any) -> bool | str:
    return value if isinstance(value, bool) else value.lower()


_PARSERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "r": (_number(1, whole=True), "an integer of at least 1"),
    "lora_alpha": (_number(-math.inf), "a number"),
    "lora_dropout": (_number(0, 1, open_end=True), "a number in [0, 1)"),
    "use_rslora": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
    "lora_bias": (_flag, "true or false"),
    "bias": (_one_of("none", "all", "lora_only"), "'none', 'all' or 'lora_only'"),
    "init_lora_weights": (_init, "true, false or a name"),
    "target_modules": (_strings_or_pattern, "a list of names, a pattern or 'all-linear'"),
    "exclude_modules": (_strings_or_pattern, "a list of names or a pattern"),
    "layers_to_transform": (_numbers, "a list of layer numbers"),
    "layers_pattern": (_layers_pattern, "a list of names"),
    "rank_pattern": (_patterns(_number(1, whole=True)), "patterns and ranks of at least 1"),
    "alpha_pattern": (_patterns(_number(-math.inf)), "patterns and numbers"),
    "modules_to_save": (_expressions, "a list of names"),
    "trainable_token_indices": (_indices, "a list of different ids, or such lists by the name of an embedding"),
    "ensure_weight_tying": (_flag, "true or false"),
    "task_type": (
        _one_of("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"),
        "'CAUSAL_LM', 'SEQ_CLS' or 'FEATURE_EXTRACTION'",
    ),
}
"""The parser of each honoured field, and the expectation that errors name."""
