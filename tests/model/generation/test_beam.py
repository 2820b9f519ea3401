"""Beam search against trying everything, and its refusals; tests/parity holds it to transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.sampling.params import GenerationOptions

Make = Callable[..., LlamaForCausalLM]


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_search_wide_enough_finds_the_best(tiny_model: Make, seed: int, penalty: float) -> None:
    model = tiny_model(vocab_size=6, seed=seed)
    options = GenerationOptions(max_new_tokens=3, eos_id=5)
    found = beam_search(model, [1, 2], options, 216, penalty, "never")
    scores: dict[tuple[int, ...], float] = {}
    for ids in itertools.product(range(6), repeat=3):
        logprobs = model(torch.tensor([[1, 2, *ids]])).logits[0, 1:-1].log_softmax(-1)
        ended = ids[: ids.index(5) + 1] if 5 in ids else ids
        total = sum(float(logprobs[place, new_id]) for place, new_id in enumerate(ended))
        scores[ended] = total / len(ended) ** penalty
    expected = sorted(scores.items(), key=lambda item: -item[1])
    assert tuple(found[0].new_ids) == expected[0][0]
    assert [beam.score for beam in found[:5]] == pytest.approx([score for _, score in expected[:5]], abs=1e-5)


def test_one_beam_is_the_greedy_choice(model: LlamaForCausalLM, ids: Tensor) -> None:
    (found,) = beam_search(model, ids[0].tolist(), GenerationOptions(max_new_tokens=9), num_beams=1)
    assert found.new_ids == model.generate(ids[:1], max_new_tokens=9, temperature=0.0)[0, 20:].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_temperature_that_is_left_out_of_the_order_does_not_act(model: LlamaForCausalLM, seed: int) -> None:
    chosen = {"top_k": 40, "max_new_tokens": 6, "seed": seed}
    without = GenerationOptions(**chosen, filter_order=["top_k"])
    neutral = GenerationOptions(**chosen, filter_order=["top_k", "temperature"], temperature=1.0)
    found, expected = (beam_search(model, [1, 2, 3], options, 3, do_sample=True) for options in (without, neutral))
    assert [(beam.new_ids, beam.score) for beam in found] == [(beam.new_ids, beam.score) for beam in expected]


def test_layers_that_cannot_be_fused_give_the_same(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    fused = model.generate(ids, num_beams=4, num_return_sequences=2, max_new_tokens=8)
    model.set_attn_implementation("eager")
    assert torch.equal(fused, model.generate(ids, num_beams=4, num_return_sequences=2, max_new_tokens=8))


def test_text_is_searched_for_too(tiny_model: Make) -> None:
    tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)}, pattern="cl100k", special_tokens={})
    model = tiny_model(vocab_size=256, eos_token_id=None)
    generator = TextGenerator(model, tokenizer)
    options = GenerationOptions(max_new_tokens=12)
    expected = bytes(beam_search(model, list(b"abc"), options, 3)[0].new_ids).decode(errors="replace")
    assert generator.generate("abc", num_beams=3, max_new_tokens=12) == expected
    before_stop = generator.generate("abc", num_beams=3, max_new_tokens=12, stop=expected[3])
    assert before_stop and expected[3] not in before_stop
    assert generator.generate("abc", num_beams=3, max_new_tokens=12, reuse=False) == expected
    greedy = generator.generate("abc", temperature=0.0)
    assert generator.generate("abc", num_beams=1, temperature=0.0) == greedy
    assert generator.generate("abc", num_beams=1, length_penalty=2.0, temperature=0.0, reuse=True) == greedy
    assert generator.generate_batch(["abc"], temperature=0.0, reuse=False) == [greedy]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3; expected 1 to num_beams"),
        ({"num_beams": 2, "length_penalty": 1e6}, "length_penalty is 1000000.0; expected -10 to 10"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
        ({"num_beams": 2, "eos_id": range(97), "min_new_tokens": 2}, "nothing finite"),
        ({"num_beams": 99, "num_return_sequences": 99, "max_new_tokens": 1}, "is 99, but there are only 97"),
        ({"num_beams": 2, "temperature": 0.8}, "temperature is 0.8, but a beam search draws nothing"),
        ({"num_beams": 2, "top_p": 0.9}, "top_p is 0.9, but a beam search draws nothing"),
        ({"num_beams": 2, "logprobs": True}, "logprobs is True, but a beam search has no place for it"),
        ({"num_beams": 2, "max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_refusals(tiny_model: Make, ids: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(ids, **options)


def test_a_model_that_computes_no_numbers_is_refused(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    model.model.norm.weight[3] = torch.nan
    with pytest.raises(ValueError, match="the logits holds NaN"):
        model.generate(ids, num_beams=2)


def test_prompts_that_do_not_fit_are_refused(tiny_model: Make, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="20 ids, which leaves no room in a context of 20"):
        tiny_model(max_position_embeddings=20).generate(ids, num_beams=2)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        beam_search(tiny_model(), [], GenerationOptions())
    assert tiny_model(max_position_embeddings=23).generate(ids, num_beams=2, eos_id=()).shape == (3, 23)
