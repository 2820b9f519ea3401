"""Speculative decoding: the ids of the model alone, accepted draft tokens, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence
from bpe_llama.model.generation.speculative import ModelDraft, PromptLookupDraft, generate_speculative
from tests.model.generation.naive import alone

Make = Callable[..., LlamaForCausalLM]


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("num_speculative_tokens", [1, 3, 8])
def test_speculation_changes_no_id(
    tiny_model: Make, ids: Tensor, temperature: float, num_speculative_tokens: int
) -> None:
    model = tiny_model(eos_token_id=[5, 6, 7])
    options = {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
    for row in range(3):
        prompt = ids[row].tolist()
        expected = alone(model, prompt, GenerationOptions(**options))
        for draft in (
            None,
            PromptLookupDraft(1),
            ModelDraft(tiny_model(num_hidden_layers=1), model),
            ModelDraft(model, model),
        ):
            result = generate_speculative(model, prompt, draft, num_speculative_tokens, **options)
            assert result.new_ids == expected
            assert result.num_accepted_tokens <= result.num_draft_tokens
            # Each pass adds an id of the model's own, but for a last one that ended on a draft token.
            assert result.num_forward_passes - (len(expected) - result.num_accepted_tokens) in (0, 1)
        assert result.num_accepted_tokens == result.num_draft_tokens  # a model accepts all of its own draft tokens


def test_speculation_pays_on_repetitive_text(model: LlamaForCausalLM) -> None:
    for weight in model.parameters():  # a model that always says the next number: each id predicts id + 1
        if weight.ndim == 2 and weight.shape[0] != 97:
            weight.zero_()
    model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, 0))
    result = generate_speculative(
        model, [*range(10, 30), 10, 11], temperature=0.0, max_new_tokens=18, num_speculative_tokens=6
    )
    assert result.new_ids == list(range(12, 30))
    assert result.num_forward_passes <= 4


def test_prompt_lookup_matches_n_grams_of_the_given_lengths() -> None:
    sequence = Sequence([5, 6, 7, 8, 9, 6], GenerationOptions(), ())
    assert PromptLookupDraft()(sequence, 2) == []
    assert PromptLookupDraft(min_ngram=1)(sequence, 2) == PromptLookupDraft(1)(sequence, 2) == [7, 8]
    assert PromptLookupDraft()(Sequence([1, 5, 6, 7, 5, 6, 3, 1, 5, 6], GenerationOptions(), ()), 2) == [7, 5]


def test_speculation_refusals(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="num_speculative_tokens is 0"):
        generate_speculative(model, ids[0], num_speculative_tokens=0)
    for prompt in (ids[:2], ids[None, :1], ids[0, 0]):
        with pytest.raises(ValueError, match=r"prompt has shape \(.*\); expected \(T,\) or \(1, T\)"):
            generate_speculative(model, prompt)
    with pytest.raises(ValueError, match="draft model has 98 ids, the model 97"):
        ModelDraft(tiny_model(vocab_size=98), model)
    with pytest.raises(ValueError, match="max_ngram is 0; expected at least 1"):
        PromptLookupDraft(0)
    engine = Engine(model, 2)
    sequences = engine.prefill([[4], [5]], [GenerationOptions(eos_id=())] * 2)
    with pytest.raises(ValueError, match="runs alone"):
        engine.verify(sequences[0], [1])
