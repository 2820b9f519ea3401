"""Variants of the model: attention backends, windows, slices, RoPE, experts, classification, compilation."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, lora
from bpe_llama.model.layers import attention_backends
from bpe_llama.model.layers.attention_backends import Visible, attention_weights, sdpa
from bpe_llama.model.layers.matmul import products
from bpe_llama.model.layers.moe import MixtureOfExperts, load_balancing_loss, router_z_loss
from bpe_llama.model.layers.rope import RotaryEmbedding, apply_rope
from tests import small_models as small

Make = Callable[..., LlamaForCausalLM]


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 5])
def test_attention_backends_agree(tiny_model: Make, ids: Tensor, window: int | None) -> None:
    model = tiny_model(sliding_window=window)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    plain, padded = model(ids).logits, model(ids, mask).logits
    model.set_attn_implementation("eager")
    close(model(ids).logits, plain)
    close(model(ids, mask).logits[mask > 0], padded[mask > 0])
    cache = KVCache(model.config, 3)
    parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in [(0, 9), (9, 19), (19, 20)]]
    close(torch.cat(parts, 1), plain)


@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_agrees(tiny_model: Make, ids: Tensor, window: int | None) -> None:
    model = tiny_model(head_dim=16, sliding_window=window)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    plain, padded = model(ids).logits, model(ids, mask).logits
    model.set_attn_implementation("flex")
    close(model(ids).logits, plain)
    close(model(ids, mask).logits[mask > 0], padded[mask > 0])


def test_missing_attention_backends(tiny_model: Make) -> None:
    with pytest.raises(ValueError, match="'magic' is not one of sdpa, eager, flex, flash"):
        tiny_model().set_attn_implementation("magic")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(ImportError, match="flash-attn"):
            tiny_model().set_attn_implementation("flash")


def test_attention_weights_sum_to_one(ids: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8, generator=generator), torch.randn(2, 2, 5, 8, generator=generator)
    weights = attention_weights(query, key, Visible(causal=True))
    assert weights.shape == (2, 4, 5, 5)
    close(weights.sum(-1), torch.ones(2, 4, 5))
    assert torch.equal(weights.tril(), weights)


def test_attention_weights_of_a_model(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(sliding_window=4)
    before = [layer.self_attn.backend for layer in model.model.layers]
    weights = model.attention_weights(ids)
    assert [tuple(layer.shape) for layer in weights] == [(3, 6, 20, 20)] * len(before)
    reach = torch.ones(20, 20).tril() - torch.ones(20, 20).tril(-4)
    for layer in weights:
        close(layer.sum(-1), torch.ones(3, 6, 20))
        assert bool(((layer > 0) == (reach > 0)).all())
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.attention_weights(ids + 1000)
    assert [layer.self_attn.backend for layer in model.model.layers] == before


def test_a_sliding_window_hides_earlier_tokens(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(sliding_window=4, num_hidden_layers=1)
    other = ids.clone()
    other[:, :10] = 5
    close(model(other).logits[:, 13:], model(ids).logits[:, 13:])
    assert not torch.allclose(model(other).logits[:, 12], model(ids).logits[:, 12])
    assert model.config.model_type == "mistral"


@pytest.mark.parametrize("slices", [2, 3])
def test_slices_compute_the_same(tiny_model: Make, ids: Tensor, slices: int) -> None:
    shape = {
        "num_key_value_heads": 6,
        "intermediate_size": 84,
        "vocab_size": 102,
        "attention_bias": True,
        "mlp_bias": True,
    }
    whole, sliced = tiny_model(**shape), tiny_model(pretraining_tp=slices, **shape)
    close(sliced(ids).logits, whole(ids).logits)
    with pytest.raises(ValueError, match=r"num_key_value_heads \(2\) is not a multiple of pretraining_tp \(4\)"):
        LlamaConfig(num_key_value_heads=2, pretraining_tp=4)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@torch.enable_grad()
def test_the_chunked_loss_is_the_loss(tiny_model: Make, ids: Tensor, chunk: int) -> None:
    model = tiny_model()
    labels = ids.clone()
    labels[0, 4:9] = -100
    whole = model(ids, labels=labels).loss
    whole.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    rows: list[int] = []  # of each call of the head
    watching = model.lm_head.register_forward_hook(lambda head, given, logits: rows.append(logits.shape[0]))
    loss = model.loss(ids, labels, chunk_size=chunk)
    loss.backward()
    watching.remove()
    assert max(rows) == min(chunk, 52)  # learned positions alone
    assert sum(rows) == 52 * (1 if chunk >= 52 else 2)  # chunks are computed again in the backward pass
    close(loss, whole)
    for name, weight in model.named_parameters():
        close(weight.grad, expected[name])
    with pytest.raises(ValueError, match="chunk_size is 0"):
        model.loss(ids, labels, chunk_size=0)


@torch.enable_grad()
def test_checkpointing_gives_the_same_gradients(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model().train()
    model(ids, labels=ids).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def bytes_kept() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(ids, labels=ids).loss.backward()
        return sum(kept)

    plain = bytes_kept()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert bytes_kept() < plain
    for name, weight in model.named_parameters():
        close(weight.grad, expected[name])
    with pytest.raises(ValueError, match="a cache cannot bear"):
        model(ids, past_key_values=KVCache(model.config, 3))


# ---- positions


def test_partial_rotation(tiny_model: Make, ids: Tensor) -> None:
    config = tiny_model(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}).config
    rotation = RotaryEmbedding(config)(torch.arange(20)[None])
    assert rotation[0].shape == (1, 20, 2)
    x = torch.randn(1, 6, 20, 8, generator=torch.Generator().manual_seed(0))
    rotated = apply_rope(x, rotation)
    assert torch.equal(rotated[..., 4:], x[..., 4:])
    close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert config.from_dict(config.to_dict()) == config
    old = {"hidden_size": 64, "num_attention_heads": 4, "partial_rotary_factor": 0.25, "rope_theta": 500.0}
    assert LlamaConfig.from_dict(old).rope == {
        "partial_rotary_factor": 0.25,
        "rope_theta": 500.0,
        "rope_type": "default",
    }


def test_a_rotation_wider_than_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="has 8 features, but heads have 6"):
        apply_rope(torch.zeros(1, 1, 1, 6), (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_dynamic_scaling_of_a_row_follows_its_own_length(tiny_model: Make, kind: str) -> None:
    scaling: dict[str, Any] = {"rope_type": kind, "factor": 4.0}
    if kind == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 10}
    rope = RotaryEmbedding(tiny_model(rope_scaling=scaling, max_position_embeddings=10).config)
    positions = torch.stack([torch.arange(20), torch.arange(20).clamp(max=5)])
    together = rope(positions)
    for row in range(2):
        close(together[0][row : row + 1], rope(positions[row : row + 1])[0])
    plain = RotaryEmbedding(tiny_model().config)(positions)[0] * rope.scale
    close(together[0][1], plain[1])
    assert not torch.allclose(together[0][0], plain[0])


@pytest.mark.parametrize("kind", ["sinusoidal", "none"])
def test_other_position_encodings(tiny_model: Make, ids: Tensor, kind: str, tmp_path: Path) -> None:
    model = tiny_model(position_encoding=kind)
    logits = model(ids).logits
    cache = KVCache(model.config, 3)
    parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in [(0, 9), (9, 19), (19, 20)]]
    close(torch.cat(parts, 1), logits)
    swapped = ids.clone()
    swapped[:, [3, 8]] = ids[:, [8, 3]]  # without positions one layer's last token is invariant to order
    single = tiny_model(position_encoding=kind, num_hidden_layers=1)
    assert torch.allclose(single(swapped).logits[:, -1], single(ids).logits[:, -1], atol=2e-5) == (kind == "none")
    with pytest.raises(ValueError, match=f"position_encoding is '{kind}', which transformers' llama does not compute"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, portable=False)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)


# ---- experts


def test_the_mixture_is_a_weighted_sum_of_experts(tiny_model: Make) -> None:
    mixture = tiny_model(num_local_experts=5, num_experts_per_tok=3).model.layers[0].block_sparse_moe
    x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(x)
    for row in range(2):
        for token in range(7):
            share, chosen = mixture.gate(x[row, token]).softmax(-1).topk(3)
            for weight, expert in zip(share / share.sum(), chosen, strict=True):
                expected[row, token] += weight * mixture.experts[expert](x[row, token])
    close(mixture(x), expected)


def test_equal_loads_minimize_the_load_balancing_loss() -> None:
    even = torch.eye(4).repeat(5, 1) * 50
    assert load_balancing_loss([even], 1).item() == pytest.approx(1.0)
    assert load_balancing_loss([torch.eye(4)[:1].repeat(20, 1) * 50], 1).item() == pytest.approx(4.0)
    half = torch.cat([even[:8], torch.eye(4)[:1].repeat(8, 1) * 50])
    mask = torch.tensor([[1] * 8 + [0] * 8])
    assert load_balancing_loss([half], 1, mask).item() == pytest.approx(1.0)
    assert router_z_loss([torch.zeros(3, 4)]).item() == pytest.approx(math.log(4) ** 2)


@torch.enable_grad()
def test_the_load_balancing_loss_equalizes_loads() -> None:
    def busiest_share(coefficient: float) -> float:
        shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "initializer_range": 0.1}
        losses = {"router_aux_loss_coef": coefficient, "router_z_loss_coef": 1e-3}
        model = small.tiny_model(**shape, **experts, **losses).train()
        mixture = model.model.layers[0].block_sparse_moe
        assert isinstance(mixture, MixtureOfExperts)
        with torch.no_grad():
            mixture.gate.weight[0] += 0.5 * model.model.embed_tokens.weight.mean(0).sign()  # unequal loads at the start
            model.model.embed_tokens.weight += 0.3 * mixture.gate.weight[0]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.randint(0, 32, (8, 16), generator=torch.Generator().manual_seed(0))
        for _ in range(60):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        assert mixture.router_logits is not None
        counts = mixture.router_logits.argmax(-1).bincount(minlength=4)
        return float(counts.max() / counts.sum())

    assert busiest_share(0.0) > 0.6
    assert busiest_share(1.0) < 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": 1}, r"num_experts_per_tok \(2\) exceeds num_local_experts \(1\)"),
        ({"model_type": "mixtral"}, "num_local_experts is not given"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"position_encoding": "alibi"}, "position_encoding is 'alibi'"),
        ({"problem_type": "poll"}, "problem_type is 'poll'"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor has 1 v",
        ),
    ],
)
def test_contradictory_configs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**changes)


# ---- classification


def test_classifier_refusals() -> None:
    config = small.tiny_config(vocab_size=32)
    model = LlamaForSequenceClassification(config)
    ids = torch.tensor([[5, 6], [7, 8]])
    with pytest.raises(ValueError, match="need an attention_mask or a pad_token_id"):
        model(ids)
    with pytest.raises(ValueError, match=r"rows \[1\] are all padding"):
        model(ids, torch.tensor([[1, 1], [0, 0]]))
    whole = torch.ones(2, 2)
    with pytest.raises(ValueError, match="label 2 is not among the 2 labels"):
        model(ids, whole, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"'single_label_classification' have shape \(3,\); expected \(2,\)"):
        model(ids, whole, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"'multi_label_classification' have shape \(2,\); expected \(2, 2\)"):
        model(ids, whole, torch.zeros(2))
    single = LlamaForSequenceClassification(config.replace(problem_type="single_label_classification"))
    with pytest.raises(TypeError, match=r"dtype torch\.float32; expected int64"):
        single(ids, whole, torch.zeros(2))
    regression = LlamaForSequenceClassification(config.replace(num_labels=1))
    with pytest.raises(ValueError, match=r"'regression' have shape \(3,\); expected \(2, 1\) or \(2,\)"):
        regression(ids, whole, torch.zeros(3))


# ---- compilation


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.slow
@torch.enable_grad()
@pytest.mark.parametrize(
    ("changes", "adapted", "half"),
    [
        ({}, (), False),
        ({"num_local_experts": 4}, (), False),
        ({"num_local_experts": 4}, (), True),
        ({"num_local_experts": 4}, ("w1", "w2"), False),
    ],
    ids=["dense", "experts", "experts in bfloat16", "adapted experts"],
)
def test_forward_and_training_step_compile_without_a_graph_break(
    tiny_model: Make,
    ids: Tensor,
    changes: dict[str, Any],
    adapted: tuple[str, ...],
    half: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Neither is compiled; their rounding could choose another expert.
    monkeypatch.setattr(attention_backends, "SHORT", 0)
    monkeypatch.setattr(products, "bfloat16_is_slower", lambda: False)
    model = tiny_model(num_hidden_layers=1 if changes else 3, **changes).train()
    if adapted:
        lora.add(model, rank=2, target_modules=adapted)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with autocast:
        expected = model(ids, labels=ids)
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with autocast:
        out = compiled(ids, labels=ids)
    out.loss.backward()
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if half else {"atol": 2e-5, "rtol": 1e-4}
    assert_close(out.logits, expected.logits, **tolerance)
    for name, gradient in gradients.items():
        assert_close(model.get_parameter(name).grad, gradient, **tolerance)


@pytest.mark.parametrize("padded", [False, True])
@torch.enable_grad()
def test_short_attention_in_bfloat16_is_that_of_float32_but_rounding(padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 40, 16, generator=generator) for heads in (6, 2, 2))
    visible = Visible(causal=True)
    if padded:
        real = torch.arange(40) >= torch.tensor([[0], [7], [30]])
        visible = Visible(mask=(visible.as_mask(40, 40, query.device) & real[:, None, None]) | torch.eye(40).bool())
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [part.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for part in (query, key, value)]
        leaves = [part.detach().requires_grad_() for part in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = sdpa(*leaves, visible)
        out.backward(torch.ones_like(out))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert "Scaled" not in out.grad_fn.name()
    for exact, rounded in zip(*results, strict=True):
        assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
    with torch.no_grad():
        same = torch.nn.functional.scaled_dot_product_attention(
            *inputs,
            visible.mask,
            is_causal=visible.causal,
            enable_gqa=True,
        )
        assert torch.equal(sdpa(*inputs, visible), same)


def test_autocast_with_gradients_reads_a_float32_cache(tiny_model: Make, ids: Tensor) -> None:
    model, logits = tiny_model(), []
    for gradients in (False, True):
        cache = KVCache(model.config, 3, dtype=torch.float32)
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            logits.append([model(ids[:, a:b], past_key_values=cache).logits for a, b in [(0, 9), (9, 19), (19, 20)]])
    for without, with_gradients in zip(*logits, strict=True):
        assert torch.equal(without, with_gradients)


@pytest.mark.parametrize("model_type", ["mixtral", "llama4_text"])
@torch.enable_grad()
def test_a_model_with_experts_is_copied_after_a_pass_with_gradients(model_type: str) -> None:
    """Before, the router's logits of the pass made `copy.deepcopy` raise."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    values = {"model_type": model_type, "num_local_experts": 2, "num_experts_per_tok": 1, **sizes, **ends}
    model, ids = LlamaForCausalLM(LlamaConfig.from_dict(values)), torch.tensor([[5, 6, 7]])
    logits = model(ids).logits
    close(copy.deepcopy(model)(ids).logits, logits)
