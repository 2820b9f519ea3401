"""A decoding step in seven Triton kernels a layer, for few sequences: every weight is read once, in its own format.

It computes what `llama.py` does. Norms, residuals and SwiGLU are fused into the products; queries, keys and values are
one product; attention is split among programs over the keys. Hidden states are float32 between the products. No launch
depends on the lengths of the sequences, so one CUDA graph serves all lengths. For more than `FEW_ROWS` sequences in
bfloat16 the products are cuBLAS's (`wide_layers`).

Shapes: ``M`` rows, one a sequence, ``D`` hidden_size, ``N`` heads, ``K`` KV heads, ``H`` head_dim, ``I`` inputs,
``O`` outputs, ``P`` parts of the keys, ``F`` intermediate_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import triton
from torch import Tensor, nn

from bpe_llama.model.backends.adjacent import make_adjacent
from bpe_llama.model.backends.cuda import triton_kernels as kernels
from bpe_llama.model.backends.cuda.memory import PARTS
from bpe_llama.model.backends.cuda.wide_layers import WideLayers, rotated_queries
from bpe_llama.model.backends.layer_parts import GatedBlock, LayerParts, layer_parts
from bpe_llama.model.backends.norms import Norm
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization.layers import Float8Linear, PackedLinear
from bpe_llama.model.quantization.triton_matmul import TritonMatmul
from bpe_llama.model.windows import sliding_windows

FEW_ROWS = 16
"""Rows up to which the fused products serve plain bfloat16 weights: with more, each program normalizes all rows."""
CHUNKS = {torch.bfloat16: 64, torch.float32: 32}
"""Keys that a program attends to at a time, limited by registers."""


def _product(
    linears: Sequence[nn.Module], dtype: torch.dtype, norm: Norm | None = None, gated: bool = False
) -> TritonMatmul:
    """Return the product with layers of one kind that share their input; their weights become adjacent."""
    weights, scales = zip(*(_stored(linear) for linear in linears), strict=True)
    biases = [linear.bias for linear in linears if isinstance(linear.bias, Tensor)]
    return TritonMatmul(
        make_adjacent(weights),
        dtype,
        scale=None if scales[0] is None else make_adjacent(scales),
        group=linears[0].group_size if isinstance(linears[0], PackedLinear) else 0,
        bias_O=make_adjacent(biases) if biases else None,
        norm_I=None if norm is None else norm.weight,
        eps=0.0 if norm is None else norm.eps,
        gated=gated,
    )


def _stored(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weights as they are stored, (O, I) or packed, and their scales, (O,) or by groups."""
    if isinstance(linear, PackedLinear):
        return linear.stored()
    if isinstance(linear, Float8Linear):
        per_row = linear.scale.numel() == linear.out_features
        return linear.weight, linear.scale if per_row else linear.scale.view(1).expand(linear.out_features)
    return linear.weight, None  # type: ignore[return-value]  # of nn.Linear


class _Layer:
    """The products of one layer."""

    def __init__(self, layer: LayerParts, dtype: torch.dtype) -> None:
        if not isinstance(layer.mlp, GatedBlock):
            raise TypeError("the kernels compute no mixture of experts")
        self.qkv = _product(layer.qkv, dtype, layer.before_attention)
        self.out = _product([layer.out], dtype)
        self.gate_up = _product(layer.mlp.gate_up, dtype, layer.before_mlp, gated=True)
        self.down = _product([layer.mlp.down], dtype)


