"""Embeddings with more or fewer rows: values, tying, dtype, refusals, and generation afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification, lora, quantize
from bpe_llama.model.generation_config import GenerationConfig

Make = Callable[..., LlamaForCausalLM]


def matrices(model: LlamaForCausalLM) -> list[Tensor]:
    return [model.model.embed_tokens.weight, model.lm_head.weight]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_new_rows_are_means_and_the_others_stay(tiny_model: Make, ids: Tensor, tied: bool, dtype: torch.dtype) -> None:
    model = tiny_model(tie_word_embeddings=tied).to(dtype)
    old = [weight.detach().clone() for weight in matrices(model)]
    embedding = model.resize_token_embeddings(100, pieces={98: [5, 7, 7], 3: [4]})
    assert embedding is model.model.embed_tokens and embedding.num_embeddings == model.lm_head.out_features == 100
    assert model.config.vocab_size == model.model.config.vocab_size == 100
    assert (model.lm_head.weight is embedding.weight) == tied
    for weight, rows in zip(matrices(model), old, strict=True):
        assert weight.dtype == dtype and weight.requires_grad and weight.shape == (100, 48)
        wide = rows.double()
        expected = {97: wide.mean(0), 98: wide[[5, 7, 7]].mean(0), 99: wide.mean(0), 3: wide[4]}
        for row in range(100):
            close = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
            torch.testing.assert_close(weight[row].double(), expected.get(row, wide[min(row, 96)]), **close)
        assert torch.equal(weight[4:97], rows[4:97])
    seen = ids.masked_fill(ids == 3, 4)  # the row of 3 is another now
    before = tiny_model(tie_word_embeddings=tied).to(dtype)(seen).logits
    model.resize_token_embeddings(97)
    kept = [token_id for token_id in range(97) if token_id != 3]
    assert torch.equal(model(seen).logits[..., kept], before[..., kept])


def test_a_model_of_another_size_trains_saves_and_generates(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    model = tiny_model()
    before = model.generate(ids[:1], max_new_tokens=8, temperature=0.0)  # the CPU decoder lays the weights out
    model.resize_token_embeddings(130)
    with torch.no_grad():
        model.lm_head.weight[97:] = 0.0
        model.lm_head.weight[129] = model.lm_head.weight[int(before[0, 20])] * 2  # the highest of its first logits
    assert model.generate(ids[:1], max_new_tokens=1, temperature=0.0)[0, 20] == 129
    assert model(torch.tensor([[129, 97]])).logits.shape == (1, 2, 130)
    with torch.enable_grad():
        model.loss(torch.tensor([[5, 129, 97]]), torch.tensor([[5, 129, 97]])).backward()
    grad = model.model.embed_tokens.weight.grad
    assert grad is not None and grad.shape == (130, 48)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert loaded.config.vocab_size == 130 and torch.equal(loaded(ids).logits, model(ids).logits)


def test_an_earlier_optimizer_fails_instead_of_training_the_old_rows(tiny_model: Make) -> None:
    model, row = tiny_model(), torch.tensor([[5, 6, 7]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torch.enable_grad():
        model.loss(row, row).backward()
        optimizer.step()
        model.resize_token_embeddings(99)
        assert model.lm_head.weight.grad is None
        model.loss(row, row).backward()
        with pytest.raises(RuntimeError, match="97"):
            optimizer.step()


def test_pieces_may_come_from_an_iterator(tiny_model: Make) -> None:
    """Before, a check read them, and the new row was NaN."""
    one, other = tiny_model(), tiny_model()
    one.resize_token_embeddings(98, pieces={97: iter([5, 7])})  # type: ignore[dict-item]
    other.resize_token_embeddings(98, pieces={97: [5, 7]})
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    with pytest.raises(TypeError, match=r"pieces\[97\] must be a list of ids, got 5"):
        tiny_model().resize_token_embeddings(98, pieces={97: 5})  # type: ignore[dict-item]


def test_numbers_are_rounded_up_and_none_changes_nothing(tiny_model: Make) -> None:
    model = tiny_model()
    weight = model.model.embed_tokens.weight.data_ptr()
    assert model.resize_token_embeddings() is model.model.embed_tokens
    assert model.resize_token_embeddings(97).weight.data_ptr() == weight
    assert model.resize_token_embeddings(98, pad_to_multiple_of=64).num_embeddings == 128
    assert model.resize_token_embeddings(pad_to_multiple_of=50).num_embeddings == 150
    assert model.resize_token_embeddings(10).num_embeddings == model.config.vocab_size == 10


def test_random_rows_depend_on_the_seed_alone(tiny_model: Make) -> None:
    rows = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 7)
        model = tiny_model()
        model.resize_token_embeddings(1097, mean_resizing=False, seed=seed)
        rows.append([weight[97:].clone() for weight in matrices(model)])
    assert torch.equal(rows[0][0], rows[1][0]) and not torch.equal(rows[0][0], rows[2][0])
    assert not torch.equal(rows[0][0], rows[0][1])
    assert all(abs(float(weight.std()) - 0.2) < 0.01 and abs(float(weight.mean())) < 0.01 for weight in rows[0])


def test_classifiers_and_models_without_a_head(model: LlamaForCausalLM) -> None:
    judge = LlamaForSequenceClassification(model.config.replace(num_labels=3))
    judge.resize_token_embeddings(99)
    assert judge(torch.tensor([[98, 97]])).logits.shape == (1, 3)
    assert judge.score.weight.shape == (3, 48) and judge.config.vocab_size == judge.model.config.vocab_size == 99
    assert judge.model.resize_token_embeddings(101).num_embeddings == judge.model.config.vocab_size == 101


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_num_tokens": 0}, "new_num_tokens is 0; expected an integer of at least 1"),
        ({"new_num_tokens": 9.0}, "new_num_tokens is 9.0"),
        ({"new_num_tokens": 99, "pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"new_num_tokens": 99, "pieces": {99: [1]}}, r"pieces of id 99 are \[1\]; expected ids below 97, for an id"),
        ({"new_num_tokens": 99, "pieces": {98: [97]}}, r"pieces of id 98 are \[97\]"),
        ({"new_num_tokens": 99, "pieces": {98: []}}, r"pieces of id 98 are \[\]"),
        ({"new_num_tokens": 99, "pieces": {98: [-1]}}, r"pieces of id 98 are \[-1\]"),
        ({"new_num_tokens": 99, "pieces": {98: [1]}, "mean_resizing": False}, "mean_resizing is false"),
        ({"new_num_tokens": 2}, "eos_token_id is 2, outside the vocabulary of 2"),
        ({"new_num_tokens": 50}, "eos_token_id 60 of the generation config is outside the vocabulary of 50"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    tiny_model: Make, options: dict[str, Any], message: str
) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig({"eos_token_id": [2, 60]})
    before, config = [weight.clone() for weight in matrices(model)], model.config
    with pytest.raises(ValueError, match=message):
        model.resize_token_embeddings(**options)
    assert all(torch.equal(*pair) for pair in zip(before, matrices(model), strict=True)) and model.config == config


def test_adapted_and_quantized_matrices_are_refused_by_name(tiny_model: Make, ids: Tensor) -> None:
    model = lora.add(tiny_model(), rank=2, target_modules=["embed_tokens"])
    with pytest.raises(TypeError, match=r"embed_tokens is a .*, which cannot be resized; expected no adapter"):
        model.resize_token_embeddings(99)
    model = quantize.quantize(tiny_model(), "int8", skip=())
    with pytest.raises(TypeError, match="lm_head is a Int8Linear"):
        model.resize_token_embeddings(99)
    model = lora.add(tiny_model(), rank=2, target_modules=["q_proj"])  # these do not know the vocabulary
    logits = model(ids).logits
    model.resize_token_embeddings(99)
    assert torch.equal(model(ids).logits[..., :97], logits)
