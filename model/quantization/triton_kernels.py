"""The Triton functions that `decode_on_cuda` launches: products with few rows, rotation, attention in parts.

Each sum is taken in an order that depends on its own row alone: what else is in the batch, and how long the cache is,
changes no number.

Shapes: ``M`` rows, one a sequence, ``S`` key length, ``N`` heads, ``K`` KV heads, ``G`` query heads per KV head,
``H`` head_dim, ``I`` inputs, ``O`` outputs, ``C`` chunks of the keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

PARTS = tl.constexpr(16)
"""Chunks that `_gather` holds at a time."""


@triton.jit
def _product(
    sums, given, weight, scale, outs, start, outputs, inputs, pitch,
    DTYPE: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Return sums, (BLOCK_O, BLOCK_M), plus a tile of weights, whose rows lie ``pitch`` apart, times the inputs.

    Groups are those of `Int4Linear`, whose even inputs are in the low halves of bytes; without, it is what is stored.
    """
    real = (outs < outputs)[:, None]
    if GROUP == 0:
        ins = start + tl.arange(0, BLOCK_I)
        tile = tl.load(weight + outs[:, None] * pitch + ins[None, :], mask=real & (ins < inputs)[None, :], other=0.0)
        sums = tl.dot(tile.to(DTYPE), tl.trans(given), sums, input_precision="ieee")
    else:
        pair = start // 2 + tl.arange(0, BLOCK_I // 2)
        codes = tl.load(weight + outs[:, None] * pitch + pair[None, :], mask=real & (pair < pitch)[None, :], other=0)
        SHARING: tl.constexpr = min(GROUP, BLOCK_I)
        group = (start + tl.arange(0, BLOCK_I // SHARING) * SHARING) // GROUP
        groups = inputs // GROUP
        # The bits of two bfloat16: the lower half of a word is the scale, the upper the value of the middle code, 8.
        both = tl.load(scale + outs[:, None] * groups + group[None, :], mask=real & (group < groups)[None, :], other=0)
        step = (both << 16).to(tl.float32, bitcast=True)[:, :, None]
        lowest = (both & -65536).to(tl.float32, bitcast=True)[:, :, None] - 136 * step
        wide = tl.reshape(codes.to(tl.int32), (BLOCK_O, BLOCK_I // SHARING, SHARING // 2))
        # As bits of a float32 these are 128 and the code: cheaper than a conversion, and exact.
        low = ((wide & 15) << 16 | 0x43000000).to(tl.float32, bitcast=True)
        high = ((wide & 240) << 12 | 0x43000000).to(tl.float32, bitcast=True)
        even, odd = tl.split(tl.reshape(given, (BLOCK_M, BLOCK_I // 2, 2)))
        tile = tl.reshape(tl.fma(low, step, lowest), (BLOCK_O, BLOCK_I // 2)).to(DTYPE)
        sums = tl.dot(tile, tl.trans(even), sums, input_precision="ieee")
        tile = tl.reshape(tl.fma(high, step, lowest), (BLOCK_O, BLOCK_I // 2)).to(DTYPE)
        sums = tl.dot(tile, tl.trans(odd), sums, input_precision="ieee")
    return sums


@triton.jit
def _finished(sums, scale, bias, outs, outputs, SCALED: tl.constexpr, BIASED: tl.constexpr):
    """Return sums, (BLOCK_O, BLOCK_M), with the scales of their rows of weights, and the biases."""
    if SCALED:
        sums = sums * tl.load(scale + outs, mask=outs < outputs, other=0).to(tl.float32)[:, None]
    if BIASED:
        sums = sums + tl.load(bias + outs, mask=outs < outputs, other=0).to(tl.float32)[:, None]
    return sums


@triton.jit
def _multiply(
    out, x, weight, scale, bias, norm, rows, outputs, inputs, pitch, eps,
    DTYPE: tl.constexpr, GROUP: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, NORMED: tl.constexpr,
    GATED: tl.constexpr, ADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write ``x @ weight.T``, (M, O), or add it to ``out``; the input normalised first, the output gated, if asked.

    The norm's quotient is the same for a whole row, so it divides the sums. Gated, the weights are gates and then as
    many rows more, and ``outputs`` counts the gates. Sums are (O, M): the matrix units want many rows on their first
    side, of which there are few of the input.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outs = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    # A program's rows of the second half lie behind those of the first, so beyond its end is not beyond the matrix.
    height = 2 * outputs if GATED else outputs
    sums = tl.zeros((BLOCK_O, BLOCK_M), tl.float32)
    ups = tl.zeros((BLOCK_O, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_I), tl.float32)
    for start in range(0, inputs, BLOCK_I):
        ins = start + tl.arange(0, BLOCK_I)
        inside = ins < inputs
        given = tl.load(x + row[:, None] * inputs + ins[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0)
        if NORMED:
            wide = given.to(tl.float32)
            squares += wide * wide
            given = wide * tl.load(norm + ins, mask=inside, other=0).to(tl.float32)[None, :]
        given = given.to(DTYPE)
        sums = _product(
            sums, given, weight, scale, outs, start, height, inputs, pitch, DTYPE, GROUP, BLOCK_M, BLOCK_O, BLOCK_I
        )
        if GATED:
            ups = _product(
                ups, given, weight, scale, outs + outputs, start, height, inputs, pitch,
                DTYPE, GROUP, BLOCK_M, BLOCK_O, BLOCK_I,
            )  # fmt: skip
    if NORMED:
        quotient = (1 / tl.sqrt(tl.sum(squares, 1) / inputs + eps))[None, :]
        sums *= quotient
        ups *= quotient
    sums = _finished(sums, scale, bias, outs, height, SCALED, BIASED)
    if GATED:
        ups = _finished(ups, scale, bias, outs + outputs, height, SCALED, BIASED)
        sums = sums / (1 + tl.exp(-sums)) * ups
    places = out + row.to(tl.int64)[None, :] * outputs + outs[:, None]
    inside_out = (row < rows)[None, :] & (outs < outputs)[:, None]
    if ADDED:
        sums += tl.load(places, mask=inside_out, other=0).to(tl.float32)
    tl.store(places, sums, mask=inside_out)


@triton.jit
def _turn(
    query, qkv, cos, sin, keys, values, place, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn one head of the queries or keys by its position's angles; write keys, and values, to the cache.

    As `apply_rope` does: pairs are half-split, and features from twice ``HALF`` on are left as they are.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    here = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * SIZE
    feature = tl.arange(0, BLOCK)
    inside = feature < SIZE
    found = tl.load(here + feature, mask=inside, other=0)
    kv_head = head - HEADS
    if head < HEADS + KV_HEADS:
        turned = feature < 2 * HALF
        is_first = feature < HALF
        other = tl.load(here + tl.where(is_first, feature + HALF, feature - HALF), mask=turned, other=0).to(tl.float32)
        angle = row * HALF + tl.where(is_first, feature, feature - HALF)
        across = tl.load(sin + angle, mask=turned, other=0) * tl.where(is_first, -other, other)
        result = found.to(tl.float32) * tl.load(cos + angle, mask=turned, other=1) + across
        if head < HEADS:
            tl.store(query + (row * HEADS + head) * SIZE + feature, result, mask=inside)
        else:
            slot = ((row * KV_HEADS + kv_head) * capacity + tl.load(place + row)) * SIZE
            tl.store(keys + slot + feature, result, mask=inside)
    else:
        slot = ((row * KV_HEADS + kv_head - KV_HEADS) * capacity + tl.load(place + row)) * SIZE
        tl.store(values + slot + feature, found, mask=inside)


@triton.jit
def _first_key(length, window):
    """Return the first key that a query may look at; a window of 0 is none."""
    return tl.where(window > 0, tl.maximum(length - window, 0), 0)


@triton.jit
def _attend(
    parts, extents, query, keys, values, place, capacity, window, chunks, scale,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what a KV head's queries gather from one chunk of keys, (G, H), their highest score and their sum.

    Source: the keys of one sequence are split among programs as in flash-decoding (Dao et al. 2023).
    """
    row = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    kv_head = tl.program_id(0) % KV_HEADS
    chunk = tl.program_id(1)
    length = tl.load(place + row) + 1
    first = _first_key(length, window)
    if (chunk * CHUNK < length) & ((chunk + 1) * CHUNK > first):
        feature = tl.arange(0, BLOCK)
        real = (feature < SIZE)[None, :]
        group = tl.arange(0, BLOCK_G)
        head = row * (KV_HEADS * GROUPS) + kv_head * GROUPS + group
        asked = tl.load(query + head[:, None] * SIZE + feature[None, :], mask=(group < GROUPS)[:, None] & real, other=0)
        key = chunk * CHUNK + tl.arange(0, CHUNK)
        seen = (key >= first) & (key < length)
        slot = ((row * KV_HEADS + kv_head) * capacity + key)[:, None] * SIZE + feature[None, :]
        key_tile = tl.load(keys + slot, mask=seen[:, None] & real, other=0)
        value_tile = tl.load(values + slot, mask=seen[:, None] & real, other=0)  # now, not after waiting for the keys
        scores = tl.dot(asked, tl.trans(key_tile), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        highest = tl.max(scores, 1)
        shares = tl.exp(scores - highest[:, None])
        gathered = tl.dot(shares.to(value_tile.dtype), value_tile, input_precision="ieee")
        part = head * chunks + chunk
        is_head = group < GROUPS
        tl.store(parts + part[:, None] * SIZE + feature[None, :], gathered, mask=is_head[:, None] & real)
        tl.store(extents + part * 2, highest, mask=is_head)
        tl.store(extents + part * 2 + 1, tl.sum(shares, 1), mask=is_head)


@triton.jit
def _gather(
    out, parts, extents, place, window, chunks,
    HEADS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what one head gathers from all chunks, (H,)."""
    head = tl.program_id(0).to(tl.int64)
    length = tl.load(place + head // HEADS) + 1
    first_chunk = _first_key(length, window) // CHUNK
    last_chunk = (length - 1) // CHUNK
    feature = tl.arange(0, BLOCK)
    inside = feature < SIZE
    highest = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    gathered = tl.zeros((BLOCK,), tl.float32)
    for start in range(first_chunk, last_chunk + 1, PARTS):
        chunk = start + tl.arange(0, PARTS)
        there = chunk <= last_chunk
        part = head * chunks + chunk
        extent = tl.load(extents + part * 2, mask=there, other=-float("inf"))
        new_highest = tl.maximum(highest, tl.max(extent, 0))
        before = tl.exp(highest - new_highest)
        share = tl.exp(extent - new_highest)
        total = total * before + tl.sum(share * tl.load(extents + part * 2 + 1, mask=there, other=0), 0)
        found = tl.load(parts + part[:, None] * SIZE + feature[None, :], mask=there[:, None] & inside[None, :], other=0)
        gathered = gathered * before + tl.sum(share[:, None] * found, 0)
        highest = new_highest
    tl.store(out + head * SIZE + feature, gathered / total, mask=inside)
