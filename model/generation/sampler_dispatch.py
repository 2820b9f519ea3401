"""The sampler dispatch: from the logits of a running batch to the next id of each sequence.

Options of `bpe_llama.Sampler` go to it, or to its torch twin on other devices. Options that need the earlier ids
(``sampling/processors.py``) or an order of filters (``sampling/ordered.py``) change the scores first, row by row, and
set the ids that they drop to -inf.

Shapes: ``B`` sequences, ``T`` ids of one, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bpe_llama.model.sampling import sample_logits
from bpe_llama.model.sampling.constraint import constraint_bias
from bpe_llama.model.sampling.ordered import filtered_in_order, mirostat_bound, mirostat_kept, xtc_chance
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.processors import bad_word_ids, dry_penalties, repeated_ngram_ids
from bpe_llama.model.sampling.scores import adjusted_scores
from bpe_llama.model.sampling.sequence import Sequence
from bpe_llama.model.sampling.uniform import SEED_BITS


class LogitsError(ValueError):
    """A model's own logits hold NaN or +inf, or nothing finite: no option of a request is the cause."""


def sample_next_ids(sequences: abc.Sequence[Sequence], logits_BV: Tensor) -> list[int]:
    """Return each sequence's next id; its draw depends on its own seed and length alone, not on the batch."""
    biases = _constraint_biases(sequences, logits_BV)
    barred = [row for row, s in enumerate(sequences) if s.eos_ids and len(s.new_ids) < s.options.min_new_tokens]
    prepared = [row for row, s in enumerate(sequences) if s.options.prepares_scores]
    if barred or prepared or biases:
        logits_BV = logits_BV.detach().float() if prepared else logits_BV  # scores are changed in float32
        logits_BV = logits_BV.clone()
        for row, bias_V in biases.items():
            logits_BV[row] += bias_V
        for row in barred:
            logits_BV[row, list(sequences[row].eos_ids)] = -torch.inf
        for row in prepared:
            with _naming_constraints([sequences[row]]):
                logits_BV[row] = _prepared(sequences[row], logits_BV[row], row, biases.get(row))
    on_cpu = logits_BV.device.type == "cpu"
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, sequence in enumerate(sequences):
        key: tuple[object, ...] = (sequence.options.sampling_key, sequence.options.penalty_scope)
        if on_cpu:  # the native sampler takes one step number and one history per call
            key += (len(sequence.new_ids), row if sequence.options.uses_history else -1)
        groups.setdefault(key, []).append(row)
    sample = _sample_native if on_cpu else _sample_with_torch
    chosen = [0] * len(sequences)
    for rows in groups.values():
        with _naming_constraints([sequences[row] for row in rows]):
            ids = sample([sequences[row] for row in rows], logits_BV if len(groups) == 1 else logits_BV[rows])
        for row, new_id in zip(rows, ids, strict=True):
            chosen[row] = new_id
    for row in prepared:
        if sequences[row].options.mirostat:
            _move_bound(sequences[row], logits_BV[row], chosen[row])
    return chosen


def _constraint_biases(sequences: abc.Sequence[Sequence], logits_BV: Tensor) -> dict[int, Tensor]:
    """Return the bias of each constrained row, float32 (V,): -inf for ids that its constraint does not allow."""
    rows = {row: s.constraint for row, s in enumerate(sequences) if s.constraint is not None}
    if not rows:
        return {}
    new_ids = [sequences[row].new_ids for row in rows]
    ends = [sequences[row].eos_ids for row in rows]
    bias_BV = constraint_bias(list(rows.values()), new_ids, ends, logits_BV.shape[1], logits_BV.device)
    return dict(zip(rows, bias_BV, strict=True))


@contextmanager
def _naming_constraints(sequences: abc.Sequence[Sequence]) -> Iterator[None]:
    """Add to an error of the sampler that a constraint and the other options together may leave no id."""
    try:
        yield
    except ValueError as error:
        names = sorted({s.options.constraint.option for s in sequences if s.options.constraint is not None})
        if not names:
            raise
        raise ValueError(
            f"{error}: {names[0]} allows only ids that other options exclude, if the model's logits are finite "
            "(min_new_tokens, bad_words, banned_ids, allowed_ids, no_repeat_ngram_size, logits_processor)"
        ) from None


