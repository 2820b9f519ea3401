"""Generation against naive generation: batches, padding, seeds, ends, options, refused requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence, stream_ids
from bpe_llama.model.generation.sampler_dispatch import _sample_native, _sample_with_torch, sample_next_ids
from tests.model.generation.naive import alone

Make = Callable[..., LlamaForCausalLM]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_padded_batch_gives_what_each_prompt_gives_alone(tiny_model: Make, ids: Tensor, temperature: float) -> None:
    model = tiny_model(eos_token_id=[2, 7, 8, 9, 10])
    mask = torch.ones_like(ids)
    mask[1, :7], mask[2, :19] = 0, 0
    out = model.generate(ids, mask, max_new_tokens=25, temperature=temperature, seed=11)
    options = GenerationOptions(max_new_tokens=25, temperature=temperature, seed=11)
    expected = [alone(model, ids[row][mask[row] > 0].tolist(), options) for row in range(3)]
    width = max(map(len, expected))
    assert torch.equal(out[:, :20], ids)
    assert out[:, 20:].tolist() == [row + [0] * (width - len(row)) for row in expected]
    assert out.dtype == torch.int64


def test_the_seed_decides(model: LlamaForCausalLM, ids: Tensor) -> None:
    first, second = (model.generate(ids, max_new_tokens=12, temperature=1.5, seed=1) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.generate(ids, max_new_tokens=12, temperature=1.5, seed=2))


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1, 2**64 + 5, -3])
def test_any_seed_is_taken_by_either_sampler(seed: int) -> None:
    logits = torch.randn(2, 97, generator=torch.Generator().manual_seed(1))
    sequences = [Sequence([1], GenerationOptions(temperature=1.5, top_p=1.0, seed=seed + row), ()) for row in range(2)]
    assert _sample_with_torch(sequences, logits) == _sample_native(sequences, logits)


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.4},
        {"logit_bias": {5: 4.0, 9: -3.0}, "presence_penalty": 0.5},
        {"banned_ids": range(0, 97, 2)},
        {"allowed_ids": [3, 8, 13]},
        {"preset": "llama_cpp", "min_p": 0.05, "temperature": 1.5},
        {"preset": "transformers", "top_k": 4},
    ],
    ids=str,
)
def test_everything_a_sampler_knows_reaches_the_draw(
    model: LlamaForCausalLM, ids: Tensor, options: dict[str, Any]
) -> None:
    plain = model.generate(ids[:2, :6], max_new_tokens=8, seed=3)
    out = model.generate(ids[:2, :6], max_new_tokens=8, seed=3, **options)
    assert not torch.equal(out, plain)
    chosen = GenerationOptions(max_new_tokens=8, seed=3, **options)
    assert out[:, 6:].tolist() == [alone(model, row.tolist(), chosen) for row in ids[:2, :6]]
    logits = torch.randn(2, 97, generator=torch.Generator().manual_seed(1))
    sequences = [Sequence([1, 5], replace(chosen, seed=row), ()) for row in range(2)]
    assert sample_next_ids(sequences, logits) == _sample_with_torch(sequences, logits)


def test_the_end_is_kept_and_then_padded(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    free = model.generate(ids, max_new_tokens=10, temperature=0.0, eos_id=())[:, 20:]
    end = int(free[1, 3])
    out = model.generate(ids, max_new_tokens=10, temperature=0.0, eos_id=end)[:, 20:]
    for row, expected in zip(out.tolist(), free.tolist(), strict=True):
        cut = expected.index(end) + 1 if end in expected else 10
        assert row == (expected[:cut] + [0] * 10)[: out.shape[1]]
    longer = model.generate(ids, max_new_tokens=10, min_new_tokens=10, temperature=0.0, eos_id=end)[:, 20:]
    assert end not in longer[:, :9] and longer.shape == (3, 10)


@pytest.mark.parametrize("eos_id", [-1, 97, (-97, 1000)])
@pytest.mark.parametrize("search", [{"temperature": 0.0}, {"num_beams": 2}])
def test_an_end_outside_the_vocabulary_ends_and_bars_nothing(
    tiny_model: Make, ids: Tensor, eos_id: object, search: dict[str, object]
) -> None:
    model = tiny_model()
    likeliest = int(model(ids[:1]).logits[0, -1].argmax())
    model.lm_head.weight[96] = 2 * model.lm_head.weight[likeliest]
    free = model.generate(ids, max_new_tokens=5, eos_id=(), **search)
    assert 96 in free
    assert torch.equal(model.generate(ids, max_new_tokens=5, min_new_tokens=5, eos_id=eos_id, **search), free)


@pytest.mark.parametrize("asked", [5, np.int64(5), torch.tensor(5), [5], np.array([5, 6]), torch.tensor([5, 6])])
def test_an_end_may_be_any_kind_of_integer(tiny_model: Make, asked: Any) -> None:
    ends = GenerationOptions(eos_id=asked).ending_ids(tiny_model().config)
    assert ends in ((5,), (5, 6)) and all(type(end) is int for end in ends)


def test_streaming_yields_the_columns(model: LlamaForCausalLM, ids: Tensor) -> None:
    columns = list(stream_ids(model, ids, max_new_tokens=6, seed=3))
    assert torch.equal(torch.stack(columns, 1), model.generate(ids, max_new_tokens=6, seed=3)[:, 20:])


def test_generation_stops_where_the_context_ends(tiny_model: Make, ids: Tensor) -> None:
    out = tiny_model(max_position_embeddings=24).generate(ids, max_new_tokens=50, temperature=0.0, eos_id=())
    assert out.shape == (3, 24)


def test_penalties_apply_to_earlier_ids(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    out = model.generate(ids, max_new_tokens=20, temperature=0.0, frequency_penalty=1e4, eos_id=())
    assert all(len(set(row[20:])) == 20 and not set(row[20:]) & set(row[:20]) for row in out.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 65}, "min_new_tokens is 65"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 0.0}, "top_p"),
        ({"preset": "mine"}, "preset must be"),
        ({"banned_ids": [1, -1]}, "banned_ids holds -1; expected ints"),
        ({"banned_ids": [97]}, "banned_ids holds id 97, outside the vocabulary of 97"),
        ({"attention_mask": torch.zeros(3, 20)}, "row 0 is all padding"),
        ({"attention_mask": torch.ones(3, 19)}, r"\(3, 19\)"),
        ({"attention_mask": torch.ones(3, 20).tril(0)}, "row 0 is not padded on the left"),
    ],
)
def test_bad_requests_are_named(tiny_model: Make, ids: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(ids, **options)


def test_prompts_that_do_not_fit_are_refused(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(max_position_embeddings=20)
    with pytest.raises(ValueError, match="20 ids, which leaves no room in a context of 20"):
        model.generate(ids)
    with pytest.raises(ValueError, match=r"shape \(1, 0\)"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"dtype torch\.float32; expected integers"):
        model.generate(ids[:, :5].float())
    engine = Engine(model, slots=2)
    with pytest.raises(TypeError, match=r"prompt 1 holds 2\.0 at index 1; expected ids, which are ints"):
        engine.prefill([[1], [1, 2.0]], [GenerationOptions()] * 2)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.prefill([[1], []], [GenerationOptions()] * 2)
    with pytest.raises(ValueError, match="3 prompts for 2 free slots"):
        engine.prefill([[1]] * 3, [GenerationOptions()] * 3)
    assert not engine.running
    with pytest.raises(TypeError, match="tempratur"):
        model.generate(ids, tempratur=1.0)


def test_copies_share_a_prefill_and_differ_by_seed(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = {"max_new_tokens": 7, "temperature": 1.2}
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    out = model.generate(ids, mask, num_return_sequences=3, seed=5, **options)
    assert out.shape == (9, 27)
    for row in range(3):
        for copy in range(3):
            single = model.generate(ids[row : row + 1], mask[row : row + 1], seed=5 + copy, **options)
            assert torch.equal(out[3 * row + copy], single[0])
    with pytest.raises(ValueError, match="num_return_sequences is 0"):
        model.generate(ids, num_return_sequences=0)
