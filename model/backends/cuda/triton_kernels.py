"""The Triton kernels of a CUDA step besides its matrix products: norms, SwiGLU, RoPE with the cache update, attention.

A row's sums have one order that depends on its own length alone: neither the batch nor the cache's capacity changes a
bit of them.

Shapes: ``M`` rows (new tokens), ``N`` heads, ``K`` KV heads, ``G`` query heads per KV head, ``H`` head_dim, ``P`` parts
of the keys, ``D`` hidden_size, ``F`` intermediate_size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_norm(out, x, branch, norm, size, eps, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Add a row of ``branch`` to the hidden states (``ADDED``), and write their RMSNorm, rounded once."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < size
    place = row * size + feature
    hidden = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    if ADDED:
        hidden += tl.load(branch + place, mask=inside, other=0).to(tl.float32)
        tl.store(x + place, hidden, mask=inside)
    rrms = 1 / tl.sqrt(tl.sum(hidden * hidden, 0) / size + eps)
    weight = tl.load(norm + feature, mask=inside, other=0).to(tl.float32)
    tl.store(out + place, hidden * rrms * weight, mask=inside)


@triton.jit
def _swiglu(out, gate_up, size, BLOCK: tl.constexpr):
    """Write ``silu(gate) * up`` of one row and block; gate and up are side by side, (M, 2 F)."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < size
    gate = tl.load(gate_up + 2 * row * size + feature, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + (2 * row + 1) * size + feature, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * size + feature, gate / (1 + tl.exp(-gate)) * up, mask=inside)


@triton.jit
def _apply_rope(
    query, qkv, cos, sin, keys, values, position, capacity, tokens,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Apply RoPE to one head of the queries or keys, and write keys and values to the cache.

    Each slot of the cache has ``tokens`` rows. The rotation is that of `apply_rope`: half-split pairs, and no rotation
    of the features from ``2 * HALF`` on. A row with a negative position has no sequence; nothing is written for it.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    here = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * SIZE
    column = tl.load(position + row)
    feature = tl.arange(0, BLOCK)
    inside = feature < SIZE
    kv_head = head - HEADS
    slot = row // tokens
    if column >= 0:
        found = tl.load(here + feature, mask=inside, other=0)
        if head < HEADS + KV_HEADS:
            rotated = feature < 2 * HALF
            is_first = feature < HALF
            beside = here + tl.where(is_first, feature + HALF, feature - HALF)
            other = tl.load(beside, mask=rotated, other=0).to(tl.float32)
            angle = row * HALF + tl.where(is_first, feature, feature - HALF)
            across = tl.load(sin + angle, mask=rotated, other=0) * tl.where(is_first, -other, other)
            result = found.to(tl.float32) * tl.load(cos + angle, mask=rotated, other=1) + across
            if head < HEADS:
                tl.store(query + (row * HEADS + head) * SIZE + feature, result, mask=inside)
            else:
                place = ((slot * KV_HEADS + kv_head) * capacity + column) * SIZE
                tl.store(keys + place + feature, result, mask=inside)
        else:
            place = ((slot * KV_HEADS + kv_head - KV_HEADS) * capacity + column) * SIZE
            tl.store(values + place + feature, found, mask=inside)


@triton.jit
def _span(position, row, window, CHUNK: tl.constexpr):
    """Return a row's first key, the key after its last, and how many chunks of keys it attends to.

    A ``window`` of 0 means that there is no sliding window. A row with a negative position has no keys.
    """
    length = tl.load(position + row) + 1
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    return first, length, (length + CHUNK - 1) // CHUNK - first // CHUNK


@triton.jit
def _attend_part(
    part_outs, part_stats, query, keys, values, position, capacity, window, scale,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the attention of one KV head's queries to one part of the keys: output (G, H), maximum score, softmax sum.

    A part is every ``PARTS``-th chunk of keys; the last parts of a short sequence are empty, and not written. The
    output is not yet divided by the sum; `_combine_parts` does it.

    Source: split keys as in flash-decoding (Dao et al. 2023); online softmax, Milakov and Gimelshein 2018,
    arXiv:1805.02867.
    """
    row = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(0) % KV_HEADS
    part = tl.program_id(1)
    first, length, chunks = _span(position, row, window, CHUNK)
    if part < chunks:
        feature = tl.arange(0, BLOCK)
        real = (feature < SIZE)[None, :]
        group = tl.arange(0, BLOCK_G)
        head = row * (KV_HEADS * GROUPS) + kv_head * GROUPS + group
        is_head = group < GROUPS
        queries = tl.load(query + head[:, None] * SIZE + feature[None, :], mask=is_head[:, None] & real, other=0)
        slot = (row * KV_HEADS + kv_head) * capacity
        maximum = tl.full((BLOCK_G,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        attention = tl.zeros((BLOCK_G, BLOCK), tl.float32)
        for start in range((first // CHUNK + part) * CHUNK, length, PARTS * CHUNK):
            key = start + tl.arange(0, CHUNK)
            visible = (key >= first) & (key < length)
            place = (slot + key)[:, None] * SIZE + feature[None, :]
            key_tile = tl.load(keys + place, mask=visible[:, None] & real, other=0)
            value_tile = tl.load(values + place, mask=visible[:, None] & real, other=0)
            scores = tl.dot(queries, tl.trans(key_tile), input_precision="ieee") * scale
            scores = tl.where(visible[None, :], scores, -float("inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))  # finite: every chunk has a visible key
            weights = tl.exp(scores - new_maximum[:, None])
            rescale = tl.exp(maximum - new_maximum)
            total = total * rescale + tl.sum(weights, 1)
            product = tl.dot(weights.to(value_tile.dtype), value_tile, input_precision="ieee")
            attention = attention * rescale[:, None] + product
            maximum = new_maximum
        place = head * PARTS + part
        tl.store(part_outs + place[:, None] * SIZE + feature[None, :], attention, mask=is_head[:, None] & real)
        tl.store(part_stats + place * 2, maximum, mask=is_head)
        tl.store(part_stats + place * 2 + 1, total, mask=is_head)


@triton.jit
def _combine_parts(
    out, part_outs, part_stats, position, window,
    HEADS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the attention output of one head, (H,), from those of all parts; zeros for a row without a sequence."""
    head = tl.program_id(0).to(tl.int64)
    _, length, chunks = _span(position, head // HEADS, window, CHUNK)
    feature = tl.arange(0, BLOCK)
    inside = feature < SIZE
    part = tl.arange(0, PARTS)
    valid = part < chunks
    place = head * PARTS + part
    maximum = tl.load(part_stats + place * 2, mask=valid, other=-float("inf"))
    rescale = tl.exp(maximum - tl.where(length > 0, tl.max(maximum, 0), 0.0))
    total = tl.sum(rescale * tl.load(part_stats + place * 2 + 1, mask=valid, other=0), 0)
    is_feature = valid[:, None] & inside[None, :]
    outs = tl.load(part_outs + place[:, None] * SIZE + feature[None, :], mask=is_feature, other=0)
    attention = tl.sum(rescale[:, None] * outs, 0)
    tl.store(out + head * SIZE + feature, attention / tl.where(length > 0, total, 1.0), mask=inside)
