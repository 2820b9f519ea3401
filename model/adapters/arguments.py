"""Arguments of the functions for adapters: their names and types."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from bpe_llama._arguments import instance, integer, iterator, number, string, torch_seed, wrong
from bpe_llama.model.adapters import files
from bpe_llama.model.adapters.config import AdapterConfig


class AdapterFields(TypedDict, total=False):
    """Further fields of peft's ``LoraConfig``: those of `AdapterConfig`, which documents what is honoured.

    ``r``, ``lora_alpha`` and ``lora_dropout`` are peft's names of ``rank``, ``alpha`` and ``dropout``.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    bias: str
    init_lora_weights: bool | str
    exclude_modules: Sequence[str] | str | None
    layers_to_transform: Sequence[int] | int | None
    layers_pattern: Sequence[str] | str | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: Sequence[str] | None
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None
    ensure_weight_tying: bool
    task_type: str | None


_OTHER_NAMES = {"rank": ("r", 8), "alpha": ("lora_alpha", 16.0), "dropout": ("lora_dropout", 0.0)}
"""peft's name and our default of each argument that `lora.add` has under a name of its own."""


def check_new(
    model: object, name: object, rank: Any, alpha: Any, dropout: Any, seed: object, fields: Mapping[str, Any]
) -> None:
    """Raise for an argument of `lora.add` that is of another type, out of range, or given under two names."""
    check_module(model)
    string("name", name)
    integer("rank", rank, 1)
    number("alpha", alpha)
    if not 0 <= number("dropout", dropout) < 1:
        raise ValueError(wrong("dropout", dropout, "at least 0 and less than 1"))
    torch_seed(seed)
    for ours, value in (("rank", rank), ("alpha", alpha), ("dropout", dropout)):
        theirs, default = _OTHER_NAMES[ours]
        if theirs in fields and value not in (default, fields[theirs]):
            raise ValueError(f"{ours} is {value} and {theirs} {fields[theirs]!r}; expected one of them")


def check_module(model: object) -> None:
    """Raise `TypeError` for what is no model, such as a folder in its place."""
    instance("model", model, nn.Module, "a torch.nn.Module")


def target_names(target_modules: Collection[str] | str) -> str | list[str]:
    """Return the names of the modules to adapt, sorted, or the regex that is given.

    Raises:
        TypeError: If they are neither.
    """
    if isinstance(target_modules, str):
        return target_modules
    names = iterator("target_modules", target_modules, "names of modules, a regex or 'all-linear'")
    return sorted(string("each of target_modules", name) for name in names)


def check_fused(targets: str | list[str], bases: Mapping[str, nn.Module], weights: list[str]) -> None:
    """Refuse a name that only weights of all experts in one tensor have; warn if linear layers have it, too."""
    for name in [targets] if isinstance(targets, str) else targets:
        named = AdapterConfig(target_modules=name if isinstance(targets, str) else (name,))
        found = [path for path in weights if named.targets(path)]
        if found and not files.targeted(named, bases):
            raise ValueError(
                f"target_modules names {name}, but {found[0]} has the weights of all experts in one tensor, which is "
                "not adapted; expected names of linear layers"
            )
        if found:
            warnings.warn(
                f"target_modules names {name}: {found[0]} and {len(found) - 1} others have the weights of all experts "
                "in one tensor, and are not adapted, as in peft",
                stacklevel=3,
            )
