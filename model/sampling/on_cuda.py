"""Top-k, top-p, min-p and the draw on CUDA without a sort: a radix search for the cutoff over the bits of the logits.

Every float32 has a key, an unsigned integer in the same order. The cutoff's key is found from its highest digit down:
each round sums, for the sixteen values of one digit, the weights of all logits at or above, and takes the highest value
that still reaches the goal. bfloat16 has four digits, float32 eight. Up to 32 programs read a row; the next launch adds
their partial sums in order. So there are no atomics and no waiting, and the result does not depend on the batch. The
number of launches depends on the options alone, so a CUDA graph can replay them.

Weights and sums are float64. The kernels are in ``kernels.py``; ``filters.py`` is the plain version that the tests
compare with.

Legend: B rows, V vocabulary, S programs a row.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
import triton
from torch import Tensor

from bpe_llama.model.sampling import kernels
from bpe_llama.model.sampling.filters import Filters
from bpe_llama.model.sampling.uniform import as_word

# Explicit, since its default differs between versions of Triton.
_OPTIONS = {"enable_fp_fusion": True}
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}


def draw(scores_BV: Tensor, filters: Filters, seed: int | Tensor, step: int | Tensor) -> Tensor:
    """Return one id a row, int64 (B,), -1 for a row with NaN, +inf or nothing finite.

    Args:
        scores_BV: (B, V) on a CUDA device, float32, float16 or bfloat16, any row stride; biases and penalties applied.
        filters: With ``temperature > 0`` and ``typical_p == 1``: the cutoff is a prefix of the ids by falling score.
        seed: As for :func:`bpe_llama.model.sampling.sample_logits`.
        step: Likewise.

    Raises:
        ValueError: If the filters are others.

    Cost: three launches, and one per digit for each of top-k and top-p. Every launch but the last reads all logits.
    """
    if filters.temperature == 0 or filters.typical_p < 1:
        raise ValueError(f"the kernels take temperature > 0 and typical_p of 1, got {filters}")
    if scores_BV.stride(-1) != 1:
        scores_BV = scores_BV.contiguous()
    rows, vocab_size = scores_BV.shape
    device = scores_BV.device
    ids_B = torch.empty(rows, dtype=torch.int64, device=device)
    if rows == 0:
        return ids_B
    # From the vocabulary alone, so that rounding does not depend on the batch.
    splits = min(32, triton.next_power_of_2(triton.cdiv(vocab_size, 4096)))
    extents = torch.empty(rows, splits, dtype=torch.float64, device=device)
    pass_: dict[str, Any] = {
        "extents": extents,
        "scores": scores_BV,
        "row_stride": scores_BV.stride(0),
        "vocab_size": vocab_size,
        "chunk": triton.cdiv(triton.cdiv(vocab_size, splits), kernels.DRAW_BLOCK.value) * kernels.DRAW_BLOCK.value,
        "SPLITS": splits,
        **_OPTIONS,
    }
    kernels._extent[rows, splits](**pass_)
    cutoff = None
    if 0 < filters.top_k < vocab_size:
        cutoff = _search(pass_, filters, float(filters.top_k), None, counting=True)
    if filters.top_p < 1:
        cutoff = _search(pass_, filters, filters.top_p_share, cutoff, counting=False)
    final: dict[str, Any] = pass_ | {
        "cutoff": extents if cutoff is None else cutoff,
        "gap": filters.judged_at * math.log(filters.min_p) if filters.min_p > 0 else -math.inf,
        "inverse": _inverse(filters.temperature),
        "tallies": torch.empty(rows, 2, splits, dtype=torch.float64, device=device),
        "CUTOFF": cutoff is not None,
        "KEY_BITS": _KEY_BITS[scores_BV.dtype],
    }
    kernels._tally[rows, splits](**final)
    seed_B, step_B = (as_word(word, device).expand(rows) for word in (seed, step))
    strides = {"seed_stride": seed_B.stride(0), "step_stride": step_B.stride(0)}
    kernels._draw[rows,](ids_out=ids_B, seeds=seed_B, steps=step_B, **strides, **final)
    return ids_B


def _search(pass_: dict[str, Any], filters: Filters, goal: float, base: Tensor | None, *, counting: bool) -> Tensor:
    """Return each row's cutoff, float64 (B, 3): its key, how many ids of equal score stay, and the mass kept.

    The goal is a count, or a share of the mass that ``base``, an earlier cutoff, keeps; of the whole mass without one.
    """
    rows, splits = pass_["extents"].shape
    key_bits = _KEY_BITS[pass_["scores"].dtype]
    rounds = key_bits // kernels.DIGIT_BITS
    sums = pass_["extents"].new_empty(2, rows, 2, splits, kernels.DIGITS.value)
    states = sums.new_empty(rounds, rows, kernels.STATE.value)
    cutoff: Tensor = sums.new_empty(rows, 3)
    search: dict[str, Any] = {
        "goal": goal,
        "base": cutoff if base is None else base,
        "inverse": _inverse(filters.judged_at),
        "COUNTING": counting,
        "OF_BASE": base is not None,
        "KEY_BITS": key_bits,
    }
    for number in range(rounds):
        kernels._weigh_digits[rows, splits](
            sums=sums[number % 2], sums_before=sums[1 - number % 2],
            state=states[number], state_before=states[number - 1],
            unseen=key_bits - kernels.DIGIT_BITS * (number + 1), ROUND=min(number, 2), **search, **pass_,
        )  # fmt: skip
    kernels._settle[rows,](
        cutoff=cutoff, sums=sums[1 - rounds % 2], state=states[-1], extents=pass_["extents"],
        SPLITS=splits, KEEP_TIES=filters.keeps_ties, **search, **_OPTIONS,
    )  # fmt: skip
    return cutoff


def _inverse(temperature: float) -> float:
    return min(1 / temperature, sys.float_info.max) if temperature > 1 / sys.float_info.max else sys.float_info.max
