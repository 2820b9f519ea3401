"""An adapter's tensors: read from a folder, checked against its config and a model, and written.

Nothing here changes a model.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bpe_llama._core import shown
from bpe_llama._files import errors_naming, write_text, write_together
from bpe_llama.model.adapters.config import CONFIG, AdapterConfig
from bpe_llama.model.adapters.layers import (
    TRAINED_ROWS,
    AdaptedLayer,
    adapted_layers,
    base_modules,
    is_linear,
)
from bpe_llama.model.checkpoints.tensor_files import open_pickled, read_all
from bpe_llama.model.checkpoints.tensor_files import save as save_tensors

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
_LOW_RANK = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|token_adapter\.trainable_tokens_delta)"
)
_STORED_BASES = ("embed_tokens", "lm_head")
"""peft writes the weights of adapted embeddings and heads, in case they were resized."""


@dataclass
class ModuleTensors:
    """An adapter's tensors for one module, by peft's names.

    Attributes:
        update: Low-rank matrices with their bias and magnitude; or trained rows of an embedding.
        own: Parameters that replace the module's.
        trained: Whether the parameters in ``own`` are trained.
        rows: The ids of the trained rows.
    """

    update: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    trained: bool = False
    rows: tuple[int, ...] = ()


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Return an adapter's tensors, their names without peft's prefix, and the file that holds them.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ValueError: If the file is damaged, or has entries that are not an adapter's float tensors.
    """
    source = folder / WEIGHTS
    if not source.is_file() and (folder / PICKLED).is_file():
        source = folder / PICKLED
    if not source.is_file():
        raise FileNotFoundError(f"{folder}: holds neither {WEIGHTS} nor {PICKLED}")
    tensors = read_all(source) if source.name == WEIGHTS else open_pickled(source)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{source}: {key} is of {tensor.dtype}; expected a tensor of floats")
    stray = [key for key in tensors if not key.startswith(PREFIX)]
    if stray:
        raise ValueError(f"{source}: holds other tensors than pairs of lora_A and lora_B: {_few(stray)}")
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}, source


def needed_files(where: str, files: Sequence[str]) -> Generator[Sequence[str], Path, str]:
    """Choose the files of an adapter on the Hub, the tensors last; see `bpe_llama._hub.fetching.Needed`.

    Beside a classifier's adapter, ``config.json`` names the labels.

    Raises:
        FileNotFoundError: If there is no adapter.
    """
    tensors = next((name for name in (WEIGHTS, PICKLED) if name in files), None)
    if tensors is None or CONFIG not in files:
        raise FileNotFoundError(f"{where}: holds no adapter, which is {CONFIG} with {WEIGHTS} or {PICKLED}")
    yield [name for name in (CONFIG, "config.json") if name in files]
    yield [tensors]
    return ""


