"""Writes a LLaMA as a GGUF file that llama.cpp runs: the inverse of `bpe_llama.model.checkpoints.gguf`.

The chosen tensor type is that of the matrices; norms, biases and routers are float32, as llama.cpp requires.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpe_llama._files import atomic_write
from bpe_llama._gguf.token_types import end_ids
from bpe_llama._gguf.writer import with_end_ids
from bpe_llama.model.checkpoints.assemble import check_plain, expected_shapes, interleaved_rows
from bpe_llama.model.checkpoints.gguf_config import SAMPLING_KEYS
from bpe_llama.model.checkpoints.gguf_tensors import EXPERT_NAMES, LAYER_NAMES, OUTER_NAMES, ROPE_FACTORS, ROUTER_NAMES
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import LlamaForCausalLM

FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # `general.file_type`, which llama.cpp prints
_BLOCK = 32
"""Elements of a row that share a scale in Q8_0 and Q4_0."""
_BLOCK_BYTES = {"F32": 4 * _BLOCK, "F16": 2 * _BLOCK, "BF16": 2 * _BLOCK, "Q8_0": 34, "Q4_0": 18}


def save_gguf(
    model: LlamaForCausalLM,
    path: str | os.PathLike[str],
    dtype: str = "auto",
    tokenizer: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model to a GGUF file; an interrupted call leaves no partial file.

    Args:
        model: A LLaMA or Mixtral.
        path: The file; replaced if it exists.
        dtype: `"float32"`, `"float16"`, `"bfloat16"`, `"q8_0"`, `"q4_0"`, or `"auto"`, the model's own. With `"q8_0"`
            and `"q4_0"`, matrices whose row length is not a multiple of 32 are written as float16.
        tokenizer: Metadata of the tokenizer, as `bpe_llama._gguf.reader.tokenizer_metadata` returns it.
        progress: Called after each tensor with the tensors written so far and their total.

    Warns:
        UserWarning: If GGUF has no key for one of the EOS ids or generation defaults.

    Raises:
        ValueError: If the dtype is unknown, GGUF's llama architecture cannot express the config, or layers were
            replaced by adapted or quantized ones.
        OSError: If the file cannot be written.

    Cost: one pass; memory for one tensor in float32 besides the model.

    Example:
        >>> import tempfile
        >>> config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_gguf(LlamaForCausalLM(config), f"{folder}/m.gguf", dtype="q8_0")
        ...     LlamaForCausalLM.from_pretrained(f"{folder}/m.gguf", device="cpu").config.vocab_size
        32
    """
    import gguf

    path = Path(path)
    stored = FORMATS.get(str(model.dtype).removeprefix("torch.") if dtype == "auto" else dtype)
    if stored is None:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(FORMATS)}")
    check_plain(model, expected_shapes(model.config))
    tokenizer = dict(tokenizer or {})
    ends = [*model.end_ids, *end_ids(tokenizer, model.config.vocab_size)]
    metadata = {**metadata_of(model.config), "general.file_type": _FILE_TYPES[stored], **tokenizer}
    metadata = with_end_ids(metadata, ends, model.config.vocab_size) | _sampling(model)
    tensors = _tensors(model)
    kinds = {name: _tensor_type(name, parts[0], stored) for name, parts in tensors.items()}
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        try:
            for key, value in metadata.items():
                writer.add_key_value(key, value, _value_type(gguf, value), _item_type(gguf, value))
            for name, parts in tensors.items():
                shape = (len(parts), *parts[0].shape) if len(parts) > 1 else parts[0].shape
                elements, kind = math.prod(shape), kinds[name]
                nbytes = elements * _BLOCK_BYTES[kind] // _BLOCK
                quantized = gguf.GGMLQuantizationType[kind]
                writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=quantized)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, (name, parts) in enumerate(tensors.items(), start=1):
                quantized = gguf.GGMLQuantizationType[kinds[name]]
                arrays = (_in_gguf_order(name, part, model.config).detach().float().cpu().numpy() for part in parts)
                writer.write_tensor_data(np.concatenate([gguf.quants.quantize(array, quantized) for array in arrays]))
                if progress is not None:
                    progress(done, len(tensors))
        finally:
            writer.close()


def _sampling(model: LlamaForCausalLM) -> dict[str, Any]:
    """Return the sampling defaults for which GGUF has keys; warn of the others."""
    defaults = model.generation_config.sampling_defaults
    lost = {name: value for name, value in defaults.items() if name not in SAMPLING_KEYS}
    if model.generation_config.max_length is not None:
        lost["max_length"] = model.generation_config.max_length
    if model.generation_config.stop_strings:
        lost["stop_strings"] = list(model.generation_config.stop_strings)
    if lost:
        listed = ", ".join(f"{name} = {value!r}" for name, value in lost.items())
        warnings.warn(f"a GGUF file has no place for these defaults of generation: {listed}", UserWarning, stacklevel=3)
    return {
        key: defaults[field] if field == "top_k" else float(defaults[field])
        for field, key in SAMPLING_KEYS.items()
        if field in defaults
    }


