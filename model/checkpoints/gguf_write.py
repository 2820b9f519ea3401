"""Writes a model as a GGUF file that llama.cpp runs: the inverse of `bpe_llama.model.checkpoints.gguf`.

The chosen tensor type is that of the matrices; norms, biases and routers are float32, as llama.cpp requires.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping
from itertools import filterfalse
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bpe_llama._arguments import instance
from bpe_llama._core import shown
from bpe_llama._files import atomic_write
from bpe_llama._gguf.token_types import end_ids
from bpe_llama._gguf.writer import with_end_ids, with_padding
from bpe_llama.model.checkpoints.assemble import check_plain, config_of_weights, expected_shapes, interleaved_rows
from bpe_llama.model.checkpoints.gguf_config import (
    SAMPLING_KEYS,
    config_from_gguf,
    keys_of,
    layout_of,
)
from bpe_llama.model.checkpoints.gguf_rope import rope_metadata, rope_tensors
from bpe_llama.model.checkpoints.gguf_tensors import Content, Names, check_installed
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.rope_scaling import inverse_frequencies
from bpe_llama.model.llama import LlamaForCausalLM

FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # `general.file_type`, which llama.cpp prints
_BLOCK = 32
"""Elements of a row that share a scale in Q8_0 and Q4_0."""
_BLOCK_BYTES = {"F32": 4 * _BLOCK, "F16": 2 * _BLOCK, "BF16": 2 * _BLOCK, "Q8_0": 34, "Q4_0": 18}
_DECIMALS = ("scale", "epsilon", "softcapping", "freq_base", "freq_base_swa", "factor", "log_multiplier")
"""The last words of keys with floats."""
_NOT_STORED = """
    model_type dtype initializer_range attention_dropout router_aux_loss_coef router_z_loss_coef pretraining_tp
    num_labels id2label problem_type bos_token_id eos_token_id pad_token_id rope_theta rope_scaling rope_parameters
    local_rope_parameters layer_types sliding_window use_sliding_window max_window_layers no_rope_layers
    no_rope_layer_interval decoder_sparse_step mlp_only_layers
"""
"""Fields that change no logits, that the tokenizer's metadata hold, or of which `_COMPUTED` holds the effect."""
_COMPUTED = {
    "rope": "rope_parameters",
    "local_rope": "local_rope_parameters",
    "windows": "sliding_window",
    "rotated_layers": "no_rope_layers",
    "sparse_layers": "decoder_sparse_step",
    "expert_groups": "n_group",
}
"""Properties of a config, and the field that an error names."""


def save_gguf(
    model: LlamaForCausalLM,
    path: str | os.PathLike[str],
    dtype: str = "auto",
    tokenizer: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model to a GGUF file; an interrupted call leaves no partial file.

    Args:
        model: A model of a family that has a `bpe_llama.model.family.GGUFLayout`.
        path: The file; replaced if it exists.
        dtype: `"float32"`, `"float16"`, `"bfloat16"`, `"q8_0"`, `"q4_0"`, or `"auto"`, the model's own. With `"q8_0"`
            and `"q4_0"`, matrices whose row length is not a multiple of 32 are written as float16.
        tokenizer: Metadata of the tokenizer, as `bpe_llama._gguf.writer.tokenizer_metadata` returns it. Rows of the
            embedding without a token get an unused one, since llama.cpp expects as many tokens as rows.
        progress: Called after each tensor with the tensors written so far and their total.

    Warns:
        UserWarning: If GGUF has no key for one of the EOS ids or generation defaults, or the head differs from the
            embedding although ``tie_word_embeddings`` is true; both are then written.

    Raises:
        TypeError: If the model is no `LlamaForCausalLM`, such as a classifier.
        ValueError: If the dtype is unknown, llama.cpp does not compute what the config says, the tokenizer has more
            tokens than the model, or layers were replaced by adapted or quantized ones.
        OSError: If the file cannot be written.
        ImportError: If the package `gguf` is not installed.

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
    check_installed()
    import gguf

    path = Path(path)
    instance("model", model, LlamaForCausalLM)
    chosen = str(model.dtype).removeprefix("torch.") if dtype == "auto" else dtype
    stored = FORMATS.get(chosen)
    if stored is None:
        whose = ", the model's own" if dtype == "auto" else ""
        raise ValueError(f"dtype is {shown(chosen)}{whose}; expected auto, {', '.join(FORMATS)}")
    expected = expected_shapes(model.config)
    check_plain(model, expected)
    tokenizer = with_padding(tokenizer or {}, model.config.vocab_size)
    ends = [*model.end_ids, *end_ids(tokenizer, model.config.vocab_size)]
    layout = layout_of(model.config.family)
    metadata, tensors = content_of(model)
    names = Names(layout)
    stacked = {target for target, of_many in map(names.gguf, filterfalse(names.split, expected)) if of_many}
    metadata |= {"general.file_type": _FILE_TYPES[stored], **tokenizer}
    metadata = with_end_ids(metadata, ends, model.config.vocab_size) | _sampling(model)
    kinds = {name: _tensor_type(name, parts[0], stored) for name, parts in tensors.items()}
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, layout.architecture)
        try:
            for key, value in metadata.items():
                writer.add_key_value(key, value, _value_type(gguf, value), _item_type(gguf, value))
            for name, parts in tensors.items():
                shape = (len(parts), *parts[0].shape) if name in stacked else parts[0].shape
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
        warnings.warn(f"a GGUF file has no place for these defaults of generation: {listed}", stacklevel=3)
    return {
        key: defaults[field] if field == "top_k" else float(defaults[field])
        for field, key in SAMPLING_KEYS.items()
        if field in defaults
    }


