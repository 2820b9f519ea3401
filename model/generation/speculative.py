"""Speculative decoding: propose several draft tokens cheaply, verify all of them in one forward pass of the model.

At every draft position the model samples its own id, with the random number that plain generation would use there. A
draft token is accepted only if it equals that id. The ids are therefore those of plain generation, not only equally
likely, and a rejected draft token costs time alone.

Source: Leviathan et al. 2022, arXiv:2211.17192. Shared random numbers in place of its rejection step are ours.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpe_llama._arguments import integer, iterator, wrong
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.cache.prefix_cache import prefix_length
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.sampler_dispatch import sample_next_ids
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama.model.sampling.keywords import GenerationKeywords

Draft = Callable[[Sequence, int], list[int]]
"""Takes a sequence and a number of draft tokens; returns at most that many."""


@dataclass(frozen=True)
class SpeculativeResult:
    """The new ids, the draft tokens proposed and accepted, and the forward passes of the model."""

    new_ids: list[int]
    num_draft_tokens: int
    num_accepted_tokens: int
    num_forward_passes: int

    @property
    def acceptance_rate(self) -> float:
        """Return the share of draft tokens that were accepted; 0 if none was proposed.

        Example:
            >>> SpeculativeResult([5, 6, 7], 4, 1, num_forward_passes=2).acceptance_rate
            0.25
        """
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


class PromptLookupDraft:
    """Proposes the ids that followed the latest earlier occurrence of the last n-gram.

    It costs no forward pass, and pays on repetitive text.

    Args:
        max_ngram: The longest n-gram to look up; shorter ones are tried after it.
        min_ngram: The shortest. What followed a single id seldom follows it again.

    Source: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding.

    Example:
        >>> sequence = Sequence([5, 6, 7, 8, 5, 6], GenerationOptions(), ())
        >>> PromptLookupDraft()(sequence, 2)
        [7, 8]
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 2) -> None:
        max_ngram, min_ngram = integer("max_ngram", max_ngram, 1), integer("min_ngram", min_ngram, 1)
        self.max_ngram, self.min_ngram = max_ngram, min(min_ngram, max_ngram)

    def __call__(self, sequence: Sequence, count: int) -> list[int]:
        """Return the ids that followed the latest match; none without a match."""
        ids = sequence.ids
        for size in range(min(self.max_ngram, len(ids) - 1), self.min_ngram - 1, -1):
            tail = ids[-size:]
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start : start + size] == tail:
                    return ids[start + size : start + size + count]
        return []


class ModelDraft:
    """Proposes what a smaller model of the same vocabulary samples; it has its own cache.

    Raises:
        ValueError: If the vocabularies differ in size.
    """

    def __init__(self, draft: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
        check_model(draft, "draft")
        check_model(model)
        if draft.config.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"the draft model has {draft.config.vocab_size} ids, the model {model.config.vocab_size}; "
                "expected the same vocabulary"
            )
        self.draft = draft
        self.cache = KVCache(draft.config, 1, draft.config.context_length, dtype=draft.dtype, device=draft.device)
        self._cached_ids: list[int] = []

    def __call__(self, sequence: Sequence, count: int) -> list[int]:
        """Return the draft model's continuation, sampled with the sequence's options and random numbers."""
        proposal = Sequence(sequence.prompt, sequence.options, sequence.eos_ids, list(sequence.new_ids))
        proposal.mirostat_bounds = list(sequence.mirostat_bounds)
        count = min(count, self.cache.capacity - len(proposal.ids))
        for _ in range(count):
            ids = proposal.ids
            same = min(prefix_length(self._cached_ids, ids), len(ids) - 1, self.cache.lengths[0])
            self.cache.truncate([same])
            new_1T = torch.tensor([ids[same:]], device=self.draft.device)
            logits_1V = self.draft(new_1T, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
            self._cached_ids = ids
            proposal.new_ids += sample_next_ids([proposal], logits_1V)
            if proposal.new_ids[-1] in proposal.eos_ids:
                break
        return proposal.new_ids[len(sequence.new_ids) :]


@torch.no_grad()
def generate_speculative(
    model: LlamaForCausalLM,
    prompt: abc.Sequence[int] | Tensor,
    draft: Draft | None = None,
    num_speculative_tokens: int = 16,
    **options: Unpack[GenerationKeywords],
) -> SpeculativeResult:
    """Return the new ids of plain generation, in fewer forward passes.

    Args:
        model: Weights to generate with.
        prompt: Ids, (T,) or (1, T).
        draft: `PromptLookupDraft` by default; or a `ModelDraft`.
        num_speculative_tokens: The most draft tokens of a pass. Their number halves after a pass that rejects more than
            half of them, and doubles after one that accepts all.
        **options: Of `GenerationOptions`.

    Raises:
        ValueError: If the prompt is empty or leaves no room in the context, or an option is out of range.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> model = LlamaForCausalLM(config)
        >>> result = generate_speculative(model, [1, 5, 7], temperature=0.0, max_new_tokens=20, eos_id=())
        >>> len(result.new_ids), result.num_forward_passes < 20
        (20, True)
    """
    check_model(model)
    num_speculative_tokens = integer("num_speculative_tokens", num_speculative_tokens, 1)
    if draft is not None and not callable(draft):
        raise TypeError(wrong("draft", draft, "a function of a sequence and a number, such as PromptLookupDraft()"))
    if isinstance(prompt, Tensor) and tuple(prompt.shape) not in {(prompt.numel(),), (1, prompt.numel())}:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}; expected (T,) or (1, T)")
    try:
        ids = prompt.flatten().tolist() if isinstance(prompt, Tensor) else list(iterator("prompt", prompt, "ids"))
    except RuntimeError as error:  # a tensor without numbers, or a sparse one
        raise TypeError(wrong("prompt", prompt, "a list or tensor of ids")) from error
    chosen = GenerationOptions.for_model(model, len(ids), **options)
    propose = PromptLookupDraft() if draft is None else draft
    room = min(model.config.context_length, len(ids) + chosen.max_new_tokens)
    engine = Engine(model, 1, room)
    (sequence,) = engine.prefill([ids], [chosen])
    proposed = accepted = 0
    passes, limit = 1, num_speculative_tokens
    while sequence.finish_reason is None:
        left = min(room - len(sequence.ids), chosen.max_new_tokens - len(sequence.new_ids)) - 1
        draft_ids = propose(sequence, min(limit, left)) if left > 0 else []
        verified = engine.verify(sequence, draft_ids)
        if draft_ids and verified == len(draft_ids):
            limit = min(2 * limit, num_speculative_tokens)
        elif 2 * verified < len(draft_ids):
            limit = max(limit // 2, 1)
        proposed, accepted, passes = proposed + len(draft_ids), accepted + verified, passes + 1
    return SpeculativeResult(sequence.new_ids, proposed, accepted, passes)
