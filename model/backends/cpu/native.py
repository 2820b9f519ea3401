"""The products of a layer and its attention through the compiled core, for as many rows as it is faster than torch.

Hidden states are float32 whatever the weights are: nothing is rounded between a layer's input and its output but what
goes into the cache, and what many rows of a bfloat16 model are multiplied as (see `Linear`).

Shapes: ``M`` rows, ``I`` in_features, ``O`` out_features, ``D`` hidden_size, ``R`` rotated features of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama._core import Linear, attend, has_amx, has_avx512, has_avx512_bf16
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import Rotation
from bpe_llama.model.llama import DecoderLayer
from bpe_llama.model.quantization.quantize import PackedLinear

MOST_ROWS = 48
"""Up to so many rows products with float32 and packed weights are as fast as torch's or faster; with AVX-512, of any
number."""

MOST_ROWS_OF_BFLOAT16, MOST_ROWS_OF_BFLOAT16_IN_UNIT = 32, 64
"""The same for bfloat16, which torch rounds hidden states to: that unit multiplies what ours have not three times.
Where pairs of bfloat16 are multiplied, ours rounds, too, and may have any number."""

FEW_KEYS = 2048
"""Looking at more, counted for each row, torch's attention gains more by several threads than the products lose."""


def can_compile(linears: Sequence[nn.Module]) -> bool:
    """Return whether the compiled core knows the format of these layers' weights, and can read them where they lie.

    Example:
        >>> can_compile([nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16)])
        True
        >>> can_compile([nn.Linear(2, 2, dtype=torch.float64)])
        False
    """
    return all(
        (isinstance(linear, PackedLinear) and linear.is_shared())
        or (type(linear) is nn.Linear and linear.weight.dtype in (torch.float32, torch.bfloat16))
        for linear in linears
    )


def most_rows(linears: Sequence[nn.Module]) -> int:
    """Return up to how many rows the compiled products of these layers, which it `can_compile`, serve best."""
    if any(not isinstance(linear, PackedLinear) and linear.weight.dtype == torch.bfloat16 for linear in linears):
        if has_amx():
            return MOST_ROWS_OF_BFLOAT16_IN_UNIT
        if not has_avx512_bf16():
            return MOST_ROWS_OF_BFLOAT16
    return sys.maxsize if has_avx512() else MOST_ROWS


def reads_prompts() -> bool:
    """Return whether the compiled core looks at the keys of prompts sooner than torch, in whatever dtype these are.

    Torch does so in float32 where no unit multiplies bfloat16, and `attend` with AVX-512 then takes half as long.
    """
    return has_avx512() and not has_amx()


class Rows:
    """M rows of float32 in memory kept, as torch and as the compiled core see it."""

    def __init__(self, tensor_MI: Tensor) -> None:
        self.tensor, self.array = tensor_MI, tensor_MI.numpy()


class CompiledProduct:
    """The product with the matrices of several linear layers that share their input, side by side.

    Args:
        linears: Layers that `can_compile`; their memory is shared.
        norm: Normalises the input first.
        gated: Whether the input is gates and as many numbers more, as a feed-forward block's last product takes it.
    """

    def __init__(self, linears: Sequence[nn.Module], norm: RMSNorm | None = None, gated: bool = False) -> None:
        norm_I, eps = (None, 0.0) if norm is None else (_array(norm.weight), norm.eps)
        self.linear = Linear([_matrix(linear) for linear in linears], norm=norm_I, eps=eps, gated=gated)
        self.biases: list[tuple[slice, Tensor]] = []
        end = 0
        for linear in linears:
            start, end = end, end + int(linear.out_features)  # type: ignore[arg-type]  # a number of both kinds
            if isinstance(linear.bias, Tensor):
                self.biases.append((slice(start, end), linear.bias.detach()))

    def into(self, x_MI: Rows, out_MO: Rows, threads: int, add: bool = False) -> None:
        """Write the product to ``out_MO``, or add it there."""
        self.linear.multiply(x_MI.array, out_MO.array, add, threads)
        for part, bias in self.biases:
            out_MO.tensor[:, part].add_(bias)


