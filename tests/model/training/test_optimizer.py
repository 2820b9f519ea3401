"""AdamW, also over bfloat16 weights; the learning-rate schedule; initial weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from bpe_llama.model import LlamaForCausalLM, training
from bpe_llama.model.training.optimizers.adamw import StochasticAdamW, round_stochastically
from bpe_llama.model.training.optimizers.state import load_optimizer_tensors, optimizer_for, optimizer_tensors
from tests.model.training.helpers import CONFIG, SETTINGS, fresh, losses


def test_adamw_matches_the_paper_and_decays_matrices_only() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = optimizer_for(layer, training.TrainConfig(learning_rate=0.1, weight_decay=0.5))
    layer(torch.zeros(1, 3)).sum().backward()  # no gradient on the weight, 1 on the bias
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 3), 1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), torch.full((2,), 1 - 0.1))  # the first step's size is the rate
    layer.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        optimizer_for(layer, training.TrainConfig(learning_rate=0.1))


def test_optimizer_state_of_another_model_is_refused() -> None:
    model, optimizer = nn.Linear(3, 2), None
    optimizer = optimizer_for(model, training.TrainConfig(learning_rate=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    assert sorted(state) == sorted(
        f"{p}.{key}" for p in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    )
    other = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"does not fit the model: .*weight\.exp_avg"):
        load_optimizer_tensors(other, optimizer_for(other, training.TrainConfig(learning_rate=0.1)), state)
    del state["bias.step"]
    with pytest.raises(ValueError, match=r"bias\.step \(absent\)"):
        load_optimizer_tensors(model, optimizer, state)


def test_stochastic_adamw_is_adamw_except_for_the_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    start = torch.randn(50, 40, generator=random).bfloat16()
    exact, ours = nn.Parameter(start.float()), nn.Parameter(start.clone())
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    theirs, rounded = torch.optim.AdamW([exact], **options), StochasticAdamW([ours], **options)
    for _ in range(20):
        exact.grad = torch.randn(50, 40, generator=random).bfloat16().float()
        ours.grad = exact.grad.bfloat16()
        theirs.step()
        rounded.step()
    moved = (exact - start).detach()
    # A weight near 1 is a multiple of 1/256, so each differs; none is drawn to either side.
    assert ((ours - exact).detach()).square().mean().sqrt() < 0.25 * moved.square().mean().sqrt()
    assert (ours - exact).detach().mean().abs() < 1e-3


def test_steps_below_the_precision_of_bfloat16_add_up() -> None:
    """A hundred steps of 1e-4 on weights of 1, between whose neighbours there are 4e-3 or 8e-3."""
    weight = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    nearest = torch.ones(4000, dtype=torch.bfloat16)
    optimizer = StochasticAdamW([weight], lr=1e-4)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        nearest = (nearest.float() - 1e-4).bfloat16()
    assert (nearest == 1).all()
    assert weight.float().mean().item() == pytest.approx(0.99, abs=1e-3)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_stochastic_rounding_takes_one_of_the_two_neighbours(values: list[float], seed: int) -> None:
    exact = torch.tensor(values, dtype=torch.float32)
    got = round_stochastically(exact, torch.Generator().manual_seed(seed))
    bits = exact.view(torch.int32) & -(1 << 16)
    for value, low, ours in zip(values, bits.tolist(), got.float().tolist(), strict=True):
        if not np.isfinite(value):
            assert ours == value
            continue
        neighbours = (
            torch.tensor([low, low + (1 << 16)], dtype=torch.int64).to(torch.int32).view(torch.float32).tolist()
        )
        assert ours in neighbours and (ours == value or value not in neighbours)


def test_bfloat16_weights_reach_the_loss_of_float32_ones(token_file: Path, tmp_path: Path) -> None:
    curves = {}
    for kind in ("float32", "bfloat16"):
        model = fresh()
        config = training.TrainConfig(max_steps=60, dtype="bfloat16", weights_dtype=kind, **SETTINGS)
        result = training.train(model, token_file, config, tmp_path / kind, progress=False)
        assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{kind}"}
        stored = load_file(result.checkpoint / "model.safetensors") | load_file(
            result.checkpoint / "optimizer.safetensors"
        )
        assert {str(t.dtype) for key, t in stored.items() if not key.endswith(".step")} == {f"torch.{kind}"}
        curves[kind] = result.eval_loss
    assert curves["bfloat16"] == pytest.approx(curves["float32"], abs=0.1)
    with pytest.raises(ValueError, match="weights_dtype was 'bfloat16' and is 'float32'"):
        training.train(fresh(), token_file, training.TrainConfig(**SETTINGS), tmp_path / "bfloat16", resume=True)
    with pytest.raises(ValueError, match="dtype is 'float32' and weights_dtype 'bfloat16'"):
        training.TrainConfig(dtype="float32", weights_dtype="bfloat16")


def test_bfloat16_weights_resume_exactly(token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = training.TrainConfig(max_steps=6, weights_dtype="bfloat16", **SETTINGS)
    whole, parts = fresh(), fresh()
    training.train(whole, token_file, config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(training.loop.Trainer, "unfinished", lambda self: self.step < 2)
        training.train(fresh(), token_file, config, tmp_path / "parts", progress=False)
    training.train(parts, token_file, config, tmp_path / "parts", resume=True, progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(map(torch.equal, parts.parameters(), whole.parameters()))


def test_bfloat16_autocast_keeps_float32_weights(token_file: Path, tmp_path: Path) -> None:
    model = fresh().to(torch.bfloat16)
    config = training.TrainConfig(max_steps=3, dtype="bfloat16", **SETTINGS)
    result = training.train(model, token_file, config, tmp_path / "run")
    assert np.isfinite(result.loss)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("experts", [None, 2])
def test_layers_initialized_as_the_identity_pass_the_embedding_through_and_are_trained(experts: int | None) -> None:
    model = training.start_as_identity(LlamaForCausalLM(CONFIG.replace(num_local_experts=experts), seed=0))
    ids = torch.arange(16)[None]
    out = model(ids, labels=ids)
    torch.testing.assert_close(out.logits, model.lm_head(model.model.norm(model.model.embed_tokens(ids))))
    out.loss.backward()
    layer = model.model.layers[0]
    down = layer.block_sparse_moe.experts[0].w2 if experts else layer.mlp.down_proj
    assert layer.self_attn.o_proj.weight.grad.abs().sum() > 0 and down.weight.grad.abs().sum() > 0


def test_the_learning_rate_rises_then_falls_to_its_final_value() -> None:
    config = training.TrainConfig(max_steps=200, warmup_steps=20, learning_rate=2.0, min_learning_rate_ratio=0.25)
    rates = [training.learning_rate_at(config, step) for step in range(201)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[19] == rates[20] == 2.0
    assert all(a >= b for a, b in pairwise(rates[20:]))
    assert rates[110] == pytest.approx((2.0 + 0.5) / 2) and rates[200] == pytest.approx(0.5)
    timed = training.TrainConfig(max_steps=200, warmup_steps=20, learning_rate=2.0, max_seconds=10.0)
    assert training.learning_rate_at(timed, 20, elapsed=10.0) == pytest.approx(0.2)
