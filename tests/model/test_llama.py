"""The model's invariances (cache, batch, padding), its loss and gradients, and refused inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from bpe_llama.model import KVCache, LlamaForCausalLM
from bpe_llama.model.cache import QuantizedCache, make_cache

Make = Callable[..., LlamaForCausalLM]


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def cached(model: LlamaForCausalLM, ids: Tensor, sizes: list[int], mask: Tensor | None = None) -> Tensor:
    """Return the logits of ``ids`` prefilled in chunks of the given sizes."""
    cache, parts, start = KVCache(model.config, ids.shape[0]), [], 0
    for size in sizes:
        seen = None if mask is None else mask[:, : start + size]
        parts.append(model(ids[:, start : start + size], seen, past_key_values=cache).logits)
        start += size
    assert start == ids.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("sizes", [[20], [7, 13], [1] * 20, [5, 1, 1, 13]])
def test_logits_do_not_depend_on_the_cache(tiny_model: Make, ids: Tensor, kv_heads: int, sizes: list[int]) -> None:
    model = tiny_model(num_key_value_heads=kv_heads)
    close(cached(model, ids, sizes), model(ids).logits)


def test_logits_do_not_depend_on_the_batch(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    together = model(ids).logits
    for row in range(3):
        close(model(ids[row : row + 1]).logits[0], together[row])


@pytest.mark.parametrize("sizes", [[20], [6, 14], [9] + [1] * 11])
def test_logits_do_not_depend_on_left_padding(tiny_model: Make, ids: Tensor, sizes: list[int]) -> None:
    model = tiny_model()
    mask = torch.ones_like(ids)
    mask[1, :5], mask[2, :8] = 0, 0
    logits = cached(model, ids, sizes, mask)
    for row, pads in enumerate([0, 5, 8]):
        close(logits[row, pads:], model(ids[row : row + 1, pads:]).logits[0])


def test_logits_do_not_depend_on_right_padding(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    close(model(ids, mask).logits[1, :12], model(ids[1:2, :12]).logits[0])


def test_padding_gives_no_nan(tiny_model: Make, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[0, :19] = 0
    assert tiny_model()(ids, mask).logits.isfinite().all()


def test_slots_of_different_lengths(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    cache = KVCache(model.config, batch_size=3, max_length=32)
    for row, length in enumerate([3, 9, 14]):
        slot = cache.rows(row, row + 1)
        model(ids[row : row + 1, :length], past_key_values=slot)
        cache.lengths[row] = slot.lengths[0]
    assert cache.lengths == [3, 9, 14]
    new = torch.stack([ids[0, 3:5], ids[1, 9:11], ids[2, 14:16]])
    logits = model(new, past_key_values=cache).logits
    for row, length in enumerate([3, 9, 14]):
        close(logits[row], model(ids[row : row + 1, : length + 2]).logits[0, -2:])
    assert cache.lengths == [5, 11, 16]


def test_truncate_copy_and_reorder(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    cache = KVCache(model.config, batch_size=3, max_length=32)
    model(ids, past_key_values=cache)
    cache.truncate([4, 20, 10])
    cache.copy(2, 0)
    assert cache.lengths == [10, 20, 10]
    cache.reorder([1, 0, 1])
    assert cache.lengths == [20, 10, 20]
    logits = model(ids[:, :1], past_key_values=cache).logits
    for row, (source, length) in enumerate([(1, 20), (2, 10), (1, 20)]):
        whole = torch.cat([ids[source, :length], ids[row, :1]])[None]
        close(logits[row], model(whole).logits[0, -1:])


def test_attention_is_causal(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    other = ids.clone()
    other[:, 12:] = 5
    close(model(other).logits[:, :12], model(ids).logits[:, :12])


def test_logits_to_keep(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(ids, labels=ids, logits_to_keep=2)


def test_the_loss_is_the_mean_over_labels_that_are_not_ignored(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    labels = ids.clone()
    labels[:, :8] = -100
    out = model(ids, labels=labels)
    picked = out.logits[:, 7:-1].log_softmax(-1).gather(-1, labels[:, 8:, None])
    assert out.loss.item() == pytest.approx(-picked.mean().item(), rel=1e-5)


def test_initialization_depends_on_the_seed_alone(tiny_model: Make) -> None:
    before = torch.get_rng_state()
    first, second, other = tiny_model(seed=4), tiny_model(seed=4), tiny_model(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_tied_embeddings_are_one_matrix(tiny_model: Make) -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(list(model.parameters())) == len(list(tiny_model().parameters())) - 1


class _LargestTensors(TorchDispatchMode):
    """Counts the tensors of `size` numbers that are allocated on the CPU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format and out.device.type == "cpu":
            self.count += out.numel() == self.size
        return out


def test_a_tied_matrix_is_allocated_once(tiny_model: Make) -> None:
    size = tiny_model(tie_word_embeddings=True).lm_head.weight.numel()
    with _LargestTensors(size) as allocated:
        tiny_model(tie_word_embeddings=True)
    assert allocated.count == 1


