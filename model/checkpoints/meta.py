"""Meta's and Mistral's folders: ``params.json`` with the shards of a model-parallel run or with safetensors.

| files | content |
|---|---|
| ``consolidated.00.pth``, ``.01.pth`` … | every matrix, sharded along one axis |
| ``consolidated.safetensors`` | all tensors |
| ``consolidated-00001-of-00002.safetensors`` … | some of the tensors each |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpe_llama._core import shown
from bpe_llama._files import errors_naming, read_json_object
from bpe_llama.model.checkpoints.assemble import (
    check_counts,
    check_shapes,
    empty_model,
    expected_shapes,
    fill,
    half_split_rows,
)
from bpe_llama.model.checkpoints.tensor_files import (
    FLOATS,
    Stored,
    check_floats,
    open_pickled,
    read_places,
    remap_after,
    stored_in,
    stored_together,
)
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_number, check_size
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained

# Meta's name in a layer -> (Hugging Face's name, the sharded axis; None if every shard has all of the tensor).
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

_EXPERT = re.compile(r"feed_forward\.experts\.(\d+)\.(w[123])\.weight")
_PIECE = re.compile(r"consolidated-(\d{5})-of-(\d{5})\.safetensors")
_EMBEDDING = "tok_embeddings.weight"
_KNOWN = """
    dim n_layers n_heads n_kv_heads head_dim hidden_dim norm_eps vocab_size rope_theta sliding_window use_scaled_rope
    rope_scaling_factor low_freq_factor high_freq_factor moe tied_embeddings max_seq_len max_position_embeddings
    max_batch_size multiple_of ffn_dim_multiplier
