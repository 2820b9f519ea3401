"""The layers of a model for many rows: products by cuBLAS, norms, RoPE and SwiGLU by Triton, prompts through SDPA.

With many rows a product is bound by arithmetic, which cuBLAS does best. Queries, keys and values are one product, gate
and up another. Hidden states are float32 between the products. A layer is nine launches.

Shapes: ``M`` rows (new tokens), ``D`` hidden_size, ``O`` out_features, ``N`` heads, ``H`` head_dim, ``R`` rotated
features of a head, ``B`` slots, ``T`` new tokens of a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.backends.adjacent import make_adjacent
from bpe_llama.model.backends.cuda import triton_kernels as kernels
from bpe_llama.model.backends.layer_parts import GatedBlock, LayerParts, layer_parts
from bpe_llama.model.backends.norms import Norm
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.layers.attention_backends import Visible, sdpa
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.windows import sliding_windows

Product = Callable[[Tensor], Tensor]
Attend = Callable[[int, Tensor], Tensor]
"""Takes a layer's number and its queries, keys and values side by side, (M, O); returns the output (M, N * H)."""

BLOCK_F = 1024
"""Features of one program of `_swiglu`."""


def _product(linears: Sequence[nn.Module]) -> Product:
    """Return the product with layers that share their input; plain weights become adjacent."""
    if all(type(linear) is nn.Linear for linear in linears):
        weight_OI = make_adjacent([linear.weight for linear in linears])  # type: ignore[misc]
        biases = [linear.bias for linear in linears if isinstance(linear.bias, Tensor)]
        return partial(functional.linear, weight=weight_OI, bias=make_adjacent(biases) if biases else None)
    return linears[0] if len(linears) == 1 else lambda x_MI: torch.cat([linear(x_MI) for linear in linears], dim=-1)


class _Layer:
    """The products and norms of one layer."""

    def __init__(self, layer: LayerParts) -> None:
        if not isinstance(layer.mlp, GatedBlock) or layer.before_attention is None or layer.before_mlp is None:
            raise TypeError("the kernels compute no mixture of experts, and no layer without norms before its blocks")
        self.before_attention, self.before_mlp = layer.before_attention, layer.before_mlp
        self.qkv, self.out = _product(layer.qkv), _product([layer.out])
        self.gate_up, self.down = _product(layer.mlp.gate_up), _product([layer.mlp.down])


class WideLayers:
    """The layers of a model for many rows.

    Args:
        model: One for which `unsupported_by_triton` is None. Weights of layers that share an input are moved side by
            side; the parameters stay the same objects.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.layers = [_Layer(layer) for layer in layer_parts(model)]
        self.final_norm = Norm(model.model.norm)

    def hidden(self, ids_M: Tensor, attend: Attend) -> Tensor:
        """Return the normalized hidden states after the last layer, (M, D), in the model's dtype.

        Args:
            ids_M: int64.
            attend: Computes a layer's attention.
        """
        x_MD = self.model.model.embed_tokens(ids_M).float()
        normed_MD = torch.empty_like(x_MD, dtype=self.model.dtype)
        _norm(normed_MD, x_MD, None, self.layers[0].before_attention)
        for number, layer in enumerate(self.layers):
            _norm(normed_MD, x_MD, layer.out(attend(number, layer.qkv(normed_MD))), layer.before_mlp)
            last = number + 1 == len(self.layers)
            following = self.final_norm if last else self.layers[number + 1].before_attention
            _norm(normed_MD, x_MD, layer.down(_swiglu(layer.gate_up(normed_MD))), following)
        return normed_MD


def _norm(normed_MD: Tensor, x_MD: Tensor, branch_MD: Tensor | None, norm: Norm) -> None:
    """Add a block's output to the hidden states, and write what the next block reads."""
    rows, size = x_MD.shape
    kernels._add_norm[rows,](
        out=normed_MD, x=x_MD, branch=x_MD if branch_MD is None else branch_MD, norm=norm.weight, size=size,
        eps=norm.eps, ADDED=branch_MD is not None, BLOCK=triton.next_power_of_2(size), num_warps=8,
    )  # fmt: skip


