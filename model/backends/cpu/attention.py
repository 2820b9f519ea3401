"""Attention of one pass: RoPE, the new keys and values, and the attention output of each new token.

Shapes: ``B`` sequences, ``T`` new tokens of one, ``M`` rows (the new tokens of all), ``P`` rows of native attention,
``S`` key length, ``N`` heads, ``K`` KV heads, ``G`` query heads per KV head, ``H`` head_dim, ``R`` rotated features of
a head, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama._core import attend
from bpe_llama.model.backends.cpu.dispatch import native_attention
from bpe_llama.model.backends.cpu.workspace import Workspace
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.attention import visible_keys
from bpe_llama.model.layers.attention_backends import Visible, sdpa, soft_capped
from bpe_llama.model.layers.rope import Rotation


class AttentionKind(NamedTuple):
    """What distinguishes the attention of one layer from that of another."""

    window: int | None
    """Keys that a token attends to, its own included; None is all."""
    rotated: bool
    """Whether RoPE is applied."""
    interleaved: bool
    """Whether RoPE rotates feature ``2 i`` of a head with ``2 i + 1``, and not ``i`` with ``i + R / 2``."""
    softcap: float
    """The bound of scores, ``softcap * tanh(score / softcap)``; 0 if there is none."""


class RaggedBatch:
    """The new ids of one pass, one after the other without padding; a uniform batch is a special case.

    Args:
        ids: New ids of each slot, at least one.
        cache: Its lengths say where they go.
        vocab_size: Ids must be below it.

    Raises:
        ValueError: If an id is outside the vocabulary, a slot has none or no room left, or the number of slots differs.
    """

    def __init__(self, ids: Sequence[Sequence[int]], cache: KVCache, vocab_size: int) -> None:
        lengths = cache.lengths
        self.counts = [len(new) for new in ids]
        if len(ids) != cache.batch_size or not all(self.counts):
            raise ValueError(f"{self.counts} new ids for {cache.batch_size} slots; expected at least one for each")
        self.ends = [before + new for before, new in zip(lengths, self.counts, strict=True)]
        if max(self.ends) > cache.capacity:
            slot = self.ends.index(max(self.ends))
            raise ValueError(
                f"slot {slot} holds {lengths[slot]} tokens and {self.counts[slot]} more exceed the cache's "
                f"{cache.capacity}"
            )
        flat = [new_id for new in ids for new_id in new]
        outside = next((new_id for new_id in flat if not 0 <= new_id < vocab_size), None)
        if outside is not None:
            raise ValueError(f"input id {outside} is outside the vocabulary of {vocab_size}")
        self.ids_M = torch.tensor(flat, device="cpu")
        self.slots = [slot for slot, count in enumerate(self.counts) for _ in range(count)]
        positions = [p for start, end in zip(lengths, self.ends, strict=True) for p in range(start, end)]
        self.positions_M = torch.tensor(positions, device="cpu")
        self.stops: list[int] = []
        """For each sequence one more than its last row."""
        rows = 0
        for count in self.counts:
            rows += count
            self.stops.append(rows)


class NativeAttention:
    """Attention by native kernels over a full cache: one fused call applies RoPE, extends the cache and attends.

    Args:
        cache: Written to and read; its lengths do not change.
        places_P2: int64; slot and column of each row.
        rotation: Cosines and sines of the rows, float32 (P, R / 2).
        kind: Of the layers.

    Raises:
        ValueError: If the cache is of another dtype than float32 and bfloat16.
    """

    def __init__(self, cache: KVCache, places_P2: Tensor, rotation: Rotation, kind: AttentionKind) -> None:
        whole = cache.whole.detach()
        if whole.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the cache is of {whole.dtype}; expected torch.float32 or torch.bfloat16")
        self.store = (whole if whole.dtype == torch.float32 else whole.view(torch.uint16)).numpy()
        self.places = places_P2.numpy()
        self.cos, self.sin = (part.contiguous().numpy() for part in rotation)
        self.window, self.softcap, self.interleaved = kind.window or 0, kind.softcap, kind.interleaved
        self.threads = torch.get_num_threads()

    def into(self, layer: int, qkv_PO: Tensor, out_PO: Tensor) -> None:
        """Extend the cache with a layer's keys and values, and write attention's output; both tensors are float32."""
        attend(
            qkv_PO.numpy(), self.cos, self.sin, self.store, layer, self.places, out_PO.numpy(), self.window,
            self.threads, self.softcap, self.interleaved,
        )  # fmt: skip


class FullCacheAttention:
    """Attention over a full cache: by native kernels, or by PyTorch for sequences that `native_attention` excludes.

    Args:
        batch: The new tokens.
        cache: Written to and read; its lengths do not change.
        rotation: Cosines and sines of all rows, float32 (M, R / 2).
        kind: Of the layers.
        native_layers: Whether native kernels run the layers of this pass.
    """

    def __init__(
        self, batch: RaggedBatch, cache: KVCache, rotation: Rotation, kind: AttentionKind, native_layers: bool
    ) -> None:
        self.cache, self.kind = cache, kind
        self._native: NativeAttention | None = None
        self._native_rows: Tensor | None = None
        """Rows of native attention; None for all."""
        self._torch: list[tuple[int, slice, int, Visible]] = []
        """For each sequence left to PyTorch its slot, rows, length afterwards and visible keys."""
        self.torch_keys = 0
        """Query rows times keys of PyTorch's attention in each layer."""
        native = [native_layers or native_attention(count) for count in batch.counts]
        columns_M = batch.positions_M  # in a full cache a token's column is its position
        places_M2 = torch.stack((torch.tensor(batch.slots, device="cpu") + cache.first_slot, columns_M), dim=1)
        if all(native):
            self._native = NativeAttention(cache, places_M2, rotation, kind)
            return
        cos_MR, sin_MR = rotation
        self._rotation = _broadcast(rotation, kind)
        for slot, (stop, count, end) in enumerate(zip(batch.stops, batch.counts, batch.ends, strict=True)):
            if not native[slot]:
                rows = slice(stop - count, stop)
                self._torch.append((slot, rows, end, self._visible(batch.positions_M[rows], end)))
                self.torch_keys += count * end
        native_rows = [row for row, slot in enumerate(batch.slots) if native[slot]]
        if native_rows:
            self._native_rows = torch.tensor(native_rows, device="cpu")
            places_P2, cos_PR, sin_PR = (part[self._native_rows] for part in (places_M2, cos_MR, sin_MR))
            self._native = NativeAttention(cache, places_P2, (cos_PR, sin_PR), kind)

    def __call__(self, layer: int, space: Workspace) -> None:
        """Extend the cache by a layer's keys and values, and write the attention output to ``space.attention_MO``."""
        if self._native is not None:
            self._attend_native(self._native, layer, space)
        if not self._torch:
            return
        write_rotated(space, *self._rotation)
        key_BKSH, value_BKSH = self.cache.keys[layer], self.cache.values[layer]
        space.query_MNH.copy_(space.rotated_query_MNH)
        for slot, rows, end, visible in self._torch:
            key_KSH, value_KSH = (part[slot, :, :end] for part in (key_BKSH, value_BKSH))
            new = slice(end - (rows.stop - rows.start), end)
            key_KSH[:, new] = space.rotated_key_MKH[rows].transpose(0, 1)
            value_KSH[:, new] = space.value_MKH[rows].transpose(0, 1)
            query_1NTH = space.query_MNH[rows].transpose(0, 1)[None]
            out_1NTH = sdpa(query_1NTH, key_KSH[None], value_KSH[None], visible, softcap=self.kind.softcap or None)
            space.attention_MO[rows] = out_1NTH[0].transpose(0, 1).flatten(1)

    def _attend_native(self, attention: NativeAttention, layer: int, space: Workspace) -> None:
        if self._native_rows is None and space.qkv_MO.dtype == torch.float32:
            attention.into(layer, space.qkv_MO, space.attention_MO)
            return
        rows = slice(None) if self._native_rows is None else self._native_rows
        qkv_PO = space.qkv_MO[rows].float()
        out_PO = qkv_PO.new_empty(len(qkv_PO), space.attention_MO.shape[1])
        attention.into(layer, qkv_PO, out_PO)
        space.attention_MO[rows] = out_PO.to(space.attention_MO.dtype)

    def _visible(self, position_T: Tensor, end: int) -> Visible:
        """Return which of the first ``end`` keys the new tokens of one sequence attend to."""
        window = self.kind.window
        if end == len(position_T) and (window is None or window >= end):
            return Visible(causal=True)
        key_S, position_T1 = torch.arange(end, device="cpu"), position_T[:, None]
        mask_TS = key_S <= position_T1
        if window is not None:
            mask_TS = mask_TS & (key_S > position_T1 - window)
        return Visible(mask=mask_TS[None, None])


