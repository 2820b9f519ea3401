"""The tensors of a GGUF file: their names in llama.cpp and in Hugging Face checkpoints, and how to read them.

Source: `gguf-py/gguf/constants.py` of llama.cpp for the names. The `gguf` package dequantizes
the tensor types.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from bpe_llama._gguf.header import GGUFHeader, TensorInfo

_CHUNK_ELEMENTS = 1 << 24  # dequantize at most 64 MiB of float32 at a time

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EXPERT_NAMES = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
"""One GGUF tensor of these names holds the matrices of all experts of a layer."""
ROUTER_NAMES = {"ffn_gate_inp": "block_sparse_moe.gate"}
ROPE_FACTORS = "rope_freqs.weight"
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def huggingface_name(gguf_name: str) -> str | None:
    """Return the Hugging Face name of a GGUF tensor, or None if it has none.

    Example:
        >>> huggingface_name("blk.3.attn_q.weight")
        'model.layers.3.self_attn.q_proj.weight'
    """
    if match := LAYER_TENSOR.fullmatch(gguf_name):
        layer, part, kind = match.groups()
        target = LAYER_NAMES.get(part) or ROUTER_NAMES.get(part)
        return f"model.layers.{layer}.{target}.{kind}" if target else None
    part, _, kind = gguf_name.rpartition(".")
    return f"{OUTER_NAMES[part]}.{kind}" if part in OUTER_NAMES and kind == "weight" else None


def read_tensor(header: GGUFHeader, info: TensorInfo, dtype: torch.dtype) -> Tensor:
    """Return one tensor, dequantized to `dtype`, with its rows in GGUF's order.

    Raises:
        ValueError: If the tensor type is unknown.

    Cost: one pass over the file's bytes; at most 64 MiB besides the result.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if info.nbytes is None:
        raise ValueError(f"{info.path}: tensor {info.name!r} has tensor type {info.type_id}, which is not known")
    rows = info.shape[0] if len(info.shape) > 1 else 1
    out = torch.empty(info.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    raw = np.memmap(info.path, np.uint8, "c", info.start, (rows, info.nbytes // rows))
    step = max(1, _CHUNK_ELEMENTS * rows // out.numel())
    flat = out.view(rows, -1)
    for begin in range(0, rows, step):
        values = dequantize(raw[begin : begin + step], GGMLQuantizationType(info.type_id))
        flat[begin : begin + step] = torch.from_numpy(values)
    return out