class TritonStep:
    """The weights of a model and the memory that its step for the first slots of a cache writes to.

    Args:
        model: One for which `unsupported_by_triton` is None. Weights of layers that share an input are moved side by
            side; the parameters stay the same objects.
        cache: A full one.
        wide: The model's layers for many rows; by default made here, if the weights are plain bfloat16.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: LlamaForCausalLM, cache: KVCache, wide: WideLayers | None = None) -> None:
        self.model, self.cache, config = model, cache, model.config
        self.layers = [_Layer(layer, model.dtype) for layer in layer_parts(model)]
        self.head = _product([model.lm_head], model.dtype, Norm(model.model.norm))
        rows, size = cache.batch_size, config.head_size
        plain = all(type(linear) is nn.Linear for layer in layer_parts(model) for linear in layer.linears)
        self.wide = None
        if plain and model.dtype == torch.bfloat16 and rows > FEW_ROWS:
            self.wide = wide or WideLayers(model)
        self.heads, self.kv_heads = config.num_attention_heads, config.kv_heads
        self.window = sliding_windows(config.windows)[0] or 0
        empty = partial(torch.empty, dtype=model.dtype, device=model.device)
        full = partial(torch.empty, dtype=torch.float32, device=model.device)
        self.qkv_MO = empty(rows, (self.heads + 2 * self.kv_heads) * size)
        self.parts_MNPH = full(rows, self.heads, PARTS, size)
        self.stats_MNP2 = full(rows, self.heads, PARTS, 2)
        self.attention_MO = empty(rows, self.heads * size)
        self.gated_MF = empty(rows, config.intermediate_size)
        self.logits_MV = empty(rows, config.vocab_size)

    def keys_of(self, longest: int) -> int:
        """Return the cache's capacity: the kernels attend to each sequence's own length, so one graph serves all."""
        return self.cache.capacity

    def logits(self, ids_M: Tensor, place_M: Tensor, end: int = 0) -> Tensor:
        """Return the logits after each id, (M, V), in memory that the next step overwrites.

        Args:
            ids_M: int64; one of each of the first slots.
            place_M: int64; the position of each, at which its keys and values are written to the cache. A row without
                a sequence has -1: it reads and writes nothing of its slot.
            end: Has no effect.
        """
        with torch.cuda.device_of(ids_M):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            return self._logits(ids_M, place_M)

    def _logits(self, ids_M: Tensor, place_M: Tensor) -> Tensor:
        stack, rows = self.model.model, len(ids_M)
        cos_MR, sin_MR = (part[:, 0].contiguous() for part in stack.rotary_emb(place_M[:, None]))

        def attend(number: int, qkv_MO: Tensor) -> Tensor:
            query_MNH = rotated_queries(self.model, qkv_MO, (cos_MR, sin_MR), self.cache, number, place_M, 1)
            return self._attention(number, query_MNH, place_M)

        if self.wide is not None and rows > FEW_ROWS:
            return self.model.lm_head(self.wide.hidden(ids_M, attend))
        x_MD = stack.embed_tokens(ids_M).float()
        qkv_MO, gated_MF, logits_MV = self.qkv_MO[:rows], self.gated_MF[:rows], self.logits_MV[:rows]
        for number, layer in enumerate(self.layers):
            layer.qkv.into(x_MD, qkv_MO)
            layer.out.into(attend(number, qkv_MO), x_MD, add=True)
            layer.gate_up.into(x_MD, gated_MF)
            layer.down.into(gated_MF, x_MD, add=True)
        self.head.into(x_MD, logits_MV)
        return logits_MV

    def _attention(self, number: int, query_MNH: Tensor, place_M: Tensor) -> Tensor:
        """Return the attention output of one new token a slot, (M, N * H)."""
        rows, heads, size = query_MNH.shape
        groups, block = heads // self.kv_heads, triton.next_power_of_2(size)
        out_MO = self.attention_MO[:rows]
        seen = {
            "position": place_M,
            "window": self.window,
            "SIZE": size,
            "CHUNK": CHUNKS[self.model.dtype],
            "PARTS": PARTS,
        }
        parts = {"part_outs": self.parts_MNPH, "part_stats": self.stats_MNP2}
        kernels._attend_part[rows * self.kv_heads, PARTS](
            query=query_MNH, keys=self.cache.keys[number], values=self.cache.values[number],
            capacity=self.cache.capacity, scale=size**-0.5, KV_HEADS=self.kv_heads, GROUPS=groups,
            BLOCK_G=max(triton.next_power_of_2(groups), 16), BLOCK=max(block, 16), num_stages=2, **seen, **parts,
        )  # fmt: skip
        kernels._combine_parts[rows * heads,](out=out_MO, HEADS=heads, BLOCK=block, **seen, **parts)
        return out_MO
