"""The log-probabilities that a sequence records: of its new ids, and of its prompt's where asked for.

Shapes: ``B`` sequences, ``T`` ids of one, ``M`` ids of a pass, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections import abc
from itertools import accumulate

import torch
from torch import Tensor

from bpe_llama.model.llama import LlamaForCausalLM
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


def record_prompt_logprobs(model: LlamaForCausalLM, sequences: abc.Sequence[Sequence]) -> None:
    """Store the log-probabilities of prompts' ids, and of the most likely ids at each position, where asked for.

    Cost: one more pass over each prompt that does not have them yet, and logits of `SCORED_CHUNK` positions at a time.
    Sequences with the same prompt share it.
    """
    done: list[Sequence] = []
    for sequence in sequences:
        if sequence.options.prompt_logprobs and not sequence.prompt_logprobs:
            count = sequence.options.top_logprobs
            same = (s for s in done if s.options.top_logprobs == count and s.prompt == sequence.prompt)
            if (source := next(same, None)) is None:
                _record_prompt_logprobs(model, sequence)
                done.append(sequence)
            else:
                sequence.prompt_logprobs = source.prompt_logprobs
                sequence.prompt_top_logprobs = source.prompt_top_logprobs


def _record_prompt_logprobs(model: LlamaForCausalLM, sequence: Sequence) -> None:
    hidden_TD = model.model(torch.tensor(sequence.prompt, device=model.device)[None])[0]
    sequence.prompt_logprobs, sequence.prompt_top_logprobs = [None], [[]]
    for begin in range(0, len(sequence.prompt) - 1, SCORED_CHUNK):
        next_ids = sequence.prompt[begin + 1 : begin + 1 + SCORED_CHUNK]
        _append_prompt_logprobs(sequence, next_ids, model.logits(hidden_TD[begin : begin + len(next_ids)]))


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