def _metadata_of(config: LlamaConfig) -> dict[str, Any]:
    """Return the metadata of a config's architecture and its ids.

    Raises:
        ValueError: If the family has no architecture known here.
    """
    layout = layout_of(config.family)
    metadata = rope_metadata(config) | {key: getattr(config, name) for key, name in keys_of(layout).items()}
    metadata |= {
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "vocab_size": config.vocab_size,
    }
    if config.num_local_experts is not None:
        metadata |= {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    metadata |= layout.write(config)
    stated = {
        f"{layout.architecture}.{key}": float(value) if key.endswith(_DECIMALS) else value
        for key, value in metadata.items()
        if value is not None
    }
    ends = (("bos", config.bos_token_id), ("eos", next(iter(config.eos_token_ids), None)))
    for key, token_id in (*ends, ("padding", config.pad_token_id)):
        if token_id is not None and token_id >= 0:
            stated[f"tokenizer.ggml.{key}_token_id"] = token_id
    return stated


def _check_config(config: LlamaConfig, again: LlamaConfig) -> None:
    """Check that the config that a written file says computes what the model's does.

    Raises:
        ValueError: If not; it names the fields.
    """
    layout = layout_of(config.family)
    skipped = {*_NOT_STORED.split(), *layout.unstored} | (
        set() if config.num_local_experts else {"num_experts_per_tok"}
    )
    names = [field.name for field in dataclasses.fields(config) if field.name not in skipped]
    wrong = {
        _COMPUTED.get(name, name)
        for name in (*names, *_COMPUTED)
        if not _same(*(_effect(one, name) for one in (config, again)))
    }
    if config.num_local_experts == 1:
        wrong.add("num_local_experts")
    if wrong:
        raise ValueError(
            f"a GGUF file of architecture {layout.architecture} cannot express this config: {', '.join(sorted(wrong))}"
        )


def _effect(config: LlamaConfig, name: str) -> Any:
    """Return the value of a field or property; of RoPE parameters the frequencies up to and beyond all lengths."""
    value = getattr(config, name, None)
    if not isinstance(value, Mapping):
        return "silu" if value == "swish" else value
    original = value["original_max_position_embeddings"] if value["rope_type"] == "longrope" else None
    size = config.max_position_embeddings
    return original, [inverse_frequencies(value, config.head_size, size, length) for length in (1, 1 << 40)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def content_of(model: LlamaForCausalLM) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """Return the metadata of a model's config, and its tensors in their own order by GGUF's names.

    A list holds one tensor, or those of all numbers of a module (experts).

    Raises:
        ValueError: If llama.cpp does not compute what the config says; it names the fields.
    """
    config = config_of_weights(model)
    metadata, tensors = _metadata_of(config), _tensors(model, config)
    shapes = {name: tuple(parts[0].shape) for name, parts in tensors.items()}
    architecture = layout_of(model.config.family).architecture
    stated = {**metadata, "general.architecture": architecture}
    try:
        again = config_from_gguf(Content(stated, shapes, lambda name: tensors[name][0]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"a GGUF file of architecture {architecture} cannot express this config: {error}") from None
    _check_config(config, again)
    return metadata, tensors


def _tensors(model: LlamaForCausalLM, config: LlamaConfig) -> dict[str, list[Tensor]]:
    """Return the tensors of each GGUF name: one, or those of all numbers of a module in order."""
    names, state = Names(layout_of(config.family)), model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    tensors: dict[str, list[Tensor]] = {}
    for name, weight in state.items():
        if split := names.split(name):
            parts = split[0].split(config, weight)
            tensors |= {part: [tensor] for part, tensor in zip(split[1], parts, strict=True)}
            continue
        target, _ = names.gguf(name)
        tensors.setdefault(target, []).append(weight)
    tensors |= {name: [tensor] for name, tensor in rope_tensors(config).items()}
    return tensors


def _in_gguf_order(name: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    layout = layout_of(config.family)
    part = name.split(".")[-2]
    if layout.norm_offset and part.endswith("norm"):
        return tensor.float() + layout.norm_offset
    if not layout.interleaved or part not in ("attn_q", "attn_k"):
        return tensor
    return interleaved_rows(tensor, config.num_attention_heads if part == "attn_q" else config.kv_heads)


def _tensor_type(name: str, tensor: Tensor, stored: str) -> str:
    if tensor.dim() < 2 or name.endswith(("_norm.weight", ".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight")):
        return "F32"
    return "F16" if stored.startswith("Q") and tensor.shape[-1] % _BLOCK else stored


def _value_type(gguf: Any, value: Any) -> Any:
    """Return the GGUF type that llama.cpp expects: uint32 for integers, float32 for floats."""
    if isinstance(value, int) and not isinstance(value, bool):
        return gguf.GGUFValueType.UINT32
    return gguf.GGUFValueType.ARRAY if isinstance(value, list) else gguf.GGUFValueType.get_type(value)


def _item_type(gguf: Any, value: Any) -> Any:
    is_integers = isinstance(value, list) and bool(value) and type(value[0]) is int
    return gguf.GGUFValueType.INT32 if is_integers else None
