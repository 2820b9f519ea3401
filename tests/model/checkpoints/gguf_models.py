"""Models in GGUF files, written by the gguf package, by code independent of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpe_llama._gguf.header import read_gguf_header
from bpe_llama.model import LlamaForCausalLM
from tests.gguf_files import finish
from tests.small_models import small_config

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files read here")

SHAPE = {"vocab_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.02}
CONFIG = small_config(**SHAPE, rope_theta=50_000.0, rms_norm_eps=1e-5)
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's conversion, row by row: the oracle of `interleaved_rows`."""
    size = weight.shape[0] // heads
    rows = [
        head * size + pair + half * (size // 2) for head in range(heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return weight[rows]


def write_gguf(path: Path, model: LlamaForCausalLM, leave_out: str = "", **metadata: Any) -> Path:
    """Write a model with the gguf package alone, in float32, by code independent of ours."""
    config = model.config
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    writer.add_block_count(metadata.pop("block_count", config.num_hidden_layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        values = tensor.numpy()
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            target = f"blk.{layer}.{LAYER[part]}"
            if part.endswith(("q_proj", "k_proj")):
                values = permuted(values, config.num_attention_heads if part.endswith("q_proj") else config.kv_heads)
        elif module == "lm_head" and config.tie_word_embeddings:
            continue
        else:
            target = outer[module]
        if target != leave_out:
            writer.add_tensor(f"{target}.{kind}", np.ascontiguousarray(values))
    finish(writer)
    return path


def copied(source: Path, target: Path, **changes: Any) -> Any:
    """Return a writer with the metadata of a file and changes to it."""
    writer = gguf.GGUFWriter(target, "llama")
    for key, value in (read_gguf_header(source).metadata | changes).items():
        if key != "general.architecture" and value is not None:
            kind = gguf.GGUFValueType.UINT16 if key.startswith("split.") else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
    return writer


def split(source: Path, parts: int = 3, **changes: Any) -> list[Path]:
    """Split a file as `llama-gguf-split` does: all metadata in the first part, tensors in their order."""
    tensors = gguf.GGUFReader(source).tensors
    paths = [source.with_name(f"part-{number:05}-of-{parts:05}.gguf") for number in range(1, parts + 1)]
    each = -(-len(tensors) // parts)
    for number, path in enumerate(paths):
        keys = {"split.no": number, "split.count": parts, "split.tensors.count": len(tensors)} | changes
        writer = copied(source, path, **keys) if number == 0 else gguf.GGUFWriter(path, "llama")
        for key, value in keys.items() if number else ():
            writer.add_key_value(key, value, gguf.GGUFValueType.UINT16)
        for tensor in tensors[number * each : (number + 1) * each]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        finish(writer)
    return paths
