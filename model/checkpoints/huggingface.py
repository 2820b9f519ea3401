"""Hugging Face folders: ``config.json`` with one file of weights, or with shards and their index."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bpe_llama._core import shown
from bpe_llama._files import read_json, read_json_object, write_text, write_together
from bpe_llama.model.checkpoints.assemble import (
    check_counts,
    check_plain,
    check_shapes,
    config_of_weights,
    empty_model,
    expected_shapes,
    fill,
)
from bpe_llama.model.checkpoints.tensor_files import (
    Stored,
    check_floats,
    read_one,
    read_places,
    stored_in,
    stored_together,
)
from bpe_llama.model.checkpoints.tensor_files import save as save_tensors
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_json import text_part
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.family import Family
from bpe_llama.model.generation_config import FILE, GenerationConfig
from bpe_llama.model.pretrained import Model, Pretrained

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
"""A folder that holds it also has an adapter."""
WEIGHT_FILES = (WEIGHTS, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""A folder's first file in this order is read, as in transformers."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OLD_BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Buffers in checkpoints of old versions of transformers; they follow from the config."""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, checked against a model class; no tensor is read yet.

    Attributes:
        folder: The folder.
        config: Config of the model, as its tensors have it.
        generation_config: Its generation config.
        dtype: The dtype that was asked for, or the folder's.
        tensors: By the model's name, each tensor's name in its file, and the file.
        uninitialized: Weights of a new head, which the folder lacks.
    """

    folder: Path
    config: LlamaConfig
    generation_config: GenerationConfig
    dtype: torch.dtype
    tensors: dict[str, tuple[str, Stored]]
    uninitialized: list[str]


def load(
    folder: str | Path,
    model_class: type[Model],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Pretrained, torch.device], None] | None = None,
    num_labels: int | None = None,
) -> Model:
    """Return the model of a folder, in evaluation mode.

    Tensor names may lack the prefix ``model.``. If ``tie_word_embeddings`` is true and a stored head differs from the
    embedding, the head is loaded untied, as in transformers 5. Of a multi-modal model the text model is read.

    Args:
        folder: A folder with ``config.json`` and weights: safetensors or PyTorch's ``.bin``, one file or shards.
        model_class: The class of the result.
        dtype: ``"auto"`` is the config's, or else the embedding's.
        device: ``"auto"`` is CUDA if available, else the CPU.
        progress: Called after each tensor with the tensors read so far and their total.
        check: Called before memory is allocated; see `assemble.empty_model`.
        num_labels: The number of labels of a classifier instead of the config's.

    Warns:
        UserWarning: If the folder also has an adapter, the model is multi-modal, layers for the prediction of further
            tokens are left out, a classifier is loaded from a causal LM (its head is then initialized), a head is
            loaded untied against the config, or ``generation_config.json`` has fields that are not supported.

    Raises:
        FileNotFoundError: If the config, the weights or a shard is missing.
        ValueError: If a file is damaged, or tensors are missing, unexpected or of another shape (all are named), not
            floats, or stored twice with different values.

    Cost: memory peaks at the weights plus the largest tensor.
    """
    found = open_checkpoint(folder, model_class, dtype, num_labels)
    model = empty_model(found.config, found.dtype, resolve_device(device), model_class, check)
    model.generation_config = found.generation_config
    fill(model, read_places(found.tensors), progress, len(found.tensors))
    if found.uninitialized:
        model.reset_parameters(only=found.uninitialized)
        warnings.warn(
            f"{found.folder}: holds no {', '.join(found.uninitialized)}; initialized at random, so it needs training",
            stacklevel=4,
        )
    return model


def open_checkpoint(
    folder: str | Path,
    model_class: type[Pretrained],
    dtype: torch.dtype | str = "auto",
    num_labels: int | None = None,
) -> Checkpoint:
    """Return what a folder holds; for arguments, warnings and errors see `load`."""
    folder = Path(folder)
    config = LlamaConfig.from_json(folder)
    generation_config = GenerationConfig.from_folder(folder)
    values, multimodal = text_part(read_json_object(folder / "config.json"))
    if generation_config.eos_token_ids and "eos_token_id" not in values:
        config = config.replace(eos_token_id=None)  # not LLaMA's default 2, which no file states
    if (folder / ADAPTER).is_file():
        warnings.warn(
            f"{folder}: also holds {ADAPTER}; the adapter is not applied, lora.load(model, folder) does it",
            stacklevel=5,
        )
    if num_labels is not None:
        config = config.replace(num_labels=num_labels)
    tensors = stored_together(_files_of(folder))
    if multimodal is not None:
        tensors = {name: place for name, place in tensors.items() if not _is_left_out(name, multimodal)}
    tensors = _without_layers_after(tensors, config, folder)
    check_counts(tensors, config, folder / "config.json")
    expected = expected_shapes(config.replace(tie_word_embeddings=False), model_class)
    found = _named_for(tensors, expected, folder)
    if HEAD in found and HEAD not in expected and not model_class.NEW_HEAD:
        del found[HEAD]  # the model class has no head
    embedding = next((found[name] for name in (EMBEDDING, "embed_tokens.weight", HEAD) if name in found), None)
    chosen_dtype = resolve_dtype(dtype, auto=config.dtype or (embedding[1].dtype if embedding else None))
    if config.tie_word_embeddings and HEAD in found:
        if EMBEDDING not in found:
            found[EMBEDDING] = found.pop(HEAD)
        elif model_class.NEW_HEAD or _are_tied(found[EMBEDDING], found[HEAD], chosen_dtype):
            del found[HEAD]
        else:
            config = config.replace(tie_word_embeddings=False)
            warnings.warn(
                f"{folder}: tie_word_embeddings is true, but {HEAD} is stored and differs from {EMBEDDING}; it is "
                "loaded, and tie_word_embeddings of the model is false",
                stacklevel=5,
            )
    if config.tie_word_embeddings:
        expected.pop(HEAD, None)
    uninitialized = [name for name in model_class.NEW_HEAD if name not in found]
    if uninitialized:
        found.pop(HEAD, None)
        expected = {name: shape for name, shape in expected.items() if name not in uninitialized}
    check_shapes({name: stored.shape for name, (_, stored) in found.items()}, expected, folder)
    check_floats(found.values())
    return Checkpoint(folder, config, generation_config, chosen_dtype, found, uninitialized)


def save(model: Pretrained, folder: str | Path, portable: bool = True) -> None:
    """Write config, generation config and weights into a folder, which transformers loads.

    A model without a generation config removes the folder's. The files are written in a temporary folder and renamed
    together: a process killed at any moment leaves the old model, or the new one (`bpe_llama._files.write_together`).

    Args:
        model: The model.
        folder: Created if it does not exist.
        portable: Refuse a model that no class of transformers computes. False writes it for this package alone, under
            a ``model_type`` that transformers does not load.

    Warns:
        UserWarning: If the model is a classifier of a family of which transformers has none, or its head differs from
            the embedding although ``tie_word_embeddings`` is true; it is then written as untied.

    Raises:
        ValueError: If layers were adapted or quantized, or the model is not portable; it names the option.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    config = model.config
    if portable and config.unknown_to_transformers:
        name, value = next(iter(config.unknown_to_transformers.items()))
        raise ValueError(
            f"{name} is {shown(value)}, which transformers' {config.model_type} does not compute; "
            "save_pretrained(folder, portable=False) writes a folder that this package alone reads"
        )
    check_plain(model, expected_shapes(config, type(model)))
    config = config_of_weights(model)
    left_out = {HEAD} if config.tie_word_embeddings else set()
    tensors = {
        name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name not in left_out
    }
    with write_together(folder, "config.json", [FILE]) as temporary:
        save_tensors(tensors, temporary / WEIGHTS, {"format": "pt"})
        write_config(model, temporary, config)
        if model.generation_config.values:
            text = json.dumps(_generation_values(model), indent=2, sort_keys=True) + "\n"
            write_text(temporary / FILE, text)


