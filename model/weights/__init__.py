"""Weights in and out: one file a format, and the door that tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bpe_llama.model.llama import LlamaForCausalLM


def load(
    path: str | Path, dtype: torch.dtype | str = "auto", device: torch.device | str = "auto", **options: Any
) -> LlamaForCausalLM:
    """Return the model stored at ``path``, in evaluation mode.

    Args:
        path: A Hugging Face folder (``config.json`` and ``*.safetensors``), or a ``.gguf`` file.
        dtype: ``"auto"`` keeps what the checkpoint says.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        **options: Of the format's own loader.

    Raises:
        FileNotFoundError: If there is nothing at ``path``, or a folder holds no checkpoint.
        ValueError: If the format is unknown or the file is damaged; nothing is half-loaded.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        from bpe_llama.model.weights import huggingface

        return huggingface.load(path, dtype=dtype, device=device, **options)
    if path.suffix == ".gguf":
        from bpe_llama.model.weights import gguf

        loaded: LlamaForCausalLM = gguf.load_gguf(path, dtype=dtype, device=device, **options)
        return loaded
    raise ValueError(f"{path}: expected a folder with config.json, or a .gguf file")
