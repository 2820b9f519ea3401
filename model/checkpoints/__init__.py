"""Weights in and out: one file a format, and the door that tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Model

ADAPTER = "adapter_config.json"


def load(
    path: str | Path,
    model_class: type[Model],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    **options: Any,
) -> Model:
    """Return the model stored at ``path``, in evaluation mode.

    Args:
        path: A Hugging Face folder (``config.json`` beside safetensors or ``.bin`` files), a folder of Meta's or
            Mistral's (``params.json`` and ``consolidated*``), or a ``.gguf`` file, of which there may be several parts.
        model_class: What to make; GGUF and Meta files hold causal LMs only.
        dtype: ``"auto"`` keeps what the checkpoint says.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        **options: Of the format's own loader.

    Raises:
        FileNotFoundError: If there is nothing at ``path``, or a folder holds no checkpoint.
        ValueError: If the format is unknown, the file is damaged or holds another kind of model; nothing is
            half-loaded.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        from bpe_llama.model.checkpoints import huggingface, meta

        has_model = (path / "config.json").is_file() or (path / "params.json").is_file()
        if (path / ADAPTER).is_file() and not has_model:
            raise ValueError(
                f"{path}: holds an adapter and no model; load the model that {ADAPTER} names, and the adapter with "
                "lora.load (--adapter)"
            )
        # Mistral's folders may hold both layouts, or a config.json beside the weights of the other.
        has_config, has_params = (path / "config.json").is_file(), (path / "params.json").is_file()
        if has_params and not (has_config and (huggingface.holds_weights(path) or not meta.holds_weights(path))):
            _check_causal(model_class, path)
            return cast(Model, meta.load(path, dtype=dtype, device=device, **options))
        return huggingface.load(path, model_class, dtype=dtype, device=device, **options)
    if path.suffix == ".gguf":
        from bpe_llama.model.checkpoints import gguf

        _check_causal(model_class, path)
        return cast(Model, gguf.load_gguf(path, dtype=dtype, device=device, **options))
    raise ValueError(f"{path}: expected a folder with config.json or params.json, or a .gguf file")


def _check_causal(model_class: type[Model], path: Path) -> None:
    if not issubclass(LlamaForCausalLM, model_class):
        raise ValueError(
            f"{path}: holds a LlamaForCausalLM, not a {model_class.__name__}, which is made of a Hugging Face folder"
        )
