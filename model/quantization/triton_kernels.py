"""The Triton kernel of a matrix product with few rows: RMSNorm, dequantization and SwiGLU are fused into it.

Each accumulator is summed in an order that depends on the sizes alone, so a row is batch-invariant.

Shapes: ``M`` rows, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _accumulate(
    acc, x_tile, weight, scale, outs, start, outputs, inputs, pitch,
    DTYPE: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Return the accumulator, (BLOCK_O, BLOCK_M), plus the product of one weight tile and one input tile.

    The rows of the weight are ``pitch`` elements apart. With ``GROUP`` they are those of `Int4Linear`: the low half of
    a byte is an even column, the high half the odd column after it. Without, `_finish` applies the scales.
    """
    is_row = (outs < outputs)[:, None]
    if GROUP == 0:
        ins = start + tl.arange(0, BLOCK_I)
        tile = tl.load(weight + outs[:, None] * pitch + ins[None, :], mask=is_row & (ins < inputs)[None, :], other=0.0)
        acc = tl.dot(tile.to(DTYPE), tl.trans(x_tile), acc, input_precision="ieee")
    else:
        pair = start // 2 + tl.arange(0, BLOCK_I // 2)
        codes = tl.load(weight + outs[:, None] * pitch + pair[None, :], mask=is_row & (pair < pitch)[None, :], other=0)
        SHARING: tl.constexpr = GROUP if GROUP < BLOCK_I else BLOCK_I  # Triton 3.5 has no `min` of constants
        group = (start + tl.arange(0, BLOCK_I // SHARING) * SHARING) // GROUP
        groups = inputs // GROUP
        # Two bfloat16 in one word: the low half is the scale, the high half the zero point, the value of code 8.
        is_group = is_row & (group < groups)[None, :]
        packed = tl.load(scale + outs[:, None] * groups + group[None, :], mask=is_group, other=0)
        unit = (packed << 16).to(tl.float32, bitcast=True)[:, :, None]
        offset = (packed & -65536).to(tl.float32, bitcast=True)[:, :, None] - 136 * unit
        codes = tl.reshape(codes.to(tl.int32), (BLOCK_O, BLOCK_I // SHARING, SHARING // 2))
        # A code in the upper mantissa bits of 128.0 is the float32 128 + code: exact, and cheaper than a conversion.
        low = ((codes & 15) << 16 | 0x43000000).to(tl.float32, bitcast=True)
        high = ((codes & 240) << 12 | 0x43000000).to(tl.float32, bitcast=True)
        even, odd = tl.split(tl.reshape(x_tile, (BLOCK_M, BLOCK_I // 2, 2)))
        tile = tl.reshape(tl.fma(low, unit, offset), (BLOCK_O, BLOCK_I // 2)).to(DTYPE)
        acc = tl.dot(tile, tl.trans(even), acc, input_precision="ieee")
        tile = tl.reshape(tl.fma(high, unit, offset), (BLOCK_O, BLOCK_I // 2)).to(DTYPE)
        acc = tl.dot(tile, tl.trans(odd), acc, input_precision="ieee")
    return acc


@triton.jit
def _finish(acc, scale, bias, outs, outputs, SCALED: tl.constexpr, BIASED: tl.constexpr):
    """Return the accumulator, (BLOCK_O, BLOCK_M), times the row scales, plus the biases."""
    if SCALED:
        acc = acc * tl.load(scale + outs, mask=outs < outputs, other=0).to(tl.float32)[:, None]
    if BIASED:
        acc = acc + tl.load(bias + outs, mask=outs < outputs, other=0).to(tl.float32)[:, None]
    return acc


@triton.jit
def _matmul(
    out, x, weight, scale, bias, norm, rows, outputs, inputs, pitch, eps,
    DTYPE: tl.constexpr, GROUP: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, NORMED: tl.constexpr,
    GATED: tl.constexpr, ADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write ``x @ weight.T``, (M, O), or add it to ``out`` (``ADDED``).

    ``NORMED`` fuses the RMSNorm of ``x``: its divisor is the same for a whole row, so it divides the accumulator.
    ``GATED`` fuses SwiGLU: the first half of the weight's rows is ``gate_proj``, the second ``up_proj``, and
    ``outputs`` counts the rows of one half. The accumulator is (O, M) because tensor cores need at least 16 rows in
    the first operand, and ``x`` has few.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outs = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    # The last program of the first half may read rows of the second: they are inside the matrix, and not written.
    height = 2 * outputs if GATED else outputs
    acc = tl.zeros((BLOCK_O, BLOCK_M), tl.float32)
    up_acc = tl.zeros((BLOCK_O, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_I), tl.float32)
    for start in range(0, inputs, BLOCK_I):
        ins = start + tl.arange(0, BLOCK_I)
        inside = ins < inputs
        inside_x = (row < rows)[:, None] & inside[None, :]
        x_tile = tl.load(x + row[:, None] * inputs + ins[None, :], mask=inside_x, other=0)
        if NORMED:
            x_wide = x_tile.to(tl.float32)
            squares += x_wide * x_wide
            x_tile = x_wide * tl.load(norm + ins, mask=inside, other=0).to(tl.float32)[None, :]
        x_tile = x_tile.to(DTYPE)
        acc = _accumulate(
            acc, x_tile, weight, scale, outs, start, height, inputs, pitch, DTYPE, GROUP, BLOCK_M, BLOCK_O, BLOCK_I
        )
        if GATED:
            up_acc = _accumulate(
                up_acc, x_tile, weight, scale, outs + outputs, start, height, inputs, pitch,
                DTYPE, GROUP, BLOCK_M, BLOCK_O, BLOCK_I,
            )  # fmt: skip
    if NORMED:
        rrms = (1 / tl.sqrt(tl.sum(squares, 1) / inputs + eps))[None, :]
        acc *= rrms
        up_acc *= rrms
    acc = _finish(acc, scale, bias, outs, height, SCALED, BIASED)
    if GATED:
        up_acc = _finish(up_acc, scale, bias, outs + outputs, height, SCALED, BIASED)
        acc = acc / (1 + tl.exp(-acc)) * up_acc
    targets = out + row.to(tl.int64)[None, :] * outputs + outs[:, None]
    inside_out = (row < rows)[None, :] & (outs < outputs)[:, None]
    if ADDED:
        acc += tl.load(targets, mask=inside_out, other=0).to(tl.float32)
    tl.store(targets, acc, mask=inside_out)
