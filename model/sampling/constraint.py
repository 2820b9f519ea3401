"""Constraints: the ids that a grammar allows next, computed by llguidance.

A constraint acts before all other options of a sequence: it adds -inf to the logits of ids that it does not allow, so
an id is drawn from the model's distribution, renormalised over the allowed ids. This file knows ids, never text;
`bpe_llama.model.generation.structured` compiles schemas, regexes and grammars.

Shapes: ``B`` sequences, ``V`` ids of the model, ``W`` bytes of a mask with one bit for each id.

Source: https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class ConstraintError(ValueError):
    """A schema, regex, choice or grammar is not valid, or its matcher fails."""


class Constraint:
    """A compiled grammar over the ids of a tokenizer. It is immutable, so requests share it.

    Args:
        option: The name of the option with the grammar, for errors.
        matcher: llguidance's matcher of the grammar, before the first id.
        vocab_size: Ids of the tokenizer. The matcher has one more: the end of text.
        before: Ids to decode before the new ids, so that a decoder that drops the first space of a text keeps it.

    Example:
        >>> generator.options(regex="[0-9]+").constraint  # doctest: +SKIP
        <Constraint of regex>
    """

    def __init__(self, option: str, matcher: LLMatcher, vocab_size: int, before: Sequence[int] = ()) -> None:
        self.option = option
        self.matcher = matcher
        self.vocab_size = vocab_size
        self.before = before

    def __deepcopy__(self, memo: dict[int, object]) -> Constraint:
        return self

    def __repr__(self) -> str:
        return f"<Constraint of {self.option}>"


class ConstraintState:
    """The state of a constraint for one sequence.

    Each method takes all new ids of the sequence, and the state consumes the ids that it has not consumed yet. If the
    ids do not continue the consumed ones, after a step that failed or was repeated, it starts again.
    """

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self._matcher = constraint.matcher.deep_copy()
        self._ids: list[int] | None = []
        """The ids that the matcher has consumed; None while it consumes more, so that an interruption shows."""

    def after(self, new_ids: list[int]) -> LLMatcher:
        """Return the matcher after these ids.

        Raises:
            ConstraintError: If the grammar does not allow the ids, or llguidance reaches one of its limits.
        """
        consumed = self._ids
        if consumed is None or consumed != new_ids[: len(consumed)]:
            self._matcher, consumed = self.constraint.matcher.deep_copy(), []
        if len(consumed) < len(new_ids):
            self._ids = None
            if not self._matcher.consume_tokens(new_ids[len(consumed) :]):
                raise self._error()
            consumed += new_ids[len(consumed) :]
        self._ids = consumed
        return self._matcher

    def is_complete(self, new_ids: list[int]) -> bool:
        """Return whether the text must end after these ids; False if the matcher fails, which sampling then reports."""
        try:
            return self.after(new_ids).is_stopped()
        except ValueError:
            return False

    def forced_ids(self, new_ids: list[int]) -> list[int]:
        """Return the ids that must follow; none if there is a choice.

        They are the tokenizer's encoding of the text that the grammar forces, as far as later text cannot change it.
        Sampling would draw the same ids, since llguidance's masks allow no other tokens for forced text.
        """
        try:
            matcher = self.after(new_ids)
        except ValueError:  # sampling reports it
            return []
        forced = matcher.compute_ff_tokens()
        return forced[: matcher.validate_tokens(forced)] if forced else forced

    def check(self, mask_W: NDArray[np.uint8]) -> None:
        """Raise a ConstraintError if the matcher failed, or its mask, uint8 (W,), allows no id."""
        if self._matcher.is_error():
            raise self._error()
        if not mask_W.any():
            option = self.constraint.option
            raise ConstraintError(f"{option}: no token of the vocabulary can follow, nor may the text end")

    def _error(self) -> ConstraintError:
        self._ids = None
        return ConstraintError(f"{self.constraint.option}: {message_of(self._matcher)}")


def message_of(matcher: LLMatcher) -> str:
    """Return the message of a failed matcher, without its state."""
    return matcher.get_error().partition("\n<state>")[0].strip()


def constraint_bias(
    states: Sequence[ConstraintState],
    new_ids: Sequence[list[int]],
    ends: Sequence[Sequence[int]],
    vocab_size: int,
    device: torch.device,
) -> Tensor:
    """Return 0 for each id that may come next and -inf for all others, float32 (B, V).

    Args:
        states: The states of B sequences with the same tokenizer.
        new_ids: The new ids of each sequence.
        ends: The ids that end each sequence; they are allowed if the grammar accepts the text so far.
        vocab_size: V. Ids beyond the tokenizer's are not allowed.
        device: The device of the result.

    Raises:
        ConstraintError: If a grammar allows nothing, or llguidance reaches a limit.

    Cost: 10 to 30 microseconds a sequence for the mask, on threads of llguidance.
    """
    known = states[0].constraint.vocab_size
    words = np.zeros((len(states), known // 32 + 1), dtype=np.int32)
    matchers = [state.after(ids) for state, ids in zip(states, new_ids, strict=True)]
    if len(matchers) == 1:
        matchers[0].unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    else:
        rows = list(zip(matchers, range(len(matchers)), strict=True))
        _executor(os.getpid()).unsafe_compute_mask_ptr(rows, words.ctypes.data, words.shape[1] * 4, len(rows))
    mask_BW = np.zeros((len(states), vocab_size // 8 + 1), dtype=np.uint8)
    found_BW = words.view(np.uint8)
    accepts_B = found_BW[:, known // 8] >> known % 8 & 1
    found_BW[:, known // 8] &= (1 << known % 8) - 1
    width = min(mask_BW.shape[1], found_BW.shape[1])
    mask_BW[:, :width] = found_BW[:, :width]
    for mask_W, accepts, state, end_ids in zip(mask_BW, accepts_B, states, ends, strict=True):
        for end_id in end_ids:
            mask_W[end_id // 8] &= ~np.uint8(1 << end_id % 8)
            mask_W[end_id // 8] |= np.uint8(int(accepts) << end_id % 8)
        state.check(mask_W)
    if device.type == "cpu":
        bias_BW8 = torch.from_numpy(np.take(_biases(device).numpy(), mask_BW, axis=0))  # ten times as fast as torch's
    else:  # the mask of bits is copied, one byte for eight ids
        bias_BW8 = _biases(device)[torch.from_numpy(mask_BW).to(device).long()]
    return bias_BW8.flatten(1)[:, :vocab_size]


@lru_cache(maxsize=8)
def _biases(device: torch.device) -> Tensor:
    """Return the biases of eight ids for each byte of a mask, (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.where(torch.from_numpy(bits).bool(), 0.0, -math.inf).to(device)


@lru_cache(maxsize=1)
def _executor(process: int) -> LLExecutor:
    """Return llguidance's thread pool; a forked process cannot use its parent's."""
    from llguidance import LLExecutor

    return LLExecutor()
