"""Meta's folders: ``params.json`` beside ``consolidated.00.pth``, ``.01.pth`` … of a model-parallel run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.weights.assemble import check_shapes, empty_model, expected_shapes, fill

# Meta's name in a layer -> (Hugging Face's, the axis the shards were cut along; None: every shard holds all of it).
_LAYER: dict[str, tuple[str, int | None]] = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}
_TOP: dict[str, tuple[str, int | None]] = {
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}

_REOPENINGS = 32
"""Shards are mapped anew after each such share of them: a mapping holds every page it has touched in memory."""


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> LlamaForCausalLM:
    """Return the model stored in a Meta folder, in evaluation mode.

    Shards are mapped, not read into memory, and unpickled with ``weights_only=True``. Queries and keys are permuted
    from Meta's interleaved rotary pairs to the half-split ones this package computes with.

    Args:
        folder: Holds ``params.json`` and the shards.
        dtype: ``"auto"`` is that of the stored embedding.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        progress: Called with tensors read and tensors in all, after each.

    Raises:
        FileNotFoundError: If the parameters or the shards are absent.
        ValueError: If a file is damaged, or tensors are missing, unexpected or misshapen (all named at once).
    """
    folder = Path(folder)
    paths = sorted(folder.glob("consolidated.*.pth"))
    shards = [_open(path) for path in paths]
    if not shards:
        raise FileNotFoundError(f"{folder}: holds no consolidated.*.pth")
    names = {name: _translate(name) for name in shards[0] if name != "rope.freqs"}
    for number, shard in enumerate(shards):
        if {name for name in shard if name != "rope.freqs"} != set(names):
            raise ValueError(f"{folder}: shard {number} holds other tensors than shard 0")
    config = _config(folder, shards, tied="output.weight" not in shards[0])
    axes = {name: _embedding_axis(config, shards) if axis == -1 else axis for name, (_, axis) in names.items()}
    shapes = {target: _joined_shape(name, axes[name], shards) for name, (target, _) in names.items()}
    check_shapes(shapes, expected_shapes(config), folder)
    embedding = shards[0]["tok_embeddings.weight"]
    model = empty_model(config, resolve_dtype(dtype, auto=embedding.dtype), resolve_device(device), LlamaForCausalLM)

    def stream() -> Iterator[tuple[str, Tensor]]:
        mapped, read, limit = shards, 0, sum(path.stat().st_size for path in paths) // _REOPENINGS
        for done, (name, (target, _)) in enumerate(names.items(), start=1):
            parts = [shard[name] for shard in mapped]
            axis = axes[name]
            tensor = parts[0] if axis is None else torch.cat(parts, dim=axis)
            read += tensor.nbytes
            if target.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = half_split(tensor, config.head_size)
            yield target, tensor
            if read > limit:
                mapped, read = [_open(path) for path in paths], 0
            if progress is not None:
                progress(done, len(names))

    return fill(model, stream())


def half_split(weight_OD: Tensor, head_dim: int) -> Tensor:
    """Return a projection whose heads pair feature ``i`` with ``i + H/2``, given one that pairs ``2i`` with ``2i + 1``.

    Example:
        >>> half_split(torch.tensor([[0], [1], [2], [3]]), 4).flatten().tolist()
        [0, 2, 1, 3]
    """
    rows, width = weight_OD.shape
    return weight_OD.view(rows // head_dim, head_dim // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _open(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or not a file of tensors alone ({error})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: expected a table of named tensors")
    return tensors


def _translate(name: str) -> tuple[str, int | None]:
    """Return Hugging Face's name and the cut axis; unknown names stay as they are, to be reported as unexpected."""
    if name == "tok_embeddings.weight":
        return "model.embed_tokens.weight", -1  # Llama 2 cut its columns, Llama 3 its rows: see _embedding_axis
    if name in _TOP:
        return _TOP[name]
    start, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if start == "layers" and number.isdecimal() and inner in _LAYER:
        target, axis = _LAYER[inner]
        return f"model.layers.{number}.{target}", axis
    return name, None


def _config(folder: Path, shards: list[dict[str, Tensor]], tied: bool) -> LlamaConfig:
    path = folder / "params.json"
    try:
        params: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        embedding, gate = shards[0]["tok_embeddings.weight"], shards[0]["layers.0.feed_forward.w1.weight"]
        vocab_size = int(params.get("vocab_size", -1))
        if vocab_size < 1:  # Llama 2 left it to the tokenizer
            vocab_size = shards[0]["output.weight"].shape[0] * len(shards)
        scaling = None
        if params.get("use_scaled_rope"):
            scaling = {
                "rope_type": "llama3",
                "factor": float(params.get("rope_scaling_factor", 8.0)),
                "low_freq_factor": float(params.get("low_freq_factor", 1.0)),
                "high_freq_factor": float(params.get("high_freq_factor", 4.0)),
                "original_max_position_embeddings": 8192,
            }
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=params["dim"],
            intermediate_size=gate.shape[0] * len(shards),
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
            rms_norm_eps=params["norm_eps"],
            rope_theta=float(params.get("rope_theta", 10_000.0)),
            rope_scaling=scaling,
            max_position_embeddings=131_072 if scaling else 8192 if vocab_size > 100_000 else 4096,
            tie_word_embeddings=tied,
            bos_token_id=128_000 if vocab_size > 128_009 else 1,
            eos_token_id=[128_001, 128_008, 128_009] if vocab_size > 128_009 else 2,
            dtype=str(embedding.dtype).removeprefix("torch."),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: does not describe a LLaMA ({error!r})") from error


def _embedding_axis(config: LlamaConfig, shards: list[dict[str, Tensor]]) -> int:
    return 1 if shards[0]["tok_embeddings.weight"].shape[0] == config.vocab_size else 0


def _joined_shape(name: str, axis: int | None, shards: list[dict[str, Tensor]]) -> list[int]:
    shape = list(shards[0][name].shape)
    if axis is not None and axis < len(shape):
        shape[axis] = sum(shard[name].shape[axis] for shard in shards)
    return shape