def _swiglu(gate_up_MO: Tensor) -> Tensor:
    """Return the input of the down projection, (M, O / 2)."""
    rows, size = len(gate_up_MO), gate_up_MO.shape[1] // 2
    out_MF = gate_up_MO.new_empty(rows, size)
    kernels._swiglu[rows, triton.cdiv(size, BLOCK_F)](out=out_MF, gate_up=gate_up_MO, size=size, BLOCK=BLOCK_F)
    return out_MF


def rotated_queries(
    model: LlamaForCausalLM, qkv_MO: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, layer: int,
    position_M: Tensor, tokens: int,
) -> Tensor:  # fmt: skip
    """Return the rotated queries, (M, N, H), and write rotated keys and values to the cache.

    Args:
        model: Its config says how many heads there are.
        qkv_MO: Queries, keys and values side by side, contiguous.
        rotation: Cosines and sines of the positions, each float32 (M, R / 2), contiguous.
        cache: Full; slot ``m // tokens`` belongs to row m.
        layer: The number of the layer.
        position_M: int64; negative for a row without a sequence.
        tokens: Rows of each slot.
    """
    config = model.config
    heads, kv_heads, size = config.num_attention_heads, config.kv_heads, config.head_size
    query_MNH = qkv_MO.new_empty(len(qkv_MO), heads, size)
    kernels._apply_rope[len(qkv_MO), heads + 2 * kv_heads](
        query=query_MNH, qkv=qkv_MO, cos=rotation[0], sin=rotation[1], keys=cache.keys[layer],
        values=cache.values[layer], position=position_M, capacity=cache.capacity, tokens=tokens, HEADS=heads,
        KV_HEADS=kv_heads, SIZE=size, HALF=rotation[0].shape[1], BLOCK=triton.next_power_of_2(size), num_warps=1,
    )  # fmt: skip
    return query_MNH


class WidePrefill:
    """Runs the new tokens of prompts through `WideLayers`, with torch's SDPA: flash attention in bfloat16.

    Args:
        layers: The model's.
    """

    def __init__(self, layers: WideLayers) -> None:
        self.layers = layers
        self.window = sliding_windows(layers.model.config.windows)[0]

    def hidden(self, ids_BT: Tensor, cache: KVCache) -> Tensor | None:
        """Return the normalized hidden states, (B, T, D), and extend the cache; None where `llama.py` has to run.

        That is where slots differ in length, or a sliding window hides cached keys: both need a mask.

        Raises:
            ValueError: If the cache has no room.
        """
        batch, tokens = ids_BT.shape
        end = max(cache.lengths) + tokens
        if type(cache) is not KVCache or min(cache.lengths) + tokens < end or (self.window or end) < end:
            return None
        columns = cache.place(batch, tokens)
        model = self.layers.model
        position_T = torch.arange(columns.start, end, device=ids_BT.device)
        cos, sin = (part[0].repeat(batch, 1) for part in model.model.rotary_emb(position_T[None]))
        position_M = position_T.repeat(batch)

        def attend(number: int, qkv_MO: Tensor) -> Tensor:
            query_MNH = rotated_queries(model, qkv_MO, (cos, sin), cache, number, position_M, tokens)
            query_BNTH = query_MNH.view(batch, tokens, *query_MNH.shape[1:]).transpose(1, 2)
            key_BKSH, value_BKSH = (part[number][:, :, :end] for part in (cache.keys, cache.values))
            out_BNTH = sdpa(query_BNTH, key_BKSH, value_BKSH, Visible(causal=True))
            return out_BNTH.transpose(1, 2).reshape(batch * tokens, -1)

        with torch.cuda.device_of(ids_BT):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            hidden_MD = self.layers.hidden(ids_BT.flatten(), attend)
        cache.advance(tokens)
        return hidden_MD.view(batch, tokens, -1)