def sample_isolated(sequences: list[Sequence], logits_BV: Tensor) -> tuple[list[Sequence], list[int], Tensor]:
    """Return the sequences that could be sampled, their next ids and their logits.

    The others end with ``finish_reason="error"`` and the exception as their ``error``: a `LogitsError` where no
    options could have sampled from the logits.
    """
    try:
        return sequences, sample_next_ids(sequences, logits_BV), logits_BV
    except Exception:  # a logits processor may raise anything; sampling one by one shows for which sequence
        rows, chosen = [], []
        for row, sequence in enumerate(sequences):
            try:
                chosen += sample_next_ids([sequence], logits_BV[row : row + 1])
                rows.append(row)
            except Exception as error:
                sequence.error, sequence.finish_reason = error, "error"
                if not bool(logits_BV[row].max().isfinite()):  # NaN counts as the largest
                    sequence.error = LogitsError("the model's logits hold NaN, +inf or nothing finite")
                    sequence.error.__cause__ = error
        return [sequences[row] for row in rows], chosen, logits_BV[rows]


def append_id(sequence: Sequence, new_id: int, capacity: int) -> None:
    """Append a sequence's next id, and finish it if it ends with this id or then holds ``capacity`` tokens."""
    sequence.new_ids.append(new_id)
    if new_id in sequence.eos_ids:
        sequence.finish_reason = "stop"
        return
    length, options = len(sequence.new_ids), sequence.options
    complete = sequence.constraint is not None and sequence.constraint.is_complete(sequence.new_ids)
    if complete and length >= options.min_new_tokens:
        sequence.finish_reason = "stop"
    elif length == options.max_new_tokens or len(sequence.prompt) + length >= capacity:
        sequence.finish_reason = "length"


def fast_forward(sequences: abc.Sequence[Sequence], capacity: int, most: int) -> None:
    """Append the ids that constraints force to follow, without sampling them.

    The next pass computes them together with the last sampled id. The id that fills a slot is left to that pass, before
    which a server lets the slot grow.

    Args:
        sequences: Sequences that have just got an id.
        capacity: See `append_id`.
        most: The most ids to append to a sequence.
    """
    for sequence in sequences:
        if sequence.constraint is None or sequence.finish_reason or not sequence.options.fast_forwards:
            continue
        room = capacity - 1 - len(sequence.prompt) - len(sequence.new_ids)
        for forced_id in sequence.constraint.forced_ids(sequence.new_ids)[: min(most, room)]:
            if sequence.finish_reason or forced_id in sequence.eos_ids:
                break
            append_id(sequence, forced_id, capacity)


def processed_scores(
    options: GenerationOptions,
    ids: abc.Sequence[int],
    history: abc.Sequence[int],
    eos_ids: abc.Sequence[int],
    scores_V: Tensor,
) -> Tensor:
    """Return scores after biases, bans, penalties, n-grams, bad words, DRY and logits processors, float32 (V,).

    Args:
        options: Of the sequence.
        ids: Prompt and continuation.
        history: The ids that penalties apply to.
        eos_ids: The ids that end the sequence; a bad word of one such id is ignored.
        scores_V: Logits, or log-probabilities.

    Raises:
        ValueError: If a bad word holds an id outside the vocabulary, or a logits processor returns another shape.
    """
    device = scores_V.device
    if options.adjusts_scores:
        history_1T = torch.tensor([list(history) or [-1]], device=device)
        scores_1V, _ = adjusted_scores(scores_V[None], options, history_1T)
        scores_V = scores_1V[0]
    scores_V = scores_V.float().clone()
    banned = repeated_ngram_ids(ids, options.no_repeat_ngram_size) if options.no_repeat_ngram_size else set[int]()
    if options.bad_words:
        outside = [token_id for word in options.bad_words for token_id in word if not 0 <= token_id < len(scores_V)]
        if outside:
            raise ValueError(f"bad_words holds id {outside[0]}, outside the vocabulary of {len(scores_V)}")
        ends = {(token_id,) for token_id in eos_ids}
        banned |= bad_word_ids(ids, [word for word in options.bad_words if tuple(word) not in ends])
    if banned:
        scores_V[sorted(banned)] = -torch.inf
    if options.dry_multiplier:
        penalties = dry_penalties(
            ids,
            multiplier=options.dry_multiplier,
            base=options.dry_base,
            allowed_length=options.dry_allowed_length,
            last_n=options.dry_penalty_last_n,
            breakers=options.dry_sequence_breakers or (),
        )
        if penalties:
            scores_V[list(penalties)] -= torch.tensor(list(penalties.values()), device=device)
    for processor in options.processors:
        processed_1V = processor(torch.tensor([list(ids)], device=device), scores_V[None])
        if not isinstance(processed_1V, Tensor) or processed_1V.shape != (1, len(scores_V)):
            got = f"shape {tuple(processed_1V.shape)}" if isinstance(processed_1V, Tensor) else repr(processed_1V)
            raise ValueError(f"the logits processor {processor!r} returned {got}; expected shape (1, {len(scores_V)})")
        scores_V = processed_1V[0].float()
    return scores_V