class UniformAttention:
    """PyTorch's attention for as many new tokens in every slot, over any form of cache.

    Args:
        batch: The new tokens.
        cache: Written to and read; its lengths do not change.
        rotation: Cosines and sines of all rows, float32 (M, R / 2).
        kind: Of the layers.
        config: Of the model.
        dtype: Of queries, keys and values.

    Raises:
        ValueError: If slots have unequal numbers of new tokens.
    """

    def __init__(
        self,
        batch: RaggedBatch,
        cache: KVCache,
        rotation: Rotation,
        kind: AttentionKind,
        config: LlamaConfig,
        dtype: torch.dtype,
    ) -> None:
        if len(set(batch.counts)) > 1:
            raise ValueError(f"{batch.counts} new ids, but a {type(cache).__name__} takes equally many for each slot")
        self.cache, self.config, self.dtype, self.softcap = cache, config, dtype, kind.softcap
        self.length = batch.counts[0]
        self.places = cache.place(len(batch.counts), self.length)
        visible = visible_keys(self.length, self.places, None, torch.device("cpu"), kind.window)
        self.mask = _query_group_mask(visible, config, self.places, self.length)
        self._rotation = _broadcast(rotation, kind)
        self.torch_keys = len(batch.slots) * self.places.end

    def __call__(self, layer: int, space: Workspace) -> None:
        """Extend the cache by a layer's keys and values, and write the attention output to ``space.attention_MO``."""
        heads = (self.cache.batch_size, self.length, self.config.kv_heads, self.config.head_size)
        write_rotated(space, *self._rotation)
        key_BKTH = space.rotated_key_MKH.view(heads).transpose(1, 2).to(self.dtype)
        value_BKTH = space.value_MKH.view(heads).transpose(1, 2).to(self.dtype)
        key_BKSH, value_BKSH = self.cache.write(layer, key_BKTH, value_BKTH, self.places)
        space.query_MNH.copy_(space.rotated_query_MNH)
        space.attention_MO.copy_(attend_grouped(space.query_MNH, key_BKSH, value_BKSH, self.mask, self.softcap))


