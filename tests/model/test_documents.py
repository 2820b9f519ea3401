"""Packed documents: a row equals its documents alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM as TheirModel

from bpe_llama.model import KVCache, LlamaForCausalLM
from bpe_llama.model.layers.documents import Documents

Make = Callable[..., LlamaForCausalLM]

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 6,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "window of 3": {"model_type": "mistral", "sliding_window": 3},
    "window longer than the documents": {"model_type": "mistral", "sliding_window": 19},
    "longrope": {"rope_parameters": LONGROPE},
    "dynamic NTK": {"max_position_embeddings": 5, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "mixture of experts": {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2},
    "sinusoidal": {"position_encoding": "sinusoidal"},
}
LENGTHS = [[1, 7, 12], [20], [3, 1, 1, 15]]
"""Of the documents in each row of the fixture `ids`."""


@pytest.fixture(autouse=True)
def gradients() -> Any:
    with torch.enable_grad():
        yield


def numbers(lengths: list[list[int]]) -> Tensor:
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])


def pieces(x: Tensor, lengths: list[list[int]] = LENGTHS) -> list[Tensor]:
    """Return the documents of a batch, each as a batch of one row."""
    return [part[None] for row, sizes in zip(x, lengths, strict=True) for part in row.split(sizes)]


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_documents_equal_documents_alone(tiny_model: Make, ids: Tensor, variant: str, backend: str) -> None:
    model = tiny_model(head_dim=8, **VARIANTS[variant])
    alone = [model(part, labels=part) for part in pieces(ids)]
    learned = int(ids.numel() - sum(map(len, LENGTHS)))
    expected = sum(out.loss * (out.logits.shape[1] - 1) for out in alone if out.logits.shape[1] > 1) / learned
    expected.backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()

    model.set_attn_implementation(backend)
    with torch.set_grad_enabled(backend != "flex"):  # torch has no backward pass of flex attention on the CPU
        out = model(ids, labels=ids, document_ids=numbers(LENGTHS))
    for packed, part in zip(pieces(out.logits), alone, strict=True):
        assert_close(packed, part.logits, atol=1e-5, rtol=1e-5)
    assert_close(out.loss, expected, atol=1e-6, rtol=1e-6)
    if backend == "flex":
        return
    loss = model.loss(ids, ids, chunk_size=7, document_ids=numbers(LENGTHS))
    loss.backward()
    assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for weight, gradient in zip([w for w in model.parameters() if w.grad is not None], gradients, strict=True):
        assert_close(weight.grad, gradient, atol=1e-5, rtol=1e-4)


def test_packed_documents_equal_those_of_transformers(tiny_model: Make, ids: Tensor) -> None:
    """Where the rotation does not depend on the length, positions that restart are enough for transformers."""
    ours = tiny_model()
    config = TheirConfig(**ours.config.to_dict(), attn_implementation="eager")
    theirs = TheirModel(config).eval()
    theirs.load_state_dict(ours.state_dict())
    positions = torch.cat([torch.arange(length) for length in LENGTHS[0]])[None]
    with torch.no_grad():
        expected = theirs(ids[:1], position_ids=positions, use_cache=False).logits
        packed = ours(ids[:1], document_ids=numbers(LENGTHS[:1])).logits
    assert_close(packed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_padding_within_a_row_of_documents(tiny_model: Make, ids: Tensor, window: int | None) -> None:
    model = tiny_model(sliding_window=window)
    mask = torch.ones_like(ids)
    mask[0, 1:4] = 0  # on the left of the second document
    mask[2, 17:] = 0  # on the right of the last one
    packed = model(ids, mask, document_ids=numbers(LENGTHS)).logits
    assert_close(packed[0, 4:8], model(ids[:1, 4:8]).logits[0], atol=1e-5, rtol=1e-5)
    assert_close(packed[2, 5:17], model(ids[2:, 5:17]).logits[0], atol=1e-5, rtol=1e-5)


@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 6),
)
@settings(max_examples=50, deadline=None)
def test_what_a_query_attends_to(lengths: list[tuple[int, ...]], window: int | None) -> None:
    longest = max(map(sum, lengths))
    rows = [[*row, longest - sum(row)] if sum(row) < longest else [*row] for row in lengths]
    marks = numbers(rows)
    documents = Documents.of(marks % 2, marks, window)  # runs count, not numbers
    assert documents.lengths == rows
    for row, (sees, of, position) in enumerate(zip(documents.mask[:, 0], marks, documents.positions(), strict=True)):
        for query in range(longest):
            expected = [
                of[query] == of[key] and key <= query and (window is None or key > query - window)
                for key in range(longest)
            ]
            assert sees[query].tolist() == expected
            assert position[query] == int((of[:query] == of[query]).sum())
        assert documents.begins_BT[row].sum() == len(rows[row])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@torch.no_grad()
def test_compiled_documents_agree(tiny_model: Make, ids: Tensor, backend: str) -> None:
    model = tiny_model(num_hidden_layers=1, head_dim=16)
    model.set_attn_implementation(backend)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for lengths in (LENGTHS, LENGTHS[::-1]):
        marks = numbers(lengths)
        assert_close(compiled(ids, document_ids=marks).logits, model(ids, document_ids=marks).logits)


def test_gradient_checkpointing_of_documents(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model().train()
    expected = model.loss(ids, ids, document_ids=numbers(LENGTHS))
    model.model.gradient_checkpointing = True
    loss = model.loss(ids, ids, document_ids=numbers(LENGTHS))
    loss.backward()
    assert_close(loss, expected)


def test_invalid_documents_are_refused(tiny_model: Make, ids: Tensor) -> None:
    model, marks = tiny_model(), numbers(LENGTHS)
    with pytest.raises(ValueError, match="document_ids and past_key_values are given"):
        model(ids, past_key_values=KVCache(model.config, 3), document_ids=marks)
    with pytest.raises(ValueError, match=r"document_ids are torch.int64 of shape \(3, 19\); expected .*\(3, 20\)"):
        model(ids, document_ids=marks[:, 1:])
    with pytest.raises(ValueError, match=r"document_ids are torch\.float32"):
        model(ids, document_ids=marks.float())
    with pytest.raises(ValueError, match="labels have shape"):
        model(ids, labels=ids[:, 1:], document_ids=marks)
