"""Hugging Face folders: ``config.json`` beside one ``model.safetensors`` or several shards and their index."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bpe_llama._files import written_whole
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.generation_config import FILE, GenerationConfig
from bpe_llama.model.pretrained import Model, Pretrained
from bpe_llama.model.weights.assemble import check_shapes, empty_model, expected_shapes, fill

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def load(
    folder: str | Path,
    model_class: type[Model],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
    num_labels: int | None = None,
) -> Model:
    """Return the model stored in a folder, in evaluation mode.

    Tensors are read one at a time, so memory peaks at the weights and the largest tensor.

    Args:
        folder: Holds ``config.json`` and the safetensors.
        model_class: What to make; its tensors must be what the folder holds.
        dtype: ``"auto"`` is the config's, or failing that the embedding's own.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        progress: Called with tensors read and tensors in all, after each.
        num_labels: Of a classifier, in place of the config's.

    Warns:
        UserWarning: If a classifier is made of a causal LM, whose folder holds no scores: they are drawn afresh. If
            ``generation_config.json`` asks for what generation here does not do.

    Raises:
        FileNotFoundError: If the config, the weights or a shard is absent.
        ValueError: If a file is damaged, or tensors are missing, unexpected or misshapen (all named at once).
    """
    folder = Path(folder)
    config = LlamaConfig.from_json(folder)
    generation_config = GenerationConfig.from_folder(folder)
    if generation_config.eos_token_ids and not _names_an_end(folder):
        config = config.replace(eos_token_id=None)  # not LLaMA's 2, which no file here says
    if num_labels is not None:
        config = config.replace(num_labels=num_labels)
    files = _files_of(folder)
    shapes, embedding_dtype = _shapes_in(files)
    expected = expected_shapes(config, model_class)
    found = {name: shape for name, shape in shapes.items() if not _passed_over(name, config)}
    fresh = [name for name in model_class.NEW_HEAD if name not in found]
    if fresh:
        found.pop("lm_head.weight", None)
        expected = {name: shape for name, shape in expected.items() if name not in fresh}
    check_shapes(found, expected, folder)
    chosen_dtype = resolve_dtype(dtype, auto=config.dtype or embedding_dtype)
    model = empty_model(config, chosen_dtype, resolve_device(device), model_class)
    model.generation_config = generation_config
    fill(model, _stream(files, expected, progress))
    if fresh:
        model.reset_parameters(only=fresh)
        warnings.warn(
            f"{folder}: holds no {', '.join(fresh)}; drawn afresh, so train the model before you use it",
            UserWarning,
            stacklevel=4,
        )
    return model


def save(model: Pretrained, folder: str | Path) -> None:
    """Write config, generation config and weights into a folder, making it if need be; transformers loads them.

    A model that came without a generation config leaves none in the folder. Each file is written under a temporary name
    and renamed, so a killed process leaves the old file or the new one.

    Raises:
        ValueError: If layers were replaced by adapted or quantised ones.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    config = model.config.replace(dtype=str(model.dtype).removeprefix("torch."))
    kept = expected_shapes(config, type(model))
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name in kept}
    changed = sorted((kept.keys() ^ model.state_dict().keys()) - {"lm_head.weight"})
    if changed:
        raise ValueError(
            "the model's layers were replaced (adapters, quantised weights), so it is not a plain checkpoint: "
            f"{changed[0]} and {len(changed) - 1} others differ; remove or dequantize them, or save the adapter alone"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    described = config.to_dict() | {"architectures": [_architecture(model)]}
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    with written_whole(folder / "config.json") as temporary:
        temporary.write_text(text, encoding="utf-8")
    if not model.generation_config.values:
        (folder / FILE).unlink(missing_ok=True)  # another model's
        return
    text = json.dumps(_generation_values(model), indent=2, sort_keys=True) + "\n"
    with written_whole(folder / FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _generation_values(model: Pretrained) -> dict[str, Any]:
    """Return what ``generation_config.json`` holds: what was read, with every id that the model ends at."""
    values = dict(model.generation_config.values)
    ends = [token_id for token_id in model.end_ids if token_id >= 0]
    if set(ends) - set(model.generation_config.eos_token_ids):
        values["eos_token_id"] = ends
    return values


def _names_an_end(folder: Path) -> bool:
    """Return whether a folder's ``config.json``, which is known to be an object, names an ending id."""
    return "eos_token_id" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _architecture(model: Pretrained) -> str:
    """Return the name of the class that transformers would load it with."""
    return type(model).__name__.replace("Llama", model.config.model_type.capitalize())


def _files_of(folder: Path) -> dict[Path, list[str] | None]:
    """Return each file to read and the tensors the index promises in it (None: whatever it holds)."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}")
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, list[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is not a plain file name")
            names = files.setdefault(folder / file, [])
            if names is not None:
                names.append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX}: not a safetensors index ({error!r})") from error
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{folder}: the index names shards that are absent: {', '.join(absent)}")
    return files


def _shapes_in(files: dict[Path, list[str] | None]) -> tuple[dict[str, list[int]], str | None]:
    """Return every tensor's shape, and the embedding's dtype; no data is read."""
    shapes: dict[str, list[int]] = {}
    dtype = None
    for path, promised in files.items():
        try:
            with safe_open(path, framework="pt") as file:
                held = list(file.keys())
                for name in held:
                    part = file.get_slice(name)
                    shapes[name] = part.get_shape()
                    if name == "model.embed_tokens.weight":
                        dtype = _DTYPES.get(part.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
        absent = [name for name in promised or () if name not in held]
        if absent:
            raise ValueError(f"{path}: the index promises tensors that are not in it: {', '.join(absent)}")
    return shapes, dtype


def _passed_over(name: str, config: LlamaConfig) -> bool:
    """Return whether a checkpoint may hold this tensor though the model does not: a tied head, an old rotary table."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _stream(
    files: dict[Path, list[str] | None],
    wanted: dict[str, tuple[int, ...]],
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    done = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name in wanted]  # noqa: SIM118 - not a dict
        for name in names:
            # Opened anew for each tensor: a mapping kept open would hold every page it has touched in memory.
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)
            done += 1
            if progress is not None:
                progress(done, len(wanted))
