"""Perplexity against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama.model import LlamaForCausalLM, perplexity
from bpe_llama.model.evaluation import scoring as evaluation
from tests.small_models import tiny_model

MODEL = tiny_model(vocab_size=31, hidden_size=16, num_hidden_layers=2, initializer_range=0.3)


def by_definition(ids: list[int], window: int, stride: int) -> float:
    """Return the perplexity from one forward pass per token, in the first window that contains the token."""
    total = 0.0
    for place in range(1, len(ids)):
        begin = next(begin for begin in range(0, len(ids), stride) if begin <= place < begin + window)
        logits = MODEL(torch.tensor([ids[begin:place]])).logits[0, -1].double()
        total -= logits.log_softmax(-1)[ids[place]].item()
    return math.exp(total / (len(ids) - 1))


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_perplexity_equals_its_definition(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=30))
    window = data.draw(st.integers(2, 20))
    stride = data.draw(st.none() | st.integers(1, window - 1))
    expected = by_definition(ids, window, window - 1 if stride is None else stride)
    assert perplexity(MODEL, ids, window=window, stride=stride) == pytest.approx(expected, rel=1e-5)


def test_perplexity_does_not_depend_on_chunks_or_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 31, (60,), generator=torch.Generator().manual_seed(0))
    whole = perplexity(MODEL.train(), ids, window=50)
    assert MODEL.training
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    assert perplexity(MODEL.eval(), ids, window=50) == pytest.approx(whole, rel=1e-6)
    assert not MODEL.training


def test_a_perplexity_beyond_a_floats_range_is_infinite() -> None:
    certain = LlamaForCausalLM(MODEL.config)
    with torch.no_grad():
        certain.lm_head.weight.mul_(1e6)
    assert perplexity(certain, list(range(20))) == math.inf


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([3], {}, r"shape \(1,\); expected \(length,\) with at least 2"),
        ([[3, 4]], {}, r"shape \(1, 2\)"),
        ([3.0, 4.5], {}, r"ids are torch\.float32; expected integers"),
        ([3, 4], {"window": 65}, "window is 65; expected 2 to the model's context of 64"),
        ([3, 4], {"window": 1}, "window is 1"),
        ([3, 4], {"window": 8, "stride": 8}, "stride is 8; expected at least 1 and less than the window of 8"),
        ([3, 4], {"window": 8, "stride": 0}, "stride is 0"),
        ([3, 31, 4], {"window": 8}, "id 31 is outside"),
        ([3, 4, 31], {"window": 8}, "31 is outside"),
    ],
)
def test_bad_requests_are_named(ids: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perplexity(MODEL, ids, **options)