def write_config(model: Pretrained, folder: Path, config: LlamaConfig | None = None) -> None:
    """Write the ``config.json`` of a model, with the dtype of its weights and its class in transformers."""
    config = (config or model.config).replace(dtype=str(model.dtype).removeprefix("torch."))
    described = config.to_dict() | {"architectures": [_architecture(model)]}
    write_text(folder / "config.json", json.dumps(described, indent=2, sort_keys=True) + "\n")


def _generation_values(model: Pretrained) -> dict[str, Any]:
    """Return the fields of ``generation_config.json``: those that were read, with all EOS ids of the model."""
    values = dict(model.generation_config.values)
    ends = [token_id for token_id in model.end_ids if token_id >= 0]
    if set(ends) - set(model.generation_config.eos_token_ids):
        values["eos_token_id"] = ends
    return values


def _is_left_out(name: str, family: Family) -> bool:
    """Return whether a tensor of a multi-modal model is of another part than its text model."""
    return name.removeprefix("model.").partition(".")[0] in family.left_out


def _without_layers_after(tensors: dict[str, Stored], config: LlamaConfig, folder: Path) -> dict[str, Stored]:
    """Return the tensors without the layers that the family's checkpoints have after those of the model; warn of them.

    In transformers each of these layers predicts one more token (`Family.layers_after`).
    """
    count = getattr(config, config.family.layers_after) if config.family.layers_after else 0
    after = range(config.num_hidden_layers, config.num_hidden_layers + count)
    prefixes = tuple(f"layers.{number}." for number in after)
    kept = {name: place for name, place in tensors.items() if not name.removeprefix("model.").startswith(prefixes)}
    if len(kept) < len(tensors):
        warnings.warn(
            f"{folder}: {', '.join(prefix.rstrip('.') for prefix in prefixes)} ({config.family.layers_after}), for the "
            "prediction of further tokens, is not read, as in transformers",
            stacklevel=6,
        )
    return kept


