"""Speculative decoding: guess several ids cheaply, check them all in one forward pass of the model.

The model draws its own id at every guessed position, by the same random number it would have used there anyway, and
a guess counts only if it is that very id. So the ids are those of plain generation, not merely as likely, and a wrong
guess costs time alone.

Source: Leviathan et al. 2022, arXiv:2211.17192; the shared random numbers in place of rejection are ours to test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sample, choose
from bpe_llama.model.llama import LlamaForCausalLM

Draft = Callable[[Sample, int], list[int]]
"""Takes a sequence and how many ids to guess; returns at most so many."""


@dataclass(frozen=True)
class Speculation:
    """What came out: the new ids, how many were guessed, how many guesses held, and the forward passes it took."""

    new_ids: list[int]
    proposed: int
    accepted: int
    passes: int


class LookupDraft:
    """Guesses that what followed the last few ids before follows them again: free, and good on repetitive text.

    Args:
        longest: Ids to match, at most; shorter matches are tried after it.
        shortest: Ids to match, at least. What followed a single id seldom follows it again.

    Example:
        >>> sample = Sample([5, 6, 7, 8, 5, 6], GenerationOptions(), ())
        >>> LookupDraft()(sample, 2)
        [7, 8]
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if longest < 1 or shortest < 1:
            raise ValueError(f"longest is {longest} and shortest {shortest}; expected at least 1")
        self.longest, self.shortest = longest, min(shortest, longest)

    def __call__(self, sample: Sample, count: int) -> list[int]:
        """Return the ids that followed the latest earlier match, none if there is none."""
        ids = sample.ids
        for size in range(min(self.longest, len(ids) - 1), self.shortest - 1, -1):
            tail = ids[-size:]
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start : start + size] == tail:
                    return ids[start + size : start + size + count]
        return []


class ModelDraft:
    """Guesses by a smaller model of the same vocabulary, with a cache of its own.

    Raises:
        ValueError: If the vocabularies differ in size.
    """

    def __init__(self, draft: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
        if draft.config.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"the draft model has {draft.config.vocab_size} ids, the model {model.config.vocab_size}; "
                "expected the same vocabulary"
            )
        self.draft = draft
        self.cache = KVCache(draft.config, 1, draft.config.context_length, dtype=draft.dtype, device=draft.device)
        self._read: list[int] = []

    def __call__(self, sample: Sample, count: int) -> list[int]:
        """Return the draft model's own continuation, drawn with the sequence's options and random numbers."""
        guess = Sample(sample.prompt, sample.options, sample.eos_ids, list(sample.new_ids))
        guess.mirostat_bounds = list(sample.mirostat_bounds)
        count = min(count, self.cache.capacity - len(guess.ids))
        for _ in range(count):
            ids = guess.ids
            same = next((i for i, pair in enumerate(zip(self._read, ids)) if pair[0] != pair[1]), len(self._read))  # noqa: B905
            same = min(same, len(ids) - 1, self.cache.lengths[0])
            self.cache.truncate([same])
            new_1T = torch.tensor([ids[same:]], device=self.draft.device)
            logits_1V = self.draft(new_1T, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
            self._read = ids
            guess.new_ids += choose([guess], logits_1V)
            if guess.new_ids[-1] in guess.eos_ids:
                break
        return guess.new_ids[len(sample.new_ids) :]


@torch.no_grad()
def generate_speculative(
    model: LlamaForCausalLM,
    prompt: Sequence[int] | Tensor,
    draft: Draft | None = None,
    lookahead: int = 16,
    **options: Any,
) -> Speculation:
    """Return the same new ids as plain generation, in fewer forward passes.

    Args:
        model: Weights to generate with.
        prompt: Ids, (T,) or (1, T).
        draft: `LookupDraft` by default; or a `ModelDraft`.
        lookahead: Ids to guess at a time, at most: half as many after a pass in which most guesses failed, twice as
            many after one in which all held.
        **options: Of `GenerationOptions`.

    Raises:
        ValueError: If the prompt is empty or leaves no room in the context, or an option is out of range.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> model = LlamaForCausalLM(config)
        >>> result = generate_speculative(model, [1, 5, 7], temperature=0.0, max_new_tokens=20, eos_id=())
        >>> len(result.new_ids), result.passes < 20
        (20, True)
    """
    if lookahead < 1:
        raise ValueError(f"lookahead is {lookahead}; expected at least 1")
    ids = prompt.flatten().tolist() if isinstance(prompt, Tensor) else list(prompt)
    chosen = GenerationOptions.for_model(model, len(ids), **options)
    guess = draft or LookupDraft()
    room = min(model.config.context_length, len(ids) + chosen.max_new_tokens)
    engine = Engine(model, 1, room)
    (sample,) = engine.join([ids], [chosen])
    proposed = accepted = 0
    passes, ahead = 1, lookahead
    while sample.finish is None:
        left = min(room - len(sample.ids), chosen.max_new_tokens - len(sample.new_ids)) - 1
        guesses = guess(sample, min(ahead, left)) if left > 0 else []
        kept = engine.verify(sample, guesses)
        if guesses and kept == len(guesses):
            ahead = min(2 * ahead, lookahead)
        elif 2 * kept < len(guesses):
            ahead = max(ahead // 2, 1)
        proposed, accepted, passes = proposed + len(guesses), accepted + kept, passes + 1
    return Speculation(sample.new_ids, proposed, accepted, passes)
