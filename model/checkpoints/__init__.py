"""Reads and writes checkpoints, one file per format: Hugging Face, Meta and Mistral, GGUF; and averages them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from bpe_llama._files import complete_writes
from bpe_llama.model.checkpoints import gguf, huggingface, meta
from bpe_llama.model.checkpoints.averaging import average
from bpe_llama.model.checkpoints.huggingface import ADAPTER
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import LoaderOptions, Model

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["average", "load"]


def load(
    path: str | Path,
    model_class: type[Model],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    **options: Unpack[LoaderOptions],
) -> Model:
    """Return the model of a folder or file, in evaluation mode.

    Args:
        path: A Hugging Face folder (``config.json`` with safetensors or ``.bin`` files), a Meta or Mistral folder
            (``params.json`` with ``consolidated*``), or a ``.gguf`` file, which may be one part of several.
        model_class: The class of the result; GGUF, Meta and Mistral files hold causal LMs only.
        dtype: ``"auto"`` is the checkpoint's.
        device: ``"auto"`` is CUDA if available, else the CPU.
        **options: As `LoaderOptions` documents them; ``num_labels`` for a Hugging Face folder alone.

    Raises:
        FileNotFoundError: If ``path`` does not exist, or a folder has no checkpoint.
        ValueError: If the format is unknown, or the file is damaged or of another model class.
    """
    path, own = Path(path), cast("dict[str, Any]", options)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        complete_writes(path)
        has_config, has_params = (path / "config.json").is_file(), (path / "params.json").is_file()
        if (path / ADAPTER).is_file() and not (has_config or has_params):
            raise ValueError(
                f"{path}: holds an adapter and no model; load the model that {ADAPTER} names, and the adapter with "
                "lora.load (--adapter)"
            )
        if not (has_config or has_params) and (of_run := path / "model" / "config.json").is_file():
            raise FileNotFoundError(f"{path} holds no config.json or params.json; {of_run.parent} does")
        # Mistral's folders may have both layouts, or a config.json with the other layout's weights.
        if has_params and not (has_config and (huggingface.holds_weights(path) or not meta.holds_weights(path))):
            _check_causal(model_class, path)
            return cast(Model, meta.load(path, dtype=dtype, device=device, **own))
        return huggingface.load(path, model_class, dtype=dtype, device=device, **own)
    if path.suffix == ".gguf":
        _check_causal(model_class, path)
        return cast(Model, gguf.load_gguf(path, dtype=dtype, device=device, **own))
    raise ValueError(f"{path}: expected a folder with config.json or params.json, or a .gguf file")


def _check_causal(model_class: type[Model], path: Path) -> None:
    if not issubclass(LlamaForCausalLM, model_class):
        raise ValueError(
            f"{path}: holds a LlamaForCausalLM, not a {model_class.__name__}, which is made of a Hugging Face folder"
        )
