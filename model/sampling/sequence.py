"""A sequence that is being generated: its prompt, its new ids and what was recorded on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from bpe_llama.model.sampling.constraint import ConstraintState
from bpe_llama.model.sampling.params import GenerationOptions


@dataclass(eq=False)
class Sequence:
    """A prompt and its continuation so far.

    Example:
        >>> sequence = Sequence([5, 6], GenerationOptions(), (2,), new_ids=[7])
        >>> sequence.ids, sequence.finish_reason
        ([5, 6, 7], None)
    """

    prompt: list[int]
    options: GenerationOptions
    eos_ids: tuple[int, ...]
    """The ids that end the sequence."""
    new_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """For each new id its log-probability before any option acts, if ``options.logprobs``."""
    num_prompt_tokens_left: int = 0
    """Tokens that later steps still have to prefill: of the prompt or, if its keys are computed anew, of all ids."""
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed, because the prefix cache held them."""
    prefill_seconds: float = 0.0
    """Time from admission to the first new id."""
    decode_seconds: float = 0.0
    """Time of all later steps, each counted in full for every sequence of the batch."""
    finish_reason: str | None = None
    """``"stop"`` after an end id, a stop string or `Engine.abort`, or where a constraint allows nothing more;
    ``"length"`` at ``max_new_tokens`` or where the context is full; ``"error"`` where sampling failed (`Engine`,
    ``isolate_errors``); None while the sequence is unfinished."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """For each new id the most likely ids at its position and their log-probabilities, highest first."""
    prompt_logprobs: list[float | None] = field(default_factory=list)
    """For each prompt id its log-probability; None for the first."""
    prompt_top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """For each prompt id the most likely ids at its position; empty for the first."""
    mirostat_bounds: list[float] = field(default_factory=list)
    """Mirostat's bound after each new id."""
    cache_salt: str = ""
    """Only sequences with the same salt share cached prefixes."""
    block_hashes: list[bytes] = field(default_factory=list)
    """The hashes of the full blocks of the prompt, and at the end of all ids, if the engine has a prefix cache."""
    error: Exception | None = None
    """Why sampling failed, if ``finish_reason`` is ``"error"``."""

    @property
    def ids(self) -> list[int]:
        """Return prompt and continuation."""
        return self.prompt + self.new_ids

    @cached_property
    def constraint(self) -> ConstraintState | None:
        """Return what the constraint has read of the new ids; None without one."""
        return None if self.options.constraint is None else ConstraintState(self.options.constraint)

    def append(self, new_id: int, capacity: int) -> None:
        """Append an id, and finish if the sequence ends with it or then holds ``capacity`` tokens."""
        self.new_ids.append(new_id)
        if new_id in self.eos_ids:
            self.finish_reason = "stop"
            return
        complete = self.constraint is not None and self.constraint.is_complete(self.new_ids)
        if complete and len(self.new_ids) >= self.options.min_new_tokens:
            self.finish_reason = "stop"
        elif len(self.new_ids) == self.options.max_new_tokens or len(self.prompt) + len(self.new_ids) >= capacity:
            self.finish_reason = "length"

    def ids_from(self, length: int) -> list[int]:
        """Return the new ids after the first ``length`` tokens, which a cache holds.

        Example:
            >>> Sequence([5, 6], GenerationOptions(), (), new_ids=[7, 8]).ids_from(3)
            [8]
        """
        return self.new_ids[length - len(self.prompt) :]

    def next_prompt_ids(self, count: int) -> list[int]:
        """Return the next ``count`` ids to prefill."""
        ids = self.ids if self.new_ids else self.prompt
        start = len(ids) - self.num_prompt_tokens_left
        return ids[start : start + count]

    def copy(self, number: int) -> Sequence:
        """Return a sequence of the same prompt, just prefilled, whose seed is larger by ``number``."""
        options = replace(self.options, seed=(self.options.seed or 0) + number)
        return Sequence(
            self.prompt,
            options,
            self.eos_ids,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=self.prompt_logprobs,
            prompt_top_logprobs=self.prompt_top_logprobs,
        )

    @property
    def penalised_ids(self) -> list[int]:
        """Return the ids that penalties apply to."""
        return self.ids if self.options.penalty_scope == "context" else list(self.new_ids)


def fast_forward(sequences: Iterable[Sequence], capacity: int, most: int) -> None:
    """Append the ids that constraints force to follow, at most ``most`` a sequence: they need no sampling.

    The next pass computes them together with the last sampled id. ``capacity`` is as of `Sequence.append`.
    """
    for sequence in sequences:
        if sequence.constraint is None or sequence.finish_reason or not sequence.options.fast_forwards:
            continue
        for forced_id in sequence.constraint.forced_ids(sequence.new_ids)[:most]:
            if sequence.finish_reason or forced_id in sequence.eos_ids:
                break
            sequence.append(forced_id, capacity)
