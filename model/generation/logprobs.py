"""The log-probabilities that a sequence records: of its new ids, and of its prompt's where asked for.

Shapes: ``B`` sequences, ``T`` ids of one, ``M`` ids of a pass, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections import abc
from itertools import accumulate

import torch
from torch import Tensor

from bpe_llama.model.backends.forward import Forward
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.sampling.sequence import Sequence

SCORED_CHUNK = 256
"""Positions of a prompt with logits at once."""


def record_scored(running: abc.Sequence[Sequence], ids: abc.Sequence[abc.Sequence[int]], logits_MV: Tensor) -> Tensor:
    """Append the log-probabilities of prompt ids that a pass scored; return the logits after each last id, (B, V).

    A pass that is repeated after an error may record the same positions again.

    Args:
        running: The sequences. ``num_prompt_tokens_left`` is still the count from before the pass.
        ids: What the pass ran of each.
        logits_MV: After each id of the pass, before any option acts.
    """
    ends = list(accumulate(map(len, ids)))
    for sequence, new_ids, end in zip(running, ids, ends, strict=True):
        if not sequence.scores_prompt:
            continue
        start = len(sequence.prompt) - sequence.num_prompt_tokens_left
        logits_TV = logits_MV[end - len(new_ids) : end]
        if not start:
            sequence.prompt_logprobs, sequence.prompt_top_logprobs = [None], [[]]
        del sequence.prompt_logprobs[start + 1 :], sequence.prompt_top_logprobs[start + 1 :]
        _append_prompt_logprobs(sequence, sequence.prompt[start + 1 : start + 1 + len(new_ids)], logits_TV)
    return logits_MV[[end - 1 for end in ends]]


def prefill_scored(forward: Forward, sequence: Sequence, cache: KVCache, chunk: int) -> Tensor:
    """Prefill a prompt and record the log-probabilities of its ids; return the logits after the last, (1, V).

    Args:
        forward: Runs the model.
        sequence: Its prompt is prefilled as a whole.
        cache: An empty slot.
        chunk: Ids of a pass at most.
    """
    sequence.num_prompt_tokens_left = len(sequence.prompt)
    while sequence.num_prompt_tokens_left:
        ids = sequence.next_prompt_ids(min(chunk, SCORED_CHUNK))
        logits_1V = record_scored([sequence], [ids], forward([ids], cache, every=True))
        sequence.num_prompt_tokens_left -= len(ids)
    return logits_1V


def record_logprobs(sequences: abc.Sequence[Sequence], chosen: abc.Sequence[int], logits_BV: Tensor) -> None:
    """Append log-probabilities of new ids, and of the most likely ids, to the sequences that ask for them.

    Args:
        sequences: The sequences.
        chosen: Their new ids.
        logits_BV: Before any option acts.
    """
    rows = [row for row, s in enumerate(sequences) if s.options.logprobs or s.options.top_logprobs]
    logprobs_BV = logits_BV[rows].float().log_softmax(-1)
    picked_B1 = torch.tensor([chosen[row] for row in rows], device=logits_BV.device)[:, None]
    picked = logprobs_BV.gather(1, picked_B1).flatten().tolist()
    for row, logprobs_V, logprob in zip(rows, logprobs_BV, picked, strict=True):
        sequences[row].logprobs.append(logprob)
        if sequences[row].options.top_logprobs:
            sequences[row].top_logprobs.append(_most_likely(logprobs_V, sequences[row].options.top_logprobs))


def _append_prompt_logprobs(sequence: Sequence, next_ids: list[int], logits_TV: Tensor) -> None:
    """Append the log-probabilities of ids, each after one of the positions with logits."""
    if not next_ids:
        return
    count = sequence.options.top_logprobs
    logprobs_TV = logits_TV[: len(next_ids)].float().log_softmax(-1)
    next_T = torch.tensor(next_ids, device=logits_TV.device)
    sequence.prompt_logprobs += logprobs_TV.gather(1, next_T[:, None]).flatten().tolist()
    sequence.prompt_top_logprobs += [_most_likely(logprobs_V, count) if count else [] for logprobs_V in logprobs_TV]


def _most_likely(logprobs_V: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the most likely ids and their log-probabilities; equal ones by rising id."""
    found = torch.sort(logprobs_V, descending=True, stable=True)
    return list(zip(found.indices[:count].tolist(), found.values[:count].tolist(), strict=True))