def _matrix(linear: nn.Module) -> Any:
    """Return a layer's weights as the compiled core takes them."""
    if isinstance(linear, PackedLinear):
        return linear.packed_matrix()
    return _array(linear.weight)  # type: ignore[arg-type]  # that of nn.Linear


def _array(weight: Tensor) -> Any:
    """Return NumPy's view of a weight: float32, or the bits of bfloat16."""
    weight = weight.detach()
    return (weight if weight.dtype == torch.float32 else weight.view(torch.uint16)).numpy()


class CompiledLayer:
    """The products of one layer."""

    def __init__(self, layer: DecoderLayer) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = CompiledProduct([attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm)
        self.out = CompiledProduct([attention.o_proj])
        self.gate_up = CompiledProduct([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm)
        self.down = CompiledProduct([mlp.down_proj], gated=True)


class CompiledAttention:
    """The attention of one pass over a full cache, by rows that are one token each: one or more of every sequence.

    Args:
        cache: Written to and read; its lengths do not change.
        slots_M: int64; the slot of each row.
        columns_M: int64; its column there, which is its position.
        rotation: Cosines and sines of the rows, float32 (M, R / 2).
        window: Keys that a row looks at, its own included; None is all.

    Raises:
        ValueError: If the cache is of another dtype than float32 and bfloat16.
    """

    def __init__(
        self, cache: KVCache, slots_M: Tensor, columns_M: Tensor, rotation: Rotation, window: int | None
    ) -> None:
        whole = cache.whole.detach()
        if whole.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the cache is of {whole.dtype}; expected torch.float32 or torch.bfloat16")
        self.store = (whole if whole.dtype == torch.float32 else whole.view(torch.uint16)).numpy()
        self.places = torch.stack((slots_M + cache.first_slot, columns_M), dim=1).numpy()
        self.cos, self.sin = (part.contiguous().numpy() for part in rotation)
        self.window = window or 0
        self.threads = torch.get_num_threads()

    def into(self, layer: int, qkv_MO: Tensor, gathered_MO: Tensor) -> None:
        """Turn queries and keys, write keys and values to the cache, and write what each row gathers; both float32."""
        attend(
            qkv_MO.numpy(), self.cos, self.sin, self.store, layer, self.places, gathered_MO.numpy(), self.window,
            self.threads,
        )  # fmt: skip


class CompiledPass:
    """The memory that the products of one pass of M rows read and write."""

    def __init__(self, x_MD: Tensor, qkv_MO: Tensor, gathered_MO: Tensor, gate_up_MO: Tensor) -> None:
        self.x_MD, self.qkv_MO, self.gathered_MO, self.gate_up_MO = map(Rows, (x_MD, qkv_MO, gathered_MO, gate_up_MO))
        self.threads = 1

    @contextmanager
    def looking_at(self, keys: int) -> Iterator[None]:
        """Let these products have torch's threads for a pass in which torch has so many keys to look at a layer.

        If they are few, torch keeps one thread to itself: its others would wait for more to do by turning round and
        round, on the processors that the products need. A thread of the process whose very first use of torch falls
        into such a pass is given one thread by torch, too, until it asks for more.
        """
        self.threads = torch.get_num_threads()
        if self.threads == 1 or keys > FEW_KEYS:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def begin_layer(self, layer: CompiledLayer) -> None:
        """Write the queries, keys and values of a layer."""
        layer.qkv.into(self.x_MD, self.qkv_MO, self.threads)

    def end_layer(self, layer: CompiledLayer, gathered_MO: Tensor) -> None:
        """Add what the attention gathered, and what the feed-forward block makes of it, to the hidden states."""
        self.gathered_MO.tensor.copy_(gathered_MO)
        layer.out.into(self.gathered_MO, self.x_MD, self.threads, add=True)
        layer.gate_up.into(self.x_MD, self.gate_up_MO, self.threads)
        layer.down.into(self.gate_up_MO, self.x_MD, self.threads, add=True)
