"""A decoding step in seven Triton kernels a layer, for few sequences: every weight is read once, in its own format.

It computes what `llama.py` does. Norms, residuals and SwiGLU are fused into the products; queries, keys and values are
one product; attention is split among programs over the keys. Hidden states are float32 between the products. No launch
depends on the lengths of the sequences, so one CUDA graph serves all lengths.

Shapes: ``M`` rows, one a sequence, ``D`` hidden_size, ``N`` heads, ``K`` KV heads, ``H`` head_dim, ``I`` inputs,
``O`` outputs, ``C`` chunks of the keys, ``F`` intermediate_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import triton
from torch import Tensor, nn

from bpe_llama.model.backends.adjacent import make_adjacent
from bpe_llama.model.backends.cuda import triton_kernels as kernels
from bpe_llama.model.backends.layer_parts import GatedBlock, LayerParts, layer_parts
from bpe_llama.model.backends.norms import Norm
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization.quantize import Float8Linear, PackedLinear
from bpe_llama.model.quantization.triton_matmul import TritonMatmul
from bpe_llama.model.windows import sliding_windows


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
    """The weights of a model and the memory that its step for ``M`` sequences writes to.

    Args:
        model: One for which `unsupported_by_triton` is None. Weights of layers that share an input are moved side by
            side; the parameters stay the same objects.
        cache: A full one, a slot for each sequence.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: LlamaForCausalLM, cache: KVCache) -> None:
        self.model, self.cache, config = model, cache, model.config
        self.layers = [_Layer(layer, model.dtype) for layer in layer_parts(model)]
        self.head = _product([model.lm_head], model.dtype, Norm(model.model.norm))
        rows, size = cache.batch_size, config.head_size
        self.heads, self.kv_heads = config.num_attention_heads, config.kv_heads
        self.chunk = 64 if model.dtype == torch.float32 else 128  # keys of one program, limited by registers
        self.chunks = triton.cdiv(cache.capacity, self.chunk)
        self.window = sliding_windows(config.windows)[0] or 0
        empty = partial(torch.empty, dtype=model.dtype, device=model.device)
        wide = partial(torch.empty, dtype=torch.float32, device=model.device)
        self.qkv_MO = empty(rows, (self.heads + 2 * self.kv_heads) * size)
        self.query_MNH = empty(rows, self.heads, size)
        self.parts_MNCH = wide(rows, self.heads, self.chunks, size)
        self.extents_MNC2 = wide(rows, self.heads, self.chunks, 2)
        self.attention_MO = empty(rows, self.heads * size)
        self.gated_MF = empty(rows, config.intermediate_size)
        self.logits_MV = empty(rows, config.vocab_size)

    def logits(self, ids_M: Tensor, place_M: Tensor) -> Tensor:
        """Return the logits after each id, (M, V), in memory that the next step overwrites.

        Args:
            ids_M: int64.
            place_M: int64; the position of each, at which its keys and values are written to the cache.
        """
        with torch.cuda.device_of(ids_M):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            return self._logits(ids_M, place_M)

    def _logits(self, ids_M: Tensor, place_M: Tensor) -> Tensor:
        stack = self.model.model
        x_MD = stack.embed_tokens(ids_M).float()
        cos_MR, sin_MR = (part[:, 0].contiguous() for part in stack.rotary_emb(place_M[:, None]))
        for number, layer in enumerate(self.layers):
            layer.qkv.into(x_MD, self.qkv_MO)
            self._attend(number, cos_MR, sin_MR, place_M)
            layer.out.into(self.attention_MO, x_MD, add=True)
            layer.gate_up.into(x_MD, self.gated_MF)
            layer.down.into(self.gated_MF, x_MD, add=True)
        self.head.into(x_MD, self.logits_MV)
        return self.logits_MV

    def _attend(self, number: int, cos_MR: Tensor, sin_MR: Tensor, place_M: Tensor) -> None:
        """Apply RoPE, extend the cache, and write the attention output."""
        rows, heads, kv_heads, size = len(place_M), self.heads, self.kv_heads, self.query_MNH.shape[2]
        keys, values = self.cache.keys[number], self.cache.values[number]
        block = triton.next_power_of_2(size)
        seen = {"position": place_M, "window": self.window, "SIZE": size, "CHUNK": self.chunk}
        kernels._apply_rope[rows, heads + 2 * kv_heads](
            query=self.query_MNH, qkv=self.qkv_MO, cos=cos_MR, sin=sin_MR, keys=keys, values=values, position=place_M,
            capacity=self.cache.capacity, HEADS=heads, KV_HEADS=kv_heads, SIZE=size, HALF=cos_MR.shape[1], BLOCK=block,
            num_warps=1,
        )  # fmt: skip
        partial = {"chunk_outs": self.parts_MNCH, "chunk_stats": self.extents_MNC2, "chunks": self.chunks}
        kernels._attend_chunk[rows * kv_heads, self.chunks](
            query=self.query_MNH, keys=keys, values=values, capacity=self.cache.capacity, scale=size**-0.5,
            KV_HEADS=kv_heads, GROUPS=heads // kv_heads, BLOCK_G=max(triton.next_power_of_2(heads // kv_heads), 16),
            BLOCK=max(block, 16), **seen, **partial,
        )  # fmt: skip
        kernels._combine_chunks[rows * heads,](out=self.attention_MO, HEADS=heads, BLOCK=block, **seen, **partial)
