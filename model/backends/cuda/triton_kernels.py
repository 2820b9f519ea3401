"""The Triton kernels of one decoding step besides its matrix products: RoPE with the cache update, and attention.

A row's sums have one order that depends on its own length alone: neither the batch nor the cache's capacity changes a
bit of them.

Shapes: ``M`` rows, one per sequence, ``S`` key length, ``N`` heads, ``K`` KV heads, ``G`` query heads per KV head,
``H`` head_dim, ``C`` chunks of the keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNKS_AT_ONCE = tl.constexpr(16)
"""Chunks that one iteration of `_combine_chunks` reads."""


@triton.jit
def _apply_rope(
    query, qkv, cos, sin, keys, values, position, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Apply RoPE to one head of the queries or keys, and write keys and values to the cache.

    The rotation is that of `apply_rope`: half-split pairs, and no rotation of the features from ``2 * HALF`` on.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    here = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * SIZE
    feature = tl.arange(0, BLOCK)
    inside = feature < SIZE
    found = tl.load(here + feature, mask=inside, other=0)
    kv_head = head - HEADS
    if head < HEADS + KV_HEADS:
        rotated = feature < 2 * HALF
        is_first = feature < HALF
        other = tl.load(here + tl.where(is_first, feature + HALF, feature - HALF), mask=rotated, other=0).to(tl.float32)
        angle = row * HALF + tl.where(is_first, feature, feature - HALF)
        across = tl.load(sin + angle, mask=rotated, other=0) * tl.where(is_first, -other, other)
        result = found.to(tl.float32) * tl.load(cos + angle, mask=rotated, other=1) + across
        if head < HEADS:
            tl.store(query + (row * HEADS + head) * SIZE + feature, result, mask=inside)
        else:
            slot = ((row * KV_HEADS + kv_head) * capacity + tl.load(position + row)) * SIZE
            tl.store(keys + slot + feature, result, mask=inside)
    else:
        slot = ((row * KV_HEADS + kv_head - KV_HEADS) * capacity + tl.load(position + row)) * SIZE
        tl.store(values + slot + feature, found, mask=inside)


@triton.jit
def _first_key(length, window):
    """Return the first key that a query attends to; a ``window`` of 0 means that valid is no sliding window."""
    return tl.where(window > 0, tl.maximum(length - window, 0), 0)


@triton.jit
def _attend_chunk(
    chunk_outs, chunk_stats, query, keys, values, position, capacity, window, chunks, scale,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the attention of one KV head's queries to one chunk of keys: output (G, H), maximum score, softmax sum.

    The output is not yet divided by the sum; `_combine_chunks` does it.

    Source: split keys as in flash-decoding (Dao et al. 2023); online softmax, Milakov and Gimelshein 2018,
    arXiv:1805.02867.
    """
    row = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(0) % KV_HEADS
    chunk = tl.program_id(1)
    length = tl.load(position + row) + 1
    first = _first_key(length, window)
    if (chunk * CHUNK < length) & ((chunk + 1) * CHUNK > first):
        feature = tl.arange(0, BLOCK)
        real = (feature < SIZE)[None, :]
        group = tl.arange(0, BLOCK_G)
        head = row * (KV_HEADS * GROUPS) + kv_head * GROUPS + group
        is_head = group < GROUPS
        queries = tl.load(query + head[:, None] * SIZE + feature[None, :], mask=is_head[:, None] & real, other=0)
        key = chunk * CHUNK + tl.arange(0, CHUNK)
        visible = (key >= first) & (key < length)
        slot = ((row * KV_HEADS + kv_head) * capacity + key)[:, None] * SIZE + feature[None, :]
        key_tile = tl.load(keys + slot, mask=visible[:, None] & real, other=0)
        value_tile = tl.load(values + slot, mask=visible[:, None] & real, other=0)  # issued before the keys arrive
        scores = tl.dot(queries, tl.trans(key_tile), input_precision="ieee") * scale
        scores = tl.where(visible[None, :], scores, -float("inf"))
        maximum = tl.max(scores, 1)
        weights = tl.exp(scores - maximum[:, None])
        attention = tl.dot(weights.to(value_tile.dtype), value_tile, input_precision="ieee")
        part = head * chunks + chunk
        tl.store(chunk_outs + part[:, None] * SIZE + feature[None, :], attention, mask=is_head[:, None] & real)
        tl.store(chunk_stats + part * 2, maximum, mask=is_head)
        tl.store(chunk_stats + part * 2 + 1, tl.sum(weights, 1), mask=is_head)


@triton.jit
def _combine_chunks(
    out, chunk_outs, chunk_stats, position, window, chunks,
    HEADS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the attention output of one head, (H,), from those of all chunks."""
    head = tl.program_id(0).to(tl.int64)
    length = tl.load(position + head // HEADS) + 1
    first_chunk = _first_key(length, window) // CHUNK
    last_chunk = (length - 1) // CHUNK
    feature = tl.arange(0, BLOCK)
    inside = feature < SIZE
    running_max = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    attention = tl.zeros((BLOCK,), tl.float32)
    for start in range(first_chunk, last_chunk + 1, CHUNKS_AT_ONCE):
        chunk = start + tl.arange(0, CHUNKS_AT_ONCE)
        valid = chunk <= last_chunk
        part = head * chunks + chunk
        maximum = tl.load(chunk_stats + part * 2, mask=valid, other=-float("inf"))
        new_max = tl.maximum(running_max, tl.max(maximum, 0))
        rescale_total = tl.exp(running_max - new_max)
        rescale_chunk = tl.exp(maximum - new_max)
        total = total * rescale_total + tl.sum(
            rescale_chunk * tl.load(chunk_stats + part * 2 + 1, mask=valid, other=0), 0
        )
        is_feature = valid[:, None] & inside[None, :]
        outs = tl.load(chunk_outs + part[:, None] * SIZE + feature[None, :], mask=is_feature, other=0)
        attention = attention * rescale_total + tl.sum(rescale_chunk[:, None] * outs, 0)
        running_max = new_max
    tl.store(out + head * SIZE + feature, attention / total, mask=inside)
