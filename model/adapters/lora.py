"""LoRA adapters: add, load, train, combine, merge and save them, in the files of the peft library.

Source: Hu et al. 2021, arXiv:2106.09685.

Example:
    >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
    >>> from bpe_llama.model.adapters import lora
    >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model = lora.add(LlamaForCausalLM(config), rank=2, target_modules=("q_proj", "v_proj"))
    >>> sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    128
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from bpe_llama._arguments import iterator, string, torch_seed
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import shown
from bpe_llama._files import errors_naming
from bpe_llama._hub.fetching import local_path
from bpe_llama.model.adapters import files, inject, weighted
from bpe_llama.model.adapters.arguments import AdapterFields, check_fused, check_module, check_new, target_names
from bpe_llama.model.adapters.config import CONFIG, AdapterConfig
from bpe_llama.model.adapters.files import WEIGHTS, ModuleTensors
from bpe_llama.model.adapters.layers import (
    AdaptedLayer,
    Adapter,
    EmbeddingAdapter,
    LoraLinear,
    TrainedRows,
    adapted_layers,
    base_modules,
    parent_of,
)
from bpe_llama.model.adapters.merging import merge, shared_layers, unmerge, why_not_merge
from bpe_llama.model.adapters.sharing import copy_sharing_weights
from bpe_llama.model.layers.moe.fused import fused_weights

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "AdaptedLayer",
    "Adapter",
    "AdapterConfig",
    "LoraLinear",
    "activate",
    "adapted_layers",
    "add",
    "add_weighted_adapter",
    "copy_sharing_weights",
    "load",
    "merge",
    "names",
    "remove",
    "restore",
    "save",
    "shared_layers",
    "unmerge",
    "why_not_merge",
]

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama._hub.fetching import HubOptions

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def add(
    model: AnyModel,
    rank: int = 8,
    alpha: float = 16.0,
    target_modules: Collection[str] | str = ("q_proj", "v_proj", "qkv_proj", "q_b_proj", "kv_b_proj"),
    name: str = "default",
    dropout: float = 0.0,
    seed: int = 0,
    **fields: Unpack[AdapterFields],
) -> AnyModel:
    """Add a new adapter to the model, activate it, freeze all other weights, and return the model.

    The model's output does not change until the adapter is trained.

    Args:
        model: Any model of this package; its layers may be quantized.
        rank: Rank of the low-rank updates.
        alpha: Updates are scaled by ``alpha / rank``.
        target_modules: Last parts of module names (``"embed_tokens"`` and ``"lm_head"`` too), a regex for whole
            names, or ``"all-linear"``. Those that the model lacks are left out: by default queries and values are
            adapted, by the names that they have in the family.
        name: The adapter's name; a model can have several adapters.
        dropout: The probability of dropout on the adapter's inputs in training.
        seed: Seed of the initial matrices.
        **fields: More fields of peft's ``LoraConfig`` that `AdapterConfig` honours, such as ``use_dora=True``,
            ``use_rslora=True``, ``modules_to_save=["lm_head"]``, ``bias="all"``, ``init_lora_weights="pissa"``.

    Warns:
        UserWarning: If a target is also the name of weights of all experts in one tensor, which are not adapted.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a field is not honoured or out of range, the name is taken or contains a dot, or no layer
            matches. The model is then unchanged.
    """
    check_new(model, name, rank, alpha, dropout, seed, fields)
    _check_name(model, name)
    bases = dict(base_modules(model))
    targets = target_names(target_modules)
    check_fused(targets, bases, fused_weights(model))
    if isinstance(targets, list):  # only names that the model has are saved
        targets = [last for last in targets if any(f".{path}".endswith(f".{last}") for path in bases)] or targets
    task = "SEQ_CLS" if "score" in dict(model.named_children()) else "CAUSAL_LM"
    described = {"task_type": task, "r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets}
    config = AdapterConfig.of({**described, **fields}, "adapter")
    with errors_naming("adapter"):
        files.check_fits(config, bases)
    if not files.targeted(config, bases):
        raise ValueError(f"no linear layer is named {targets if isinstance(targets, str) else ', '.join(targets)}")
    with errors_naming("adapter"):
        prepared = inject.prepare(config, inject.initial_parts(config, model, torch_seed(seed)), model)
    _inject(model, name, config, prepared)
    return model


def activate(model: nn.Module, *names: str, weights: Sequence[float] | None = None) -> None:
    """Activate these adapters and no others: their updates add up, and only they are trained.

    Args:
        model: A model with adapters.
        names: Names of adapters, each once; without names no adapter is active.
        weights: A factor of each adapter's low-rank update, 1 by default; peft's ``set_scale``. Trained rows, biases
            and ``modules_to_save`` replace the model's whatever the factor, as in peft.

    Raises:
        ValueError: If there is no such adapter, adapters are merged, two of them replace the same module, or there is
            not one weight for each.
    """
    known = _names(model)
    for name in names:
        string("a name of an adapter", name)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no adapter is named {', '.join(unknown)}; there are {', '.join(known) or 'none'}")
    if len(set(names)) < len(names):
        raise ValueError(f"adapters {', '.join(names)} are given; expected each once")
    weights = None if weights is None else list(iterator("weights", weights, "a list of numbers"))
    if weights is not None and (len(weights) != len(names) or not all(map(math.isfinite, weights))):
        raise ValueError(f"weights are {list(weights)}; expected a finite number for each of {len(names)} adapters")
    layers = dict(adapted_layers(model))
    for path, layer in layers.items():
        if layer.unmerged is not None:
            raise ValueError("adapters are merged into the weights; unmerge them first")
        replacing = [name for name in names if name in layer.replacements or _has_rows(layer, name)]
        if len(replacing) > 1:
            raise ValueError(f"adapters {' and '.join(replacing)} both replace {path}; expected one of them")
    strengths = dict(zip(names, weights or [1.0] * len(names), strict=True))
    for layer in layers.values():
        layer.active = tuple((name, float(strengths[name])) for name in names if name in layer.names())
        for name in layer.names() - set(names):
            for weight in layer.learned(name):
                weight.requires_grad_(False)
        for name, _ in layer.active:
            for weight in layer.learned(name):
                weight.requires_grad_(True)
            if _configs(model)[name].init_lora_weights == "mica" and name in layer.adapters:  # MiCA trains A alone
                for key, weight in layer.adapters[name].named_parameters():
                    weight.requires_grad_(not key.endswith("_B"))


def remove(model: AnyModel) -> AnyModel:
    """Remove all adapters and return the model; merged weights stay merged."""
    check_module(model)
    for path, layer in reversed(list(adapted_layers(model))):
        parent, last = parent_of(model, path)
        setattr(parent, last, layer.base_layer)
    _configs(model).clear()
    return model


def names(model: nn.Module) -> list[str]:
    """Return the sorted names of the model's adapters."""
    check_module(model)
    return sorted({name for _, layer in adapted_layers(model) for name in layer.names()})


