"""Folders of models, written by transformers and changed: what the tests here share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from tests.small_models import SMALL, perturb_vectors

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")

IDS = torch.randint(3, 101, (2, 60), generator=torch.Generator().manual_seed(1))
SHAPE = SMALL | {"num_attention_heads": 8, "max_position_embeddings": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 7},
    "mixtral": {"num_key_value_heads": 4, "num_local_experts": 4, "head_dim": 8},
}

LONG = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [4.0, 5.0, 7.0, 9.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def make(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a folder with transformers."""
    kind = {"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral"}[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SHAPE | FAMILIES[family] | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    perturb_vectors(model)
    model.to(dtype).save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of the config; ``...`` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Change the names of all tensors."""
    rewrite(folder, lambda tensors: {change(name): tensor for name, tensor in tensors.items()})


def put(folder: Path, name: str, tensor: Tensor) -> None:
    """Add or replace one tensor."""
    rewrite(folder, lambda tensors: tensors | {name: tensor})


def shards(folder: Path, suffix: str, parts: int = 3) -> None:
    """Split the weights into shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    start = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = sorted(tensors), {}
    for part in range(parts):
        file = f"{start}-{part + 1:05}-of-{parts:05}.{suffix}"
        held = {name: tensors[name] for name in names[part::parts]}
        if suffix == "safetensors":
            save_file(held, folder / file, metadata={"format": "pt"})
        else:
            torch.save(held, folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{start}.{suffix}.index.json").write_text(json.dumps(index))


def one_bin(folder: Path, legacy: bool = False) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)


def both(folder: Path, **options: Any) -> tuple[Tensor, Tensor]:
    """Return our logits of `IDS` and theirs."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    ours = LlamaForCausalLM.from_pretrained(folder, device="cpu", **options)
    assert str(ours.dtype) == str(theirs.dtype)
    return ours(IDS).logits, theirs(IDS).logits