def metadata_of(config: LlamaConfig) -> dict[str, Any]:
    """Return the `llama.*` metadata of a config.

    Raises:
        ValueError: If GGUF's llama architecture cannot express the config; it names the fields.
    """
    if config.model_type == "llama4_text":
        raise ValueError(f"model_type {config.model_type!r} is not written as GGUF; save_pretrained writes a folder")
    inexpressible = {
        "num_local_experts": config.num_local_experts == 1,
        "sliding_window": config.sliding_window is not None,
        "position_encoding": config.position_encoding != "rotary",
        "partial_rotary_factor": config.rope.get("partial_rotary_factor", 1.0) != 1.0,
        "rope_parameters": config.rope["rope_type"] == "yarn" and not _plain_yarn(config.rope),
        "rope_type": config.rope["rope_type"] not in ("default", "linear", "yarn", "llama3"),
    }
    if any(inexpressible.values()):
        names = ", ".join(name for name, wrong in inexpressible.items() if wrong)
        raise ValueError(f"a GGUF file of architecture llama cannot express this config: {names}")
    metadata = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_size,
        "llama.attention.value_length": config.head_size,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.freq_base": float(config.rope["rope_theta"]),
        "llama.rope.dimension_count": config.head_size,
        "llama.vocab_size": config.vocab_size,
    }
    if config.num_local_experts is not None:
        metadata["llama.expert_count"] = config.num_local_experts
        metadata["llama.expert_used_count"] = config.num_experts_per_tok
    ends = (("bos", config.bos_token_id), ("eos", next(iter(config.eos_token_ids), None)))
    for key, token_id in (*ends, ("padding", config.pad_token_id)):
        if token_id is not None and token_id >= 0:
            metadata[f"tokenizer.ggml.{key}_token_id"] = token_id
    if config.rope["rope_type"] in ("linear", "yarn"):
        metadata["llama.rope.scaling.type"] = config.rope["rope_type"]
        metadata["llama.rope.scaling.factor"] = float(config.rope["factor"])
        if "original_max_position_embeddings" in config.rope:
            metadata["llama.rope.scaling.original_context_length"] = config.rope["original_max_position_embeddings"]
    return metadata


def _plain_yarn(rope: Mapping[str, Any]) -> bool:
    """Return whether YaRN's options are llama.cpp's defaults, since a GGUF file does not store them."""
    usual = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "mscale": None, "mscale_all_dim": None}
    usual["truncate"] = True
    return all(rope.get(name, value) in (None, value) for name, value in usual.items())


def _tensors(model: LlamaForCausalLM) -> dict[str, list[Tensor]]:
    """Return the tensors of each GGUF name: one, or those of all experts of a layer in order."""
    layer_names = {theirs: ours for ours, theirs in (LAYER_NAMES | ROUTER_NAMES).items()}
    outer_names = {theirs: ours for ours, theirs in OUTER_NAMES.items()}
    expert_names = {theirs: ours for ours, theirs in EXPERT_NAMES.items()}
    state = model.state_dict()
    tensors: dict[str, list[Tensor]] = {}
    for name in expected_shapes(model.config):
        module, _, kind = name.rpartition(".")
        if module in outer_names:
            target = outer_names[module]
        else:
            _, _, layer, part = module.split(".", 3)
            last = part.rpartition(".")[2]
            target = f"blk.{layer}.{expert_names[last] if '.experts.' in part else layer_names[part]}"
        tensors.setdefault(f"{target}.{kind}", []).append(state[name])
    if model.config.rope["rope_type"] == "llama3":
        scaled = model.model.rotary_emb.get_buffer("inv_freq").cpu().double()
        exponents = torch.arange(0, model.config.head_size, 2, dtype=torch.float64) / model.config.head_size
        unscaled = float(model.config.rope["rope_theta"]) ** -exponents
        tensors[ROPE_FACTORS] = [(unscaled / scaled).float()]
    return tensors


def _in_gguf_order(name: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    if ".attn_q." in name:
        return interleaved_rows(tensor, config.num_attention_heads)
    return interleaved_rows(tensor, config.kv_heads) if ".attn_k." in name else tensor


def _tensor_type(name: str, tensor: Tensor, stored: str) -> str:
    if tensor.dim() < 2 or ".ffn_gate_inp." in name:
        return "F32"
    return "F16" if stored.startswith("Q") and tensor.shape[-1] % _BLOCK else stored


def _value_type(gguf: Any, value: Any) -> Any:
    """Return the GGUF type that llama.cpp expects: uint32 for integers, float32 for floats."""
    if isinstance(value, int) and not isinstance(value, bool):
        return gguf.GGUFValueType.UINT32
    return gguf.GGUFValueType.ARRAY if isinstance(value, list) else gguf.GGUFValueType.get_type(value)


def _item_type(gguf: Any, value: Any) -> Any:
    is_integers = isinstance(value, list) and bool(value) and isinstance(value[0], int)
    return gguf.GGUFValueType.INT32 if is_integers else None