def test_inverse_frequencies_stay_float32_through_casts(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model().to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, tiny_model().model.rotary_emb.inv_freq)
    assert model(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"shape \(3,\)"),
        (torch.zeros(2, 0, dtype=torch.long), r"shape \(2, 0\)"),
        (torch.tensor([[4, 97]]), "id 97 is outside the vocabulary of 97"),
        (torch.tensor([[-1, 4]]), "id -1"),
    ],
)
def test_bad_ids_are_named(tiny_model: Make, bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(bad)


def test_float_ids_are_a_type_error(tiny_model: Make) -> None:
    with pytest.raises(TypeError, match=r"torch\.float32"):
        tiny_model()(torch.zeros(1, 3))


@pytest.mark.parametrize("label", [-1, 97])
def test_bad_labels_are_named(tiny_model: Make, ids: Tensor, label: int) -> None:
    labels = ids.clone()
    labels[1, 4] = label
    with pytest.raises(ValueError, match=f"label {label} is neither"):
        tiny_model()(ids, labels=labels)
    with pytest.raises(ValueError, match=f"label {label} is neither"):
        tiny_model().loss(ids, labels)
    with pytest.raises(ValueError, match=r"labels have shape \(3, 19\)"):
        tiny_model()(ids, labels=ids[:, 1:])
    for score in (tiny_model().loss, lambda ids, labels: tiny_model()(ids, labels=labels)):
        with pytest.raises(TypeError, match=r"labels have dtype torch\.float32; expected int64"):
            score(ids, ids.float())


def test_a_mask_of_the_wrong_width_is_refused(tiny_model: Make, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="covers 19 columns; expected 20"):
        tiny_model()(ids, torch.ones(3, 19))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_ids_may_be_any_integers(tiny_model: Make, ids: Tensor, dtype: torch.dtype) -> None:
    model = tiny_model()
    assert_close(model(ids.to(dtype)).logits, model(ids).logits)
    assert_close(model.loss(ids.to(dtype), ids), model.loss(ids, ids))


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"num_hidden_layers": 2}, None, "2 layers with 2 KV heads of 8 and 3 layers with 2 KV heads of 8"),
        ({"num_hidden_layers": 4}, None, "4 layers with 2 KV heads of 8 and 3 layers"),
        ({"num_key_value_heads": 3}, None, "3 layers with 3 KV heads of 8 and 3 layers with 2 KV heads"),
        ({"head_dim": 16}, None, "3 layers with 2 KV heads of 16 and 3 layers with 2 KV heads of 8"),
        ({}, torch.bfloat16, "the cache has dtype torch.bfloat16; expected the model's, torch.float32"),
    ],
)
@pytest.mark.parametrize("form", [KVCache, QuantizedCache])
def test_the_cache_of_another_model_is_refused(
    tiny_model: Make,
    ids: Tensor,
    changes: dict[str, Any],
    dtype: torch.dtype | None,
    message: str,
    form: type[KVCache],
) -> None:
    cache = form(tiny_model(**changes).config, batch_size=3, max_length=32, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        tiny_model()(ids, past_key_values=cache)
    assert cache.lengths == [0, 0, 0]


def test_a_full_cache_is_named(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    cache = KVCache(model.config, batch_size=3, max_length=8)
    with pytest.raises(ValueError, match="exceed the cache's 8"):
        model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="2 rows, but the cache has 3 slots"):
        model(ids[:2, :4], past_key_values=cache)
    assert cache.lengths == [0, 0, 0]
    with pytest.raises(ValueError, match="cannot be cut to 3"):
        cache.truncate([0, 3, 0])


@torch.enable_grad()
def test_every_weight_has_a_gradient(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("form", ["full", "int8", "ring"])
@torch.enable_grad()
def test_gradients_through_a_cache(tiny_model: Make, ids: Tensor, form: str) -> None:
    model = tiny_model(sliding_window=64 if form == "ring" else None)

    def cache() -> KVCache:
        return make_cache(form, model.config, 3, 20, 20, torch.float32, torch.device("cpu"))

    def gradients(*parts: slice, frozen: int = 0, **options: Any) -> dict[str, Tensor]:
        model.zero_grad()
        for number, part in enumerate(parts):
            with torch.set_grad_enabled(number >= frozen):
                logits = model(ids[:, part], **options).logits
        logits[:, -5:].square().sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    whole = slice(0, 20)
    expected, found = gradients(whole), gradients(whole, past_key_values=cache())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < (0.1 if form == "int8" else 1e-5) * gradient.norm(), name
    # Gradients of the last chunk alone, after a constant one: compared with a finite difference along the gradient.
    store = cache()
    found = gradients(slice(0, 15), slice(15, 20), frozen=1, past_key_values=store)
    if form == "full":
        direction = {name: gradient / 3e5 for name, gradient in found.items()}
        steps = []
        for sign in (1, -1):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for name, weight in other.named_parameters():
                    weight += sign * direction[name]
                store.truncate([15] * 3)
                steps.append(float(other(ids[:, 15:], past_key_values=store).logits[:, -5:].square().sum()))
        slope = sum(float((gradient * direction[name]).sum()) for name, gradient in found.items())
        assert (steps[0] - steps[1]) / 2 == pytest.approx(slope, rel=0.02)
    # After a chunk that recorded gradients the loss of gradients raises; an emptied cache can be used again.
    store = cache()
    with pytest.raises(RuntimeError, match="a KVCache stores no gradients: the loss depends on keys and values"):
        gradients(slice(0, 15), slice(15, 20), past_key_values=store)
    store.truncate([0] * 3)
    again = gradients(whole, past_key_values=store)
    for name, gradient in gradients(whole, past_key_values=cache()).items():
        assert torch.equal(again[name], gradient), name