def _architecture(model: Pretrained) -> str:
    """Return the name of transformers' class of this model."""
    family = model.config.family
    if model.NEW_HEAD and not family.has_classifier:
        warnings.warn(
            f"transformers has no classifier of model_type {family.name!r}: this package alone loads the folder",
            stacklevel=4,
        )
    name = family.classifier if family.classifier and model.NEW_HEAD else family.architecture
    return type(model).__name__.replace("Llama", name)


def holds_weights(folder: Path) -> bool:
    """Return whether a folder has weights under one of the names that are read."""
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def _files_of(folder: Path) -> list[Path]:
    """Return the files to read; shards contain all tensors that their index lists."""
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        shards = sorted(path.name for path in folder.glob("*model-*-of-*.*"))
        alone = f"; {shards[0]} is a shard, whose index is absent" if shards else ""
        raise FileNotFoundError(f"{folder}: holds neither {WEIGHTS} nor {', '.join(WEIGHT_FILES[1:])}{alone}")
    if not name.endswith(".json"):
        return [folder / name]
    files = {folder / file: tensors for file, tensors in shards_of(folder / name).items()}
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{folder}: the index names shards that are absent: {', '.join(absent)}")
    for path, listed in files.items():
        stored = stored_in(path)
        lacking = [tensor for tensor in listed if tensor not in stored]
        if lacking:
            raise ValueError(f"{path}: the index promises tensors that are not in it: {', '.join(lacking)}")
    return list(files)


def shards_of(index: Path) -> dict[str, list[str]]:
    """Return the tensors of each shard that an index lists.

    Raises:
        ValueError: If the file is no index, or a shard's name is no plain file name.
    """
    shards: dict[str, list[str]] = {}
    try:
        for tensor, file in read_json(index)["weight_map"].items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is not a plain file name")
            shards.setdefault(file, []).append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = "safetensors" if index.name == INDEX else "PyTorch"
        raise ValueError(f"{index}: not a {kind} index ({error!r})") from error
    return shards


def _named_for(
    stored: dict[str, Stored], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> dict[str, tuple[str, Stored]]:
    """Return each stored tensor and its name in the file, by the model's name; names that the model lacks are kept."""
    found: dict[str, tuple[str, Stored]] = {}
    for theirs, place in stored.items():
        if theirs.endswith(_OLD_BUFFERS):
            continue
        ours = theirs.replace("language_model.", "", 1)  # the text model of a multi-modal one
        names = (ours, f"model.{ours}", ours.removeprefix("model."))
        name = next((name for name in names if name in expected or name == HEAD), theirs)
        if name in found:
            raise ValueError(f"{folder}: holds both {found[name][0]} and {theirs}, which name the same tensor")
        found[name] = theirs, place
    return found


def _are_tied(embedding: tuple[str, Stored], head: tuple[str, Stored], dtype: torch.dtype) -> bool:
    """Return whether both matrices are equal in the dtype of the model."""
    if embedding[1].shape != head[1].shape:
        return False
    return torch.equal(read_one(*embedding).to(dtype), read_one(*head).to(dtype))
