"""A sequence that is being generated: its prompt, its new ids and what was recorded on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    constraint: ConstraintState | None = field(init=False, default=None)
    """What the constraint of the options has read of the new ids."""

    def __post_init__(self) -> None:
        if self.options.constraint is not None:
            self.constraint = ConstraintState(self.options.constraint)

    @property
    def ids(self) -> list[int]:
        """Return prompt and continuation."""
        return self.prompt + self.new_ids

    def next_prompt_ids(self, count: int) -> list[int]:
        """Return the next ``count`` ids to prefill."""
        ids = self.ids if self.new_ids else self.prompt
        start = len(ids) - self.num_prompt_tokens_left
        return ids[start : start + count]

    @property
    def scores_prompt(self) -> bool:
        """Return whether log-probabilities of the prompt's ids are asked for and not complete."""
        return self.options.prompt_logprobs and len(self.prompt_logprobs) < len(self.prompt)

    def share_prompt(self, source: Sequence) -> None:
        """Take over what was computed for the equal prompt of another sequence: nothing is left to prefill."""
        self.num_cached_tokens, self.num_prompt_tokens_left = len(self.prompt), 0
        if self.options.prompt_logprobs:
            self.prompt_logprobs = list(source.prompt_logprobs)
            self.prompt_top_logprobs = list(source.prompt_top_logprobs)

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
