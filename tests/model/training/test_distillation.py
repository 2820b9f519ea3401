"""The distillation loss against its formula, in chunks and micro-batches, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama.model import LlamaForCausalLM, lora, quantize
from bpe_llama.model.training import Batch, TensorBatch, distillation_loss
from tests.model.training.helpers import CONFIG


def model_of(seed: int, **changes: Any) -> LlamaForCausalLM:
    """Return a model in training mode, whose weights are large enough for mistakes to show."""
    return LlamaForCausalLM(CONFIG.replace(initializer_range=0.3, **changes), seed=seed).train()


@pytest.fixture
def teacher() -> LlamaForCausalLM:
    return model_of(7, num_hidden_layers=3, hidden_size=48, head_dim=None, tie_word_embeddings=False)


@pytest.fixture
def batch() -> TensorBatch:
    ids = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[0, :7] = labels[1, 9:] = labels[2] = -100  # a prompt, padding, and a row without a learned token
    return TensorBatch(ids, labels)


def learned_of(batch: TensorBatch) -> int:
    return int((batch.labels[:, 1:] != -100).sum())


def naive(model: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: TensorBatch, T: float, alpha: float) -> Tensor:
    """Return the mean over learned tokens, in float64, one position at a time."""
    ours, theirs = model(batch.ids).logits.double(), teacher(batch.ids).logits.detach().double()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch.ids)):
        for place in range(1, batch.ids.shape[1]):
            label = int(batch.labels[row, place])
            if label == -100:
                continue
            q, p = (torch.softmax(logits[row, place - 1] / T, 0) for logits in (ours, theirs))
            divergence = (p * (p / q).log()).sum()
            total = total + alpha * T**2 * divergence - (1 - alpha) * torch.log_softmax(ours[row, place - 1], 0)[label]
    return total / learned_of(batch)


def gradients(model: LlamaForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 1000])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.5), (0.7, 0.1), (5.0, 0.0)])
def test_loss_and_gradient_are_those_of_the_formula(
    teacher: LlamaForCausalLM, batch: TensorBatch, temperature: float, alpha: float, chunk_size: int | None
) -> None:
    model = model_of(1)
    loss_fn = distillation_loss(teacher, temperature, alpha, chunk_size=chunk_size)
    loss = loss_fn(model, batch, learned_of(batch))
    expected = naive(model, teacher, batch, temperature, alpha)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    ours = gradients(model, loss)
    theirs = gradients(model, naive(model, teacher, batch, temperature, alpha))
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5)
    assert all(weight.grad is None for weight in teacher.parameters()) and not teacher.training


def test_micro_batches_add_up(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model, loss_fn, learned = model_of(1), distillation_loss(teacher), learned_of(batch)
    whole = loss_fn(model, batch, learned)
    expected = gradients(model, whole)
    model.zero_grad()
    total = 0.0
    for row in range(4):  # the third has no learned token
        part = TensorBatch(batch.ids[row : row + 1], batch.labels[row : row + 1])
        loss = loss_fn(model, part, learned)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_without_a_teachers_part_it_is_the_loss_of_training(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model, learned = model_of(1), learned_of(batch)
    ours = distillation_loss(teacher, alpha=0.0)(model, batch, learned)
    torch.testing.assert_close(ours, model.loss(batch.ids, batch.labels, num_items_in_batch=learned))


def test_logits_of_all_positions_are_never_in_memory(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model, rows = model_of(1, tie_word_embeddings=False), list[int]()
    for head in (model.lm_head, teacher.lm_head):
        head.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    gradients(model, distillation_loss(teacher, chunk_size=10)(model, batch, 1))
    assert max(rows) == 10 and sum(rows) == 2 * 2 * 44  # both heads, forward and backward
    rows.clear()
    gradients(model, distillation_loss(teacher)(model, batch, 1))  # a small vocabulary: one product a head
    assert rows == [44, 44]


def test_a_model_learns_its_teacher(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model = model_of(1)
    loss_fn = distillation_loss(teacher, temperature=1.0, alpha=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_fn(model, batch, learned_of(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert 0 <= losses[-1] < losses[0] / 20


def test_routers_adapters_and_quantized_teachers(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    learned = learned_of(batch)
    mask = torch.ones_like(batch.ids)
    mask[1, 9:] = 0
    experts = model_of(1, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)
    masked = TensorBatch(batch.ids, batch.labels, mask)
    ours = distillation_loss(teacher, alpha=0.0)(experts, masked, learned)
    torch.testing.assert_close(ours, experts.loss(batch.ids, batch.labels, mask, num_items_in_batch=learned))
    assert ours > experts.eval().loss(batch.ids, batch.labels, num_items_in_batch=learned)  # has the routing loss
    adapted = lora.add(model_of(1), rank=2)
    found = gradients(adapted, distillation_loss(teacher)(adapted, batch, learned))
    assert found and all("lora" in name for name in found)
    exact = distillation_loss(teacher)(model_of(1), batch, learned)
    rounded = distillation_loss(quantize.quantize(teacher, "int8"))(model_of(1), batch, learned)
    assert 0 < abs(exact - rounded) < 0.05 * exact


def test_packed_documents_equal_each_alone(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model, loss_fn, row = model_of(1), distillation_loss(teacher), batch.ids[:1]
    documents = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    packed = loss_fn(model, TensorBatch(row, row, document_ids=documents), 9)
    alone = [loss_fn(model, TensorBatch(part, part), 9) for part in torch.split(row, [5, 4, 3], dim=1)]
    torch.testing.assert_close(packed, torch.stack(alone).sum())
    plain = distillation_loss(teacher, alpha=0.0)(model, TensorBatch(row, row, document_ids=documents), 9)
    torch.testing.assert_close(plain, model.loss(row, row, num_items_in_batch=9, document_ids=documents))


def test_padding_on_the_left_is_not_attended_to(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model, loss_fn, row = model_of(1), distillation_loss(teacher), batch.ids[:1]
    ids, mask = (functional.pad(part, (4, 0)) for part in (row, torch.ones_like(row)))
    labels = functional.pad(row[:, 1:], (5, 0), value=-100)
    padded = TensorBatch.of(Batch(ids.numpy(), labels.numpy(), mask.numpy()), torch.device("cpu"))
    torch.testing.assert_close(loss_fn(model, padded, 11), loss_fn(model, TensorBatch(row, row), 11))


def test_under_autocast_the_loss_is_float32(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    model, learned = model_of(1), learned_of(batch)
    exact = distillation_loss(teacher, chunk_size=9)(model, batch, learned)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(teacher.to(torch.bfloat16), chunk_size=9)(model, batch, learned)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())


def test_what_does_not_fit_is_named(teacher: LlamaForCausalLM, batch: TensorBatch) -> None:
    for options, message in (
        ({"temperature": 0.0}, r"temperature is 0\.0; expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"alpha": 1.5}, r"alpha is 1\.5; expected 0 to 1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"chunk_size": 0}, "chunk_size is 0; expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            distillation_loss(teacher, **options)  # type: ignore[arg-type]
    loss_fn = distillation_loss(teacher)
    with pytest.raises(ValueError, match="the teacher's vocabulary has 64 ids and the model's 80; expected the same"):
        loss_fn(model_of(1, vocab_size=80), batch, 1)
    with pytest.raises(ValueError, match="sequences have 65 tokens; the teacher's context is 64"):
        loss_fn(model_of(1), TensorBatch(*[torch.ones(1, 65, dtype=torch.long)] * 2), 1)
    with pytest.raises(ValueError, match="label 64 is neither"):
        loss_fn(model_of(1), TensorBatch(batch.ids, batch.labels.masked_fill(batch.labels == -100, 64)), 1)