_names = names  # also the name of an argument


def save(model: nn.Module, folder: str | Path, name: str = "default", base: str | None = None) -> None:
    """Write one adapter into a folder that peft loads.

    Args:
        model: A model with the adapter.
        folder: Created if it does not exist; an interrupted call leaves no partial file.
        name: Name of the adapter.
        base: The ``base_model_name_or_path`` in the file.

    Raises:
        ValueError: If there is no such adapter.
    """
    _check_known(model, name)
    files.write(model, checked_path("folder", folder), name, _configs(model)[name], base)


def load(model: AnyModel, folder: str | Path, name: str = "default", **hub: Unpack[HubOptions]) -> AnyModel:
    """Add the adapter of a folder, written by peft or `save`, to the model, activate it, and return the model.

    The adapter has the model's train or eval mode. Its weights are at least float32, as in peft.

    Args:
        model: The model.
        folder: A folder, or else a repository on the Hugging Face Hub: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        name: The adapter's name in the model.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``subfolder``, as in peft.

    Raises:
        OSError: If the folder has no adapter, or there is neither folder nor repository.
        ValueError: If a file is damaged, a field of the config is not honoured, or the adapter does not fit the model;
            it names the file, the field or tensor, and the expectation. The model is then unchanged.
    """
    check_module(model)
    folder = local_path(folder, files.needed_files, **hub)
    config, parts = _read(model, folder)
    _check_name(model, name)
    with errors_naming(folder / CONFIG):
        prepared = inject.prepare(config, parts, model)
    _inject(model, name, config, prepared)
    return model