def _prepared(sequence: Sequence, logits_V: Tensor, row: int, bias_V: Tensor | None) -> Tensor:
    """Return the scores that the sampler draws from, float32 (V,), -inf for dropped ids.

    The bias of a constraint is added a second time, since a logits processor may have set any score.
    """
    options, step = sequence.options, len(sequence.new_ids)
    scores_V = processed_scores(options, sequence.ids, sequence.penalised_ids, sequence.eos_ids, logits_V)
    if bias_V is not None and options.processors:
        scores_V = scores_V + bias_V
    if not bool(scores_V.max().isfinite()):  # NaN counts as the largest
        raise ValueError(f"row {row} of the logits holds NaN, +inf or nothing finite, once processors have acted")
    if options.mirostat:
        if options.temperature == 0:
            return filtered_in_order(scores_V, ["temperature"], options.filter_values, 0.0)
        del sequence.mirostat_bounds[step:]  # of rejected draft tokens
        return mirostat_kept(scores_V / options.temperature, options.mirostat, _bound_of(sequence))
    if options.filters is None:
        return scores_V
    chance = xtc_chance((options.seed or 0) & SEED_BITS, step) if options.xtc_probability else 1.0
    return filtered_in_order(scores_V, options.filters, options.filter_values, chance)


def _bound_of(sequence: Sequence) -> float:
    """Return the surprise that mirostat allows the next id."""
    return sequence.mirostat_bounds[-1] if sequence.mirostat_bounds else 2 * sequence.options.mirostat_tau


def _move_bound(sequence: Sequence, scores_V: Tensor, new_id: int) -> None:
    tau, eta = sequence.options.mirostat_tau, sequence.options.mirostat_eta
    sequence.mirostat_bounds.append(mirostat_bound(scores_V, new_id, _bound_of(sequence), tau, eta))


def _sample_native(sequences: list[Sequence], logits_BV: Tensor) -> list[int]:
    """Return the next ids of sequences with equal sampling options and length, by the Rust sampler."""
    first = sequences[0]
    seeds = [(sequence.options.seed or 0) & SEED_BITS for sequence in sequences]
    history = first.penalised_ids if first.options.uses_history else None
    sampler = first.options.remaining_sampler
    logits_BV = logits_BV.detach()
    if history is not None:
        return [int(sampler.sample(logits_BV[0], history, step=len(first.new_ids), seeds=seeds))]
    return sampler.sample(logits_BV, step=len(first.new_ids), seeds=seeds).tolist()


def _sample_with_torch(sequences: list[Sequence], logits_BV: Tensor) -> list[int]:
    """Return the next ids of sequences with equal sampling options, by the sampler's torch twin."""
    options, device = sequences[0].options, logits_BV.device
    history_BT = None
    if options.uses_history:
        histories = [sequence.penalised_ids for sequence in sequences]
        width = max(1, *map(len, histories))
        history_BT = torch.tensor([[-1] * (width - len(ids)) + ids for ids in histories], device=device)
    chosen: list[int] = sample_logits(
        logits_BV,
        **options.remaining_sampler_options,
        history_BT=history_BT,
        seed=torch.tensor([_signed((sequence.options.seed or 0) & SEED_BITS) for sequence in sequences], device=device),
        step=torch.tensor([len(sequence.new_ids) for sequence in sequences], device=device),
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
