"""From the logits of a running batch to the next id of each of its sequences.

Shapes: ``B`` sequences, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpe_llama.model.options import Sample
from bpe_llama.model.sampling import sample_logits

SEED_BITS = 0xFFFF_FFFF_FFFF_FFFF
"""The part of a seed that counts."""


def choose(samples: Sequence[Sample], logits_BV: Tensor) -> list[int]:
    """Return each sequence's next id; its draw depends on its own seed and length, never on its neighbours."""
    barred = [row for row, s in enumerate(samples) if s.eos_ids and len(s.new_ids) < s.options.min_new_tokens]
    if barred:
        logits_BV = logits_BV.clone()
        for row in barred:
            logits_BV[row, list(samples[row].eos_ids)] = -torch.inf
    on_cpu = logits_BV.device.type == "cpu"
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, sample in enumerate(samples):
        alike: tuple[object, ...] = (sample.options.draws_as,)
        if on_cpu:  # the compiled sampler takes one step number, and one history, a call
            alike += (len(sample.new_ids), row if sample.options.looks_back else -1)
        groups.setdefault(alike, []).append(row)
    choose_alike = _choose_compiled if on_cpu else _choose_on_device
    chosen = [0] * len(samples)
    for rows in groups.values():
        ids = choose_alike([samples[row] for row in rows], logits_BV if len(groups) == 1 else logits_BV[rows])
        for row, new_id in zip(rows, ids, strict=True):
            chosen[row] = new_id
    return chosen


def _choose_compiled(samples: list[Sample], logits_BV: Tensor) -> list[int]:
    """Return the next ids of sequences that share their sampling options and length, by the compiled sampler."""
    first = samples[0]
    seeds = [sample.options.seed & SEED_BITS for sample in samples]
    history = first.ids if first.options.looks_back else None
    sampler = first.options.sampler
    logits_BV = logits_BV.detach()
    if history is not None:
        return [int(sampler.sample(logits_BV[0], history, step=len(first.new_ids), seeds=seeds))]
    chosen: list[int] = sampler.sample(logits_BV, step=len(first.new_ids), seeds=seeds).tolist()
    return chosen


def _choose_on_device(samples: list[Sample], logits_BV: Tensor) -> list[int]:
    """Return the next ids of sequences that share their sampling options, by the sampler's torch twin."""
    options, device = samples[0].options, logits_BV.device
    history_BT = None
    if options.looks_back:
        width = max(len(sample.ids) for sample in samples)
        history_BT = torch.tensor([[-1] * (width - len(s.ids)) + s.ids for s in samples], device=device)
    chosen: list[int] = sample_logits(
        logits_BV,
        **options.sampling,
        history_BT=history_BT,
        seed=torch.tensor([_signed(sample.options.seed & SEED_BITS) for sample in samples], device=device),
        step=torch.tensor([len(sample.new_ids) for sample in samples], device=device),
    ).tolist()
    if -1 in chosen:
        raise ValueError(f"row {chosen.index(-1)} of the logits holds NaN, +inf or nothing finite")
    return chosen


def _signed(seed: int) -> int:
    """Return the int64 with the same bits.

    Example:
        >>> _signed(2**64 - 1), _signed(7)
        (-1, 7)
    """
    return seed - (seed >> 63 << 64)