"""
"""Keys of ``params.json`` that are read, or that the tensors' shapes imply."""
_LLAMA_3_2 = {(2048, 16), (3072, 28)}
"""``dim`` and ``n_layers`` of Llama 3.2 1B and 3B; no key states their RoPE factor."""


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Pretrained, torch.device], None] | None = None,
) -> LlamaForCausalLM:
    """Return the model of a folder in Meta's or Mistral's layout, in evaluation mode.

    The rows of queries and keys are permuted from interleaved RoPE pairs to half-split ones. ``.pth`` is unpickled with
    ``weights_only=True``.

    Args:
        folder: A folder with ``params.json`` and the shards.
        dtype: ``"auto"`` is the stored embedding's.
        device: ``"auto"`` is CUDA if available, else the CPU.
        progress: Called after each tensor with the tensors read so far and their total.
        check: Called before memory is allocated; see `assemble.empty_model`.

    Raises:
        FileNotFoundError: If the parameters or shards are missing.
        ValueError: If a file is damaged, or tensors are missing, unexpected or of another shape (all are named).

    Cost: memory peaks at the weights plus the largest tensor, since shards are memory-mapped.
    """
    folder = Path(folder)
    shards = _shards(folder)
    names = {name: _translate(name) for name in shards[0] if name != "rope.freqs"}
    for number, shard in enumerate(shards):
        if {name for name in shard if name != "rope.freqs"} != set(names):
            raise ValueError(f"{folder}: shard {number} holds other tensors than shard 0")
    if _EMBEDDING not in names:
        raise ValueError(f"{folder}: the shards have no {_EMBEDDING}")
    config = _config(folder, shards)
    check_counts(names, config, folder / "params.json")
    axes = {name: _embedding_axis(config, shards) if axis == -1 else axis for name, (_, axis) in names.items()}
    shapes = {target: _joined_shape(name, axes[name], shards) for name, (target, _) in names.items()}
    check_shapes(shapes, expected_shapes(config), folder)
    check_floats((name, shard[name]) for shard in shards for name in names)
    dtype = resolve_dtype(dtype, auto=shards[0][_EMBEDDING].dtype)
    model = empty_model(config, dtype, resolve_device(device), LlamaForCausalLM, check)

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name, parts in _parts(shards, list(names)):
            target, axis = names[name][0], axes[name]
            tensor = parts[0] if axis is None else torch.cat(parts, dim=axis)
            if target.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = half_split_rows(tensor, len(tensor) // config.head_size)
            yield target, tensor

    return fill(model, stream(), progress, len(names))


def holds_weights(folder: Path) -> bool:
    """Return whether a folder has weights under one of the names that are read."""
    return any(folder.glob("consolidated*"))


def _shards(folder: Path) -> list[dict[str, Stored]]:
    """Return the tensors of each shard of a model-parallel run; safetensors count as one shard."""
    if pickled := sorted(folder.glob("consolidated.*.pth")):
        return [stored_in(path) for path in pickled]
    if (whole := folder / "consolidated.safetensors").is_file():
        return [stored_in(whole)]
    pieces = {path: match for path in sorted(folder.iterdir()) if (match := _PIECE.fullmatch(path.name))}
    if not pieces:
        raise FileNotFoundError(f"{folder}: holds no consolidated.*.pth and no consolidated.safetensors")
    count = int(next(iter(pieces.values()))[2])
    expected = [folder / f"consolidated-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    absent = [path.name for path in expected if path not in pieces]
    if absent or len(pieces) != count:
        raise FileNotFoundError(f"{folder}: shards are absent, or their counts differ: {', '.join(absent)}")
    return [stored_together(expected)]


def _parts(shards: list[dict[str, Stored]], names: list[str]) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the parts of each tensor, one per shard."""
    paths = [shard[names[0]].path for shard in shards]
    if paths[0].suffix == ".safetensors":
        yield from ((name, [tensor]) for name, tensor in read_places({name: (name, shards[0][name]) for name in names}))
        return
    mapped, read_bytes = [open_pickled(path) for path in paths], 0
    limit = remap_after(paths)
    for name in names:
        if read_bytes > limit:
            mapped, read_bytes = [open_pickled(path) for path in paths], 0
        yield name, [shard[name] for shard in mapped]
        read_bytes += sum(shard[name].nbytes for shard in mapped)


def _translate(name: str) -> tuple[str, int | None]:
    """Return Hugging Face's name and the sharded axis; unknown names are returned as they are, for `check_shapes`."""
    if name == _EMBEDDING:
        return "model.embed_tokens.weight", -1  # Llama 2 shards its columns, Llama 3 its rows: see _embedding_axis
    if name in _TOP:
        return _TOP[name]
    start, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if start == "layers" and number.isdecimal() and inner in _LAYER:
        target, axis = _LAYER[inner]
        return f"model.layers.{number}.{target}", axis
    if start == "layers" and number.isdecimal():
        if inner == "feed_forward.gate.weight":
            return f"model.layers.{number}.block_sparse_moe.gate.weight", None
        if match := _EXPERT.fullmatch(inner):
            axis = 1 if match[2] == "w2" else 0
            return f"model.layers.{number}.block_sparse_moe.experts.{match[1]}.{match[2]}.weight", axis
    return name, None


def _config(folder: Path, shards: list[dict[str, Stored]]) -> LlamaConfig:
    path = folder / "params.json"
    params = read_json_object(path)
    with errors_naming(path, (ValueError, TypeError)):
        for key, value in params.items():
            if key not in _KNOWN.split() and value not in (None, False) and (key, value) != ("causal", True):
                raise ValueError(f"{key} is {shown(value)}, a key that is not known and may change the computation")
        for key in ("dim", "n_layers", "n_heads", "norm_eps"):
            if params.get(key) is None:
                raise ValueError(f"{key} is missing")
            (check_number if key == "norm_eps" else check_size)(key, params[key])
        experts = params.get("moe") or {}
        if not isinstance(experts, dict) or set(experts) - {"num_experts", "num_experts_per_tok"}:
            raise ValueError(f"moe is {shown(experts)}; expected num_experts and num_experts_per_tok alone")
        inner = "feed_forward.experts.0.w1.weight" if experts else "feed_forward.w1.weight"
        embedding, width = shards[0][_EMBEDDING], _rows(f"layers.0.{inner}", shards)
        if params.get("hidden_dim") not in (None, width):
            raise ValueError(f"hidden_dim is {shown(params['hidden_dim'])}, but {inner} has {width} rows")
        vocab_size = params.get("vocab_size")
        if vocab_size in (None, -1):  # Llama 2's files leave it to the tokenizer
            vocab_size = _rows("output.weight", shards)
        check_size("vocab_size", vocab_size)
        scaling = None
        if params.get("use_scaled_rope"):
            factor = 32.0 if (params["dim"], params["n_layers"]) in _LLAMA_3_2 else 8.0
            scaling = {
                "rope_type": "llama3",
                "factor": _number(params, "rope_scaling_factor", factor),
                "low_freq_factor": _number(params, "low_freq_factor", 1.0),
                "high_freq_factor": _number(params, "high_freq_factor", 4.0),
                "original_max_position_embeddings": 8192,
            }
        is_mistral = "hidden_dim" in params  # Meta's files have multiple_of instead
        is_llama3 = not is_mistral and vocab_size > 128_009
        context = 32_768 if is_mistral else 131_072 if scaling else 8192 if vocab_size > 100_000 else 4096
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=params["dim"],
            intermediate_size=width,
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
            head_dim=params.get("head_dim"),
            rms_norm_eps=params["norm_eps"],
            rope_theta=_number(params, "rope_theta", 10_000.0),
            rope_scaling=scaling,
            sliding_window=params.get("sliding_window"),
            num_local_experts=experts.get("num_experts"),
            num_experts_per_tok=experts.get("num_experts_per_tok", 2),
            max_position_embeddings=params.get("max_position_embeddings") or params.get("max_seq_len") or context,
            tie_word_embeddings="output.weight" not in shards[0] and params.get("tied_embeddings") is not False,
            bos_token_id=128_000 if is_llama3 else 1,
            eos_token_id=[128_001, 128_008, 128_009] if is_llama3 else 2,
            dtype=embedding.dtype if embedding.dtype in FLOATS else None,
        )


def _number(params: Mapping[str, Any], key: str, default: float) -> float:
    value = default if params.get(key) is None else params[key]
    check_number(key, value)
    return float(value)


def _rows(name: str, shards: list[dict[str, Stored]]) -> int:
    """Return the rows of a matrix that is sharded along them."""
    if name not in shards[0] or not shards[0][name].shape:
        raise ValueError(f"the shards have no matrix {name}; expected one for each layer, and the output's")
    return shards[0][name].shape[0] * len(shards)


def _embedding_axis(config: LlamaConfig, shards: list[dict[str, Stored]]) -> int:
    return 1 if shards[0][_EMBEDDING].shape[:1] == (config.vocab_size,) else 0


def _joined_shape(name: str, axis: int | None, shards: list[dict[str, Stored]]) -> list[int]:
    """Return the shape of a tensor of which each shard has a part.

    Raises:
        ValueError: If the parts differ in another axis.
    """
    shape = list(shards[0][name].shape)
    if axis is None or axis >= len(shape):
        return shape
    for part in (shard[name] for shard in shards):
        if (*part.shape[:axis], *part.shape[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]):
            raise ValueError(f"{part.path}: {name} is {list(part.shape)}, but {shape} in the first shard")
    return [*shape[:axis], sum(shard[name].shape[axis] for shard in shards), *shape[axis + 1 :]]
