"""What runs a pass on the CPU: every row limit and every decision by CPU feature, in one place.

| part of a pass | native kernels | PyTorch |
|---|---|---|
| products, norms, gates, experts | up to `native_rows` rows, weights that `has_native_kernels` knows | other passes |
| attention, full cache | passes with native layers; else as `native_attention` says | other prompts |
| attention, quantized or sliding-window cache | none | all |
| a pass by the modules of `llama.py` | | models that `can_decode` refuses; see `decoder_serves` |

Why PyTorch is left a share: where a CPU multiplies bfloat16 matrices in hardware (AMX), or where the kernels lack an
instruction set, its GEMMs are faster from some number of rows on. The limits are measured. Float32 weights have none:
the order of PyTorch's sums depends on the number of rows, and that of the kernels does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import nn

from bpe_llama._core import has_amx, has_avx512, simd_tier
from bpe_llama.model.backends.layer_parts import has_known_layers
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization.layers import PackedLinear

FEW_ROWS = 8
"""Up to so many rows, memory for hidden states and logits is kept from pass to pass: allocating it costs more."""

ALWAYS = sys.maxsize

NATIVE_ROWS = {
    "portable": (48, 32),
    "neon": (48, 32),
    "avx2": (48, ALWAYS),
    "avx512": (ALWAYS, ALWAYS),
    "avx512_bf16": (ALWAYS, ALWAYS),
    "amx": (ALWAYS, 64),
}
"""Rows up to which native products are at least as fast as PyTorch's, for each tier of `bpe_llama._core.simd_tier`:
with packed weights, and with bfloat16 weights.

On a CPU without instructions for bfloat16 PyTorch multiplies it up to fifteen times slower than float32, while native
products widen the weights to float32. AMX multiplies activations rounded to bfloat16 once where the exact native
product takes three passes. The limits of `portable` and `neon` for bfloat16 are not measured."""

FEW_KEYS = 2048
"""Query rows times keys of PyTorch's attention, up to which its threads do not pay beside the native thread pool."""

WEIGHTS_FIRST_ROWS = 64
"""Rows of bfloat16 up to which PyTorch's product is computed as weights times activations and transposed: oneDNN packs
the second operand anew in each call. With more rows, transposing the product costs more than packing the weights."""


def can_decode(model: LlamaForCausalLM) -> bool:
    """Return whether `CpuDecoder` serves a model: one on the CPU for which `has_known_layers` is true.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> can_decode(LlamaForCausalLM(config))
        True
    """
    return model.device.type == "cpu" and has_known_layers(model)


def has_native_kernels(linears: Sequence[nn.Module]) -> bool:
    """Return whether native kernels know the format of these layers' weights, and can read them in place.

    Example:
        >>> has_native_kernels([nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16)])
        True
        >>> has_native_kernels([nn.Linear(2, 2, dtype=torch.float64)])
        False
    """
    return all(
        (isinstance(linear, PackedLinear) and linear.is_shared())
        or (type(linear) is nn.Linear and linear.weight.dtype in (torch.float32, torch.bfloat16))
        for linear in linears
    )


def native_rows(linears: Sequence[nn.Module]) -> int:
    """Return the most rows that native products serve; the layers must have native kernels."""
    packed, bfloat16 = NATIVE_ROWS[simd_tier()]
    rows = (
        packed if isinstance(linear, PackedLinear) else bfloat16 if linear.weight.dtype == torch.bfloat16 else ALWAYS
        for linear in linears
    )
    return min(rows, default=ALWAYS)


def native_attention(new_tokens: int) -> bool:
    """Return whether native kernels compute a sequence's attention over a full cache although PyTorch runs the layers.

    They are faster for one new token, and for a prompt with AVX-512 but no AMX: without AMX, PyTorch attends in float32
    and takes twice as long. Where native kernels run the layers, they compute attention, too.
    """
    return new_tokens == 1 or (has_avx512() and not has_amx())


def decoder_serves(cache: KVCache, rows: int, new_tokens: int, every: bool) -> bool:
    """Return whether `CpuDecoder` runs a pass over slots with equally many new tokens, not the modules of `llama.py`.

    Over a full cache it runs all. Over other forms both use PyTorch's attention, and modules are as fast for a prompt.

    Args:
        cache: Of the pass.
        rows: New tokens of all slots.
        new_tokens: New tokens of each slot.
        every: Whether logits after every token are asked for.
    """
    return type(cache) is KVCache or every or new_tokens == 1 or rows <= FEW_ROWS