def match(
    config: AdapterConfig, tensors: Mapping[str, Tensor], source: Path, model: nn.Module
) -> dict[str, ModuleTensors]:
    """Return an adapter's tensors by the paths of a model's modules.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape, or the adapter belongs to another model; it
            names the file, the tensor, its shape and the expected one.
    """
    bases = dict(base_modules(model))
    with errors_naming(source.parent / CONFIG):
        check_fits(config, bases)
        rows = rows_of(config, bases)
    parts: dict[str, ModuleTensors] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        found = _LOW_RANK.fullmatch(key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"))
        if found is None:
            others[key] = tensor
        else:
            parts.setdefault(found[1], ModuleTensors()).update[found[2]] = tensor
    _check_updates(config, parts, source, bases)
    for path, own in _replacements(config, others, source, bases).items():
        parts.setdefault(path, ModuleTensors()).own.update(own)
        parts[path].trained = not _is_stored_base(config, path)
    _check_rows(rows, parts, source, bases)
    return parts


def check_fits(config: AdapterConfig, bases: Mapping[str, nn.Module]) -> None:
    """Raise a ValueError if a model lacks what a config names: its class, modules that can be saved, untied weights.

    peft ignores a name in ``modules_to_save`` that no module has.
    """
    if config.task_type == "SEQ_CLS" and "score" not in bases:
        raise ValueError("task_type is 'SEQ_CLS'; expected it beside a LlamaForSequenceClassification")
    for name in config.modules_to_save:
        if config.task_type == "SEQ_CLS" and name == "classifier":  # peft adds it to every classifier's file
            continue
        if not any(path.endswith(name) for path in bases):
            raise ValueError(f"modules_to_save names {shown(name)}, no module of the model")
    for path in saved_modules(config, bases):
        base = bases[path]
        if isinstance(base, nn.ModuleList) or any(isinstance(part, nn.ModuleList) for part in base.children()):
            raise ValueError(f"modules_to_save names {path}; expected single layers, not all of them")
        if any(isinstance(part, AdaptedLayer) for part in base.modules()):
            raise ValueError(f"modules_to_save names {path}, in which another adapter's layers are")
        if any(hasattr(part, "dequantized") for part in base.modules()):
            raise ValueError(f"modules_to_save names {path}, whose weights are quantized; dequantize them first")
    if config.ensure_weight_tying:
        ends = [path for path, base in bases.items() if isinstance(base, nn.Embedding)] + tied_to_embedding(bases)
        touched = [path for path in ends if config.targets(path) or config.saves(path)]
        if len(ends) > 1 and touched:
            raise ValueError(
                f"ensure_weight_tying is true, and {touched[0]} is tied; expected it false, or an untied model"
            )


def targeted(config: AdapterConfig, bases: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the linear layers and embeddings that have low-rank matrices."""
    return [
        path
        for path, base in bases.items()
        if (is_linear(base) or isinstance(base, nn.Embedding)) and config.targets(path, path in ("lm_head", "score"))
    ]


def saved_modules(config: AdapterConfig, bases: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of ``modules_to_save``; of nested modules the outermost."""
    chosen: list[str] = []
    for path in bases:
        if config.saves(path) and not any(path.startswith(f"{outer}.") for outer in chosen):
            chosen.append(path)
    return chosen


def trained_biases(config: AdapterConfig, bases: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the modules whose biases the adapter trains."""
    if config.bias == "none":
        return []
    among = targeted(config, bases) if config.bias == "lora_only" else list(bases)
    outer = saved_modules(config, bases)
    return [
        path
        for path in among
        if isinstance(getattr(bases[path], "bias", None), Tensor)
        and not any(path == saved or path.startswith(f"{saved}.") for saved in outer)
    ]


def expected_shapes(config: AdapterConfig, path: str, base: nn.Module) -> dict[str, list[int]]:
    """Return the shapes of the low-rank tensors beside a layer."""
    rank = config.rank(path)
    if isinstance(base, nn.Embedding):
        count, size = base.num_embeddings, base.embedding_dim
        shapes = {"lora_embedding_A": [rank, count], "lora_embedding_B": [size, rank]}
    else:
        inputs, size = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        shapes = {"lora_A.weight": [rank, inputs], "lora_B.weight": [size, rank]}
        if config.lora_bias:
            shapes["lora_B.bias"] = [size]
    if config.use_dora:
        shapes["lora_magnitude_vector"] = [size]
    return shapes


def _check_updates(
    config: AdapterConfig, parts: Mapping[str, ModuleTensors], source: Path, bases: Mapping[str, nn.Module]
) -> None:
    wanted = targeted(config, bases)
    with_matrices = [path for path, part in parts.items() if any("lora_" in name for name in part.update)]
    for path in with_matrices:
        if path not in bases:
            raise ValueError(f"{source}: adapts {path}, which the model does not have")
        if path not in wanted:
            raise ValueError(f"{source}: adapts {path}, which target_modules in {CONFIG} does not name")
    for path in wanted:
        if path not in with_matrices:
            raise ValueError(f"{source}: has no update of {path}, which target_modules in {CONFIG} names")
        if isinstance(bases[path], nn.Embedding) and config.lora_bias:
            raise ValueError(f"{source}: lora_bias is true, but {path} is an embedding; expected linear layers alone")
        shapes, found = expected_shapes(config, path, bases[path]), parts[path].update
        for name in sorted(shapes.keys() - found.keys()):
            lacks = "but not its lora_B:" if "_B" in name else "but lacks"
            raise ValueError(f"{source}: holds an update of {path} {lacks} {PREFIX}{path}.{name}, of {shapes[name]}")
        for name in sorted(found.keys() - shapes.keys()):
            raise ValueError(f"{source}: holds {PREFIX}{path}.{name}, which {CONFIG} does not name")
        first, second = list(shapes)[:2]
        given = [list(found[name].shape) for name in (second, first)]
        if given != [shapes[second], shapes[first]]:
            raise ValueError(
                f"{source}: the update of {path} is {given[0]} by {given[1]}; "
                f"expected {shapes[second]} by {shapes[first]}, of rank {config.rank(path)}"
            )
        for name, shape in shapes.items():
            _check_shape(source, f"{path}.{name}", found[name], shape)


def _replacements(
    config: AdapterConfig,
    others: Mapping[str, Tensor],
    source: Path,
    bases: Mapping[str, nn.Module],
) -> dict[str, dict[str, Tensor]]:
    """Return the parameters that replace the base's, by path: saved modules, biases, resized embeddings."""
    saved, biased = saved_modules(config, bases), trained_biases(config, bases)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in others.items():
        if config.bias == "all" and (".modules_to_save." in key or ".original_module." in key):
            continue  # peft writes the biases of saved modules twice and ignores these
        outer = next((path for path in saved if key.startswith(f"{path}.")), None)
        path, _, name = key.replace(".base_layer.", ".").rpartition(".")
        if outer is not None:
            path, name = outer, key.removeprefix(f"{outer}.")
        elif not (name == "bias" and path in biased) and not (name == "weight" and path in _paths_of_embeddings(bases)):
            what = "which the model does not have" if path not in bases else f"which {CONFIG} does not name"
            raise ValueError(f"{source}: holds other tensors than pairs of lora_A and lora_B: {PREFIX}{key}, {what}")
        found.setdefault(path, {})[name] = tensor
    for path in {**found, **dict.fromkeys([*saved, *biased])}:
        parameters = dict(bases[path].named_parameters())
        names = list(parameters) if path in saved else ["bias"] if path in biased else []
        own = found.get(path, {})
        if absent := [name for name in names if name not in own]:
            raise ValueError(
                f"{source}: has no {PREFIX}{path}.{absent[0]}, of {list(parameters[absent[0]].shape)}, "
                f"which {'modules_to_save' if path in saved else 'bias'} in {CONFIG} asks for"
            )
        for name, tensor in own.items():
            if name not in parameters:
                found_type = type(bases[path]).__name__
                raise ValueError(f"{source}: holds {PREFIX}{path}.{name}, which the model's {found_type} does not have")
            _check_shape(source, f"{path}.{name}", tensor, list(parameters[name].shape))
    return _without_equal_embeddings(config, found, bases)


def _paths_of_embeddings(bases: Mapping[str, nn.Module]) -> list[str]:
    return [path for path in bases if path.rpartition(".")[2] in _STORED_BASES]


def _is_stored_base(config: AdapterConfig, path: str) -> bool:
    """Return whether stored parameters are the base's, not trained ones."""
    return not config.saves(path) and path.rpartition(".")[2] in _STORED_BASES


def _without_equal_embeddings(
    config: AdapterConfig, found: dict[str, dict[str, Tensor]], bases: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """Return the parameters without embeddings equal to the model's; others apply to tied layers, too."""
    weights = {path: dict(bases[path].named_parameters()).get("weight") for path in _paths_of_embeddings(bases)}
    for path in [path for path in found if _is_stored_base(config, path)]:
        weight, stored = weights[path], found[path]["weight"]
        if weight is None or torch.equal(stored.to(weight.device, weight.dtype), weight):
            del found[path]
            continue
        for tied in (other for other in weights if weights[other] is weight and not config.saves(other)):
            found[tied] = {"weight": stored}
    return found


def _check_rows(
    wanted: Mapping[str, tuple[int, ...]],
    parts: dict[str, ModuleTensors],
    source: Path,
    bases: Mapping[str, nn.Module],
) -> None:
    """Set the ids of each embedding's trained rows, and check the rows against them."""
    name = TRAINED_ROWS
    for path, part in parts.items():
        if name in part.update and path not in wanted:
            raise ValueError(f"{source}: holds {PREFIX}{path}.{name}, which {CONFIG} does not name")
    for path, index in wanted.items():
        part = parts.get(path, ModuleTensors())
        if name not in part.update:
            raise ValueError(f"{source}: has no {PREFIX}{path}.{name}, which trainable_token_indices asks for")
        if len(part.update) > 1 or part.own:
            raise ValueError(f"{source}: {path} has trained rows and another kind of update, too; expected one of them")
        weight = dict(bases[path].named_parameters())["weight"]
        _check_shape(source, f"{path}.{name}", part.update[name], [len(index), weight.shape[1]])
        part.rows = index


def rows_of(config: AdapterConfig, bases: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the ids of the rows that an adapter trains, by the path of the embedding or head.

    A head that is tied to an embedding with the same rows is left out.

    Raises:
        ValueError: If there is no such module, or an id is outside the vocabulary.
    """
    rows: dict[str, tuple[int, ...]] = {}
    for name, index in config.rows().items():
        path = next((path for path in bases if path.endswith(name)), None)
        weight = None if path is None else dict(bases[path].named_parameters(recurse=False)).get("weight")
        if path is None or weight is None or weight.ndim != 2:
            raise ValueError(f"trainable_token_indices names {shown(name)}, no embedding of the model")
        if outside := [row for row in index if row >= weight.shape[0]]:
            raise ValueError(f"trainable_token_indices holds {outside[0]}; expected 0 to {weight.shape[0] - 1}")
        rows[path] = index
    for head in [path for path in rows if path in tied_to_embedding(bases)]:
        if rows[head] in [rows[path] for path in rows if path != head]:
            del rows[head]
    return rows


def tied_to_embedding(bases: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the linear layers that are tied to the embedding."""
    tables = [id(base.weight) for base in bases.values() if isinstance(base, nn.Embedding)]
    return [path for path, base in bases.items() if is_linear(base) and id(getattr(base, "weight", None)) in tables]


def stored_parts(model: nn.Module, name: str) -> dict[str, ModuleTensors]:
    """Return one adapter's tensors by path, not copied; rows that a tied head shares are returned once."""
    parts: dict[str, ModuleTensors] = {}
    written = set()
    for path, layer in adapted_layers(model):
        if name in layer.adapters and id(layer.adapters[name]) not in written:
            written.add(id(layer.adapters[name]))
            parts.setdefault(path, ModuleTensors()).update = layer.adapter(name).stored()
        if name in layer.replacements:
            parts.setdefault(path, ModuleTensors()).own = dict(layer.replacement_of(name).own_parameters())
    return parts


def write(model: nn.Module, folder: Path, name: str, config: AdapterConfig, base: str | None) -> None:
    """Write one adapter's files into a folder, in which they replace those of another adapter together."""
    tensors: dict[str, Tensor] = {}
    for path, part in stored_parts(model, name).items():
        own = {f"base_layer.{key}" if part.update else key: tensor for key, tensor in part.own.items()}
        for key, tensor in {**part.update, **own}.items():
            tensors[f"{PREFIX}{path}.{key}"] = tensor.detach().cpu().contiguous()
    with write_together(folder, CONFIG) as temporary:
        save_tensors(tensors, temporary / WEIGHTS, {"format": "pt"})
        write_text(temporary / CONFIG, config.to_json(base))


def _check_shape(source: Path, name: str, tensor: Tensor, shape: Iterable[int]) -> None:
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{source}: {PREFIX}{name} is {list(tensor.shape)}; expected {list(shape)}")


def _few(names: list[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (" ..." if len(names) > 8 else "")