def _broadcast(rotation: Rotation, kind: AttentionKind) -> Rotation:
    """Return cosines, each twice, (M, 1, R), and sines, (M, 1, R / 2), as `write_rotated` takes them."""
    cos_M1R, sin_M1R = (part[:, None] for part in rotation)
    twice = cos_M1R.repeat_interleave(2, dim=-1) if kind.interleaved else torch.cat((cos_M1R, cos_M1R), dim=-1)
    return twice, sin_M1R


def write_rotated(space: Workspace, cos_M1R: Tensor, sin_M1R: Tensor) -> None:
    """Apply RoPE to queries and keys, as `apply_rope` does, and write them to ``space.rotated_MNH``.

    Args:
        space: Holds queries and keys.
        cos_M1R: The cosine of each rotated feature, (M, 1, R).
        sin_M1R: Sines, (M, 1, R / 2).
    """
    if space.float_MNH is not space.query_key_MNH:
        space.float_MNH.copy_(space.query_key_MNH)
    torch.mul(space.float_part, cos_M1R, out=space.rotated_part)
    space.new_first.addcmul_(space.second, sin_M1R, value=-1)
    space.new_second.addcmul_(space.first, sin_M1R)
    if space.rest is not None:
        space.rest[1].copy_(space.rest[0])


def attend_grouped(
    query_MNH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, mask: Tensor | None, softcap: float
) -> Tensor:
    """Return the attention output, (M, N * H); query heads of one KV head are laid out as further tokens."""
    batch, kv_heads, _, size = key_BKSH.shape
    query_BTKGH = query_MNH.view(batch, -1, kv_heads, query_MNH.shape[1] // kv_heads, size)
    length, groups = query_BTKGH.shape[1], query_BTKGH.shape[3]
    query = query_BTKGH.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * length, size)
    if softcap:
        out = soft_capped(query, key_BKSH, value_BKSH, Visible(mask=mask), 0.0, softcap)
    else:
        out = functional.scaled_dot_product_attention(query, key_BKSH, value_BKSH, attn_mask=mask)
    out_BTKGH = out.view(batch, kv_heads, groups, length, size).permute(0, 3, 1, 2, 4)
    return out_BTKGH.reshape(batch * length, -1)


def _query_group_mask(visible: Visible, config: LlamaConfig, places: CacheColumns, length: int) -> Tensor | None:
    """Return which keys each row of `attend_grouped` attends to, (B or 1, 1, G * T, S); None for all of them."""
    if visible.mask is None and not visible.causal:
        return None
    mask_B1TS = visible.as_mask(length, places.end, torch.device("cpu"))
    groups = config.num_attention_heads // config.kv_heads
    return mask_B1TS[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