@torch.no_grad()
def restore(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Load the tensors that `save` wrote into an adapter that the model already has.

    Raises:
        FileNotFoundError: If the folder has no adapter.
        ValueError: If a file is damaged, or its adapter has other layers, shapes or scales.
    """
    _check_known(model, name)
    own = _tensors(files.stored_parts(model, name))
    config, parts = _read(model, checked_path("folder", folder))
    scales = {path: layer.adapter(name).scale for path, layer in adapted_layers(model) if name in layer.adapters}
    found = _tensors(parts)
    wrong = sorted({path for path, _ in found.keys() ^ own.keys()})
    wrong += [path for path, key in found.keys() & own.keys() if found[path, key].shape != own[path, key].shape]
    if wrong:
        raise ValueError(f"{folder}: the adapter is of other layers or of another rank: {', '.join(wrong[:8])} differ")
    ours = _configs(model)[name]
    if config.init_lora_weights != ours.init_lora_weights:
        raise ValueError(
            f"{folder}: init_lora_weights is {shown(config.init_lora_weights)}; expected {ours.init_lora_weights!r}, "
            "as of the adapter"
        )
    for path, part in parts.items():
        if part.rows and part.rows != (trained := _rows(model, path, name)):
            raise ValueError(f"{folder}: trainable_token_indices are {part.rows} of {path}; expected {trained}")
        if not part.update or part.rows:
            continue
        scale, expected = config.scale(path), float(scales[path])
        if not math.isclose(scale, expected):
            raise ValueError(f"{folder}: the adapter's scale, alpha / rank, of {path} is {scale}; expected {expected}")
    for key, tensor in found.items():
        own[key].copy_(tensor)


@torch.no_grad()
def add_weighted_adapter(
    model: AnyModel,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
) -> AnyModel:
    """Add the weighted sum of adapters as a new adapter, activate it, and return the model.

    Arguments and result are those of peft's method with this name.

    Args:
        model: A model with adapters.
        adapters: Names of the adapters to sum.
        weights: A factor for each; it may be negative.
        adapter_name: Name of the new adapter.
        combination_type: ``"cat"``: the exact sum; its rank is the sum of the ranks. ``"svd"``: the nearest update of
            the largest rank, or of ``svd_rank``. ``"linear"``: the product of the summed matrices, which is not the
            sum of the products.
        svd_rank: The rank of ``"svd"``.

    Raises:
        ValueError: If an adapter is unknown or not plain LoRA, the name is taken, or the combination type is unknown.
    """
    adapters = list(iterator("adapters", adapters, "a list of names"))
    weights = list(iterator("weights", weights, "a list of numbers"))
    for name in adapters:
        _check_known(model, name)
    _check_name(model, adapter_name)
    if combination_type not in weighted.KINDS:
        raise ValueError(f"combination_type is {shown(combination_type)}; expected one of {', '.join(weighted.KINDS)}")
    if not adapters or len(weights) != len(adapters) or not all(map(math.isfinite, weights)):
        raise ValueError(f"weights are {weights}; expected a finite number for each of {adapters}")
    if svd_rank is not None and svd_rank < 1:
        raise ValueError(f"svd_rank is {svd_rank}; expected at least 1")
    kind = "linear" if len(adapters) == 1 else combination_type
    config = weighted.weighted_config([_configs(model)[name] for name in adapters], adapters, kind, svd_rank)
    parts: dict[str, ModuleTensors] = {}
    for path, layer in adapted_layers(model):
        updates = []
        for name, weight in zip(adapters, weights, strict=True):
            update = layer.adapter(name) if name in layer.adapters else None
            if isinstance(update, (Adapter, EmbeddingAdapter)):
                updates.append((update, weight))
        if updates:
            parts[path] = weighted.weighted_part(updates, kind, config.r)
    if set(files.targeted(config, dict(base_modules(model)))) != parts.keys():
        config = weighted.targeting(config, sorted(parts))
    _inject(model, adapter_name, config, inject.prepare(config, parts, model))
    return model


def _read(model: nn.Module, folder: Path) -> tuple[AdapterConfig, dict[str, ModuleTensors]]:
    config = AdapterConfig.read(folder)
    tensors, source = files.read_tensors(folder)
    parts = files.match(config, tensors, source, model)
    if not parts:
        raise ValueError(f"{source}: holds no tensor of an adapter")
    return config, parts


def _inject(model: nn.Module, name: str, config: AdapterConfig, prepared: dict[str, Any]) -> None:
    """Add a prepared adapter to the model and activate it."""
    if any(layer.unmerged is not None for _, layer in adapted_layers(model)):
        raise ValueError("adapters are merged into the weights; unmerge them first")
    for weight in model.parameters():
        weight.requires_grad_(False)
    inject.inject(model, name, prepared)
    _configs(model)[name] = config
    activate(model, name)


def _configs(model: nn.Module) -> dict[str, AdapterConfig]:
    """Return the configs of the model's adapters by name; changes to the dict are stored."""
    return model.__dict__.setdefault("adapter_configs", {})


def _tensors(parts: Mapping[str, ModuleTensors]) -> dict[tuple[str, str], Tensor]:
    """Return the tensors of an adapter by path and name; replacement parameters have the prefix ``own.``."""
    return {
        (path, key): tensor
        for path, part in parts.items()
        for key, tensor in {**part.update, **{f"own.{key}": value for key, value in part.own.items()}}.items()
    }


def _rows(model: nn.Module, path: str, name: str) -> tuple[int, ...]:
    """Return the ids of the rows of an embedding or head that an adapter trains; empty if there are none."""
    update = dict(adapted_layers(model))[path].adapter(name)
    return tuple(update.index_K.tolist()) if isinstance(update, TrainedRows) else ()


def _has_rows(layer: AdaptedLayer, name: str) -> bool:
    return name in layer.adapters and isinstance(layer.adapters[name], TrainedRows)


def _check_known(model: nn.Module, name: str) -> None:
    if name not in names(model):
        raise ValueError(f"no adapter is named {shown(name)}; there are {', '.join(names(model)) or 'none'}")


def _check_name(model: nn.Module, name: str) -> None:
    if not string("name", name) or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"an adapter cannot be named {shown(name)}: a dot, or a method of ModuleDict")
    if name in names(model):
        raise ValueError(f"an adapter named {shown(name)} exists already")
