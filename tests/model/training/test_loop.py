"""Training runs: what is learned, the loss of a step, steps that are skipped, interruptions, refused input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from bpe_llama.model import LlamaForCausalLM, training
from bpe_llama.model.layers.loss import linear_cross_entropy
from bpe_llama.model.training.checkpoints.checkpoint import find_checkpoint
from bpe_llama.model.training.config import learning_rate_at
from bpe_llama.model.training.data.examples import ExampleBatches
from bpe_llama.model.training.optimizers.state import optimizer_for
from bpe_llama.model.training.step import TensorBatch, batch_loss
from tests.model.training.helpers import CONFIG, SETTINGS, fresh, load_checkpoint, losses


def test_a_run_learns_and_writes_metrics_plot_and_checkpoint(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=60, eval_every=20, **SETTINGS)
    result = training.train(fresh(), token_file, config, tmp_path / "run")
    assert (result.step, result.tokens, result.interrupted) == (60, 60 * 64, False)
    lines = training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(evaluated) == 3 and evaluated[-1] == result.eval_loss
    assert losses(tmp_path / "run")[1] == pytest.approx(np.log(64), abs=0.4)
    assert result.eval_loss is not None and result.eval_loss < 2.0  # chance is 4.16, the best possible 1.10
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path / "run")) == ["loss.png", "metrics.jsonl", "step-00000060"]
    loaded = LlamaForCausalLM.from_pretrained(result.checkpoint, device="cpu")
    tokens = training.open_tokens(token_file)[-400:]
    assert training.evaluate(loaded, tokens, window=16) < 2.0


def test_accumulated_gradients_equal_those_of_a_larger_batch(token_file: Path, tmp_path: Path) -> None:
    options = {**SETTINGS, "batch_size": 8}
    large, small = fresh(), fresh()
    training.train(large, token_file, training.TrainConfig(max_steps=5, **options), tmp_path / "large")
    options |= {"batch_size": 2, "gradient_accumulation": 4}
    training.train(small, token_file, training.TrainConfig(max_steps=5, **options), tmp_path / "small")
    assert list(losses(tmp_path / "small").values()) == pytest.approx(
        list(losses(tmp_path / "large").values()), rel=1e-4
    )


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("rows", ["packed", "padded"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"num_local_experts": 4, "router_aux_loss_coef": 0.0}, {"rope_scaling": LONGROPE}],
    ids=["dense", "experts", "longrope"],
)
def test_a_step_is_the_mean_over_its_tokens_whatever_the_micro_batches(
    rows: str, shape: dict[str, Any], uneven: list[training.Example], token_file: Path, tmp_path: Path
) -> None:
    def run(batch_size: int, accumulation: int) -> tuple[LlamaForCausalLM, training.TrainResult, dict[float, float]]:
        model = LlamaForCausalLM(CONFIG.replace(**shape), seed=0)
        split = {"batch_size": batch_size, "gradient_accumulation": accumulation, "gradient_clip": 0.5}
        config = training.TrainConfig(**(SETTINGS | split), max_steps=2, eval_fraction=0.0)
        out = tmp_path / f"{batch_size}x{accumulation}"
        if rows == "padded":
            return model, training.train_on_examples(model, uneven, config, out, progress=False), losses(out)
        return model, training.train(model, token_file, config, out, progress=False), losses(out)

    whole, result, curve = run(4, 1)
    if rows == "padded":  # by the definition, one text at a time
        batches = ExampleBatches(uneven, batch_size=4)
        total, count = 0.0, 0
        batch = batches.batch(0)
        for ids, labels in zip(batch.ids, batch.labels, strict=True):
            logits = LlamaForCausalLM(CONFIG.replace(**shape), seed=0)(torch.from_numpy(ids)[None]).logits[0]
            for place in np.flatnonzero(labels[1:] >= 0):
                total -= logits[place].log_softmax(-1)[labels[place + 1]].item()
                count += 1
        assert curve[1] == pytest.approx(total / count, rel=1e-6)
    for split in ((2, 2), (1, 4)):
        parts, same, again = run(*split)
        assert again == pytest.approx(curve, rel=1e-6)
        assert (same.loss, same.grad_norm) == pytest.approx((result.loss, result.grad_norm), rel=1e-5)
        for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0.0)  # the learning rate is 1e-2


def test_routers_ignore_padding(uneven: list[training.Example]) -> None:
    batches = ExampleBatches(uneven, batch_size=3)
    batch = batches.batch(1)
    ids, labels, mask = batch.ids, batch.labels, batch.attention_mask
    assert mask is not None
    assert mask.shape == ids.shape and (labels[mask == 0] == -100).all()
    assert sorted(mask.sum(1)) == sorted((np.trim_zeros(row, "b") != -1).sum() for row in ids)
    model = LlamaForCausalLM(CONFIG.replace(num_local_experts=4, router_aux_loss_coef=1.0), seed=0).train()
    tensors = [torch.from_numpy(array) for array in (ids, labels, mask)]
    wider = [functional.pad(array, (0, 9), value=fill) for array, fill in zip(tensors, (0, -100, 0), strict=True)]

    def loss(tensors: list[torch.Tensor]) -> float:
        return batch_loss(model, training.TensorBatch(*tensors), batch.learned).item()

    assert loss(wider) == pytest.approx(loss(tensors), rel=1e-6)
    assert loss(wider[:2]) != pytest.approx(loss(tensors[:2]), rel=1e-5)


def test_the_loss_of_a_large_vocabulary_is_computed_in_chunks(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training.TrainConfig(max_steps=4, gradient_accumulation=2, **SETTINGS)

    def run(name: str) -> dict[float, float]:
        training.train(fresh(), token_file, config, tmp_path / name, progress=False)
        return losses(tmp_path / name)

    whole = run("whole")
    monkeypatch.setattr(linear_cross_entropy, "FEWEST_POSITIONS", 10)
    monkeypatch.setattr(linear_cross_entropy, "CHUNK_LOGITS", 10 * CONFIG.vocab_size)
    assert run("chunks") == pytest.approx(whole, rel=1e-5)


def spoil(model: LlamaForCausalLM, passes: Callable[[int], bool], how: str = "loss") -> None:
    """Make the loss, or only the gradient, not a number in these forward passes of training."""
    count = itertools.count(1)

    def hook(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor | None:
        if not module.training or not passes(next(count)):
            return None
        if how == "loss":
            return out * float("inf")
        out.register_hook(lambda gradient: gradient * float("nan"))
        return out

    model.model.norm.register_forward_hook(hook)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(token_file: Path, tmp_path: Path, how: str) -> None:
    model = fresh()
    spoil(model, {5, 6, 13}.__contains__, how)
    config = training.TrainConfig(max_steps=16, save_every=5, max_skipped_steps=2, **SETTINGS)
    result = training.train(model, token_file, config, tmp_path / "run", progress=False)
    assert (result.step, result.skipped) == (16, 3) and np.isfinite([result.loss, result.grad_norm]).all()
    assert sorted(set(range(1, 17)) - losses(tmp_path / "run").keys()) == [5, 6, 13]
    lines = training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped") for line in lines if line["step"] in (4, 5, 6, 12, 13)] == [None, 1, 2, 2, 3]
    for name in ("model", "optimizer"):
        stored = load_file(result.checkpoint / f"{name}.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in stored.values())
    assert {float(tensor) for key, tensor in stored.items() if key.endswith(".step")} == {13.0}


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_too_many_skipped_steps_in_a_row_end_the_run(token_file: Path, tmp_path: Path, how: str) -> None:
    model = fresh()
    spoil(model, lambda number: number > 7, how)
    config = training.TrainConfig(max_steps=40, save_every=5, max_skipped_steps=3, **SETTINGS)
    with pytest.raises(
        ValueError,
        match=r"(loss is nan|gradient norm nan) .*at step 11, .* as at the 3 steps before: all of them were skipped",
    ):
        training.train(model, token_file, config, tmp_path / "run", progress=False)
    assert [folder.name for folder in (tmp_path / "run").glob("step-*")] == ["step-00000005"]
    result = training.train(fresh(), token_file, config, tmp_path / "run", resume=True, progress=False)
    assert (result.step, result.skipped) == (40, 0)
    model = fresh()
    spoil(model, lambda number: True, how)
    with pytest.raises(ValueError, match=r"at step 2, .* all of them were skipped; try a lower learning rate"):
        training.train(model, token_file, training.TrainConfig(max_steps=2, **SETTINGS), tmp_path / "none")
    assert not list((tmp_path / "none").glob("step-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_a_checkpoint_that_resumes(token_file: Path, tmp_path: Path, number: int) -> None:
    config = training.TrainConfig(max_steps=1_000_000, **SETTINGS)
    out = tmp_path / "run"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while len(training.read_metrics(out / "metrics.jsonl")) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    usual = signal.getsignal(number)
    helper = threading.Thread(target=interrupt, daemon=True)
    helper.start()
    result = training.train(fresh(), token_file, config, out)
    helper.join()
    assert result.interrupted and result.step >= 3 and result.eval_loss is None
    assert result.checkpoint == find_checkpoint(out)
    assert signal.getsignal(number) is usual
    model = fresh()
    optimizer = optimizer_for(model, training.TrainConfig())
    assert load_checkpoint(result.checkpoint, model, optimizer).step == result.step


class Interrupted(training.Callback):
    """Interrupts a run before its first step, or after step `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_start(self, run: training.Run) -> None:
        if run.step == self.at == 0:
            signal.raise_signal(signal.SIGTERM)

    def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
        if run.step == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "master"])
def test_a_checkpoint_of_weights_that_no_step_updated_resumes(token_file: Path, tmp_path: Path, optimizer: str) -> None:
    in_bfloat16 = {"weights_dtype": "bfloat16", "master_weights": True}
    options = in_bfloat16 if optimizer == "master" else {"optimizer": optimizer}
    config = training.TrainConfig(max_steps=6, ema_decay=0.9, **SETTINGS, **options)
    calls = 0

    def loss_fn(model: LlamaForCausalLM, batch: TensorBatch, learned: int) -> torch.Tensor:
        """Skip the first two steps, and learn the embedding alone up to step 4."""
        nonlocal calls
        calls += 1
        if calls <= 4:
            return model.model.embed_tokens(batch.ids).square().sum() * (math.nan if calls <= 2 else 1 / learned)
        return training.batch_loss(model, batch, learned)

    def run(out: Path, *callbacks: training.Callback) -> dict[str, torch.Tensor]:
        model = fresh()
        training.train(
            model, token_file, config, out, loss_fn=loss_fn, callbacks=callbacks, resume=True, progress=False
        )
        return model.state_dict()

    for at in (0, 2, 4):
        run(tmp_path / "parts", Interrupted(at))
    parts, calls = run(tmp_path / "parts"), 0
    whole = run(tmp_path / "whole")
    assert all(torch.equal(whole[name], weight) for name, weight in parts.items())


def test_a_run_limited_by_time_ends_on_time_at_the_lowest_learning_rate(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=10**9, max_seconds=2.0, min_learning_rate_ratio=0.0, **SETTINGS)
    began = time.perf_counter()
    training.train(fresh(), token_file, config, tmp_path / "run")
    assert time.perf_counter() - began < 120  # the curve and the checkpoint come on top
    lines = [line for line in training.read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert lines[-2]["seconds"] <= 2.0 <= lines[-1]["seconds"] + 0.5
    # That of the last step follows the time at which it began: after the line before it, before its own.
    begun, ended = lines[-2]["seconds"] - 5e-4, lines[-1]["seconds"] + 5e-4  # they are rounded
    earliest, latest = (learning_rate_at(config, int(lines[-1]["step"]) - 1, seconds) for seconds in (begun, ended))
    assert latest <= lines[-1]["learning_rate"] <= earliest and latest < 0.01 * config.learning_rate


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(token_file: Path, tmp_path: Path) -> None:
    plain = training.TrainConfig(max_steps=3, **SETTINGS)
    for name, config in (("plain", plain), ("compiled", dataclasses.replace(plain, compile=True))):
        training.train(fresh(), token_file, config, tmp_path / name, progress=False)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_evaluation_is_the_mean_over_windows() -> None:
    model = fresh().eval()
    tokens = np.random.default_rng(0).integers(0, 64, 100).astype(np.uint16)
    rows = torch.from_numpy(tokens[:96].astype(np.int64)).view(6, 16)
    expected = model(rows, labels=rows).loss.item()
    assert training.evaluate(model, tokens, window=16, batch_size=4) == pytest.approx(expected, rel=1e-5)
    assert training.evaluate(model, tokens, window=16, batch_size=4, max_windows=1) == pytest.approx(
        model(rows[:1], labels=rows[:1]).loss.item(), rel=1e-5
    )
    assert not model.training
    with pytest.raises(ValueError, match="max_windows is 0; expected at least 1"):
        training.evaluate(model, tokens, window=16, max_windows=0)
    nothing = training.Example(np.array([5, 6]), np.array([5, -100]))
    with pytest.raises(ValueError, match="no token of the held-out data is learned"):
        training.evaluate_examples(model, [nothing])


@pytest.mark.parametrize(("accumulation", "which"), [(1, "batch 3"), (2, "batch 6 to 7")])
def test_a_step_without_a_learned_token_ends_the_run(tmp_path: Path, accumulation: int, which: str) -> None:
    ids = np.arange(2, 18).reshape(2, 8)
    prompt = np.where(np.arange(8) == 0, ids, -100)  # the first token of a row has no prediction
    learned = 2 * accumulation + 1  # of two micro-batches of step 3, one is learned
    data = [(ids, ids)] * learned + [(ids, prompt)] * (4 * accumulation - learned)
    config = training.TrainConfig(max_steps=5, save_every=1, gradient_accumulation=accumulation, **SETTINGS)
    with pytest.raises(ValueError, match=f"{which}, all of step 4, has no token to learn"):
        training.train(fresh(), data, config, tmp_path, progress=False)
    kept = find_checkpoint(tmp_path)
    assert kept is not None and kept.name == "step-00000003"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 0),
        ("sequence_length", 1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("max_seconds", -1.0),
        ("eval_fraction", 1.5),
        ("betas", (0.9, 1.0)),
        ("dtype", "float16"),
        ("gradient_clip", -1.0),
        ("max_skipped_steps", -1),
        ("weights_dtype", "float16"),
    ],
)
def test_options_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} (is|are) .*{re.escape(str(value)[:3])}"):
        training.TrainConfig(**{field: value})


def test_a_config_survives_json() -> None:
    config = training.TrainConfig(max_steps=7, betas=(0.8, 0.9), max_seconds=1.5)
    assert training.TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_tokens_outside_the_vocabulary_are_found(tmp_path: Path) -> None:
    tokens = np.zeros(500, np.uint16)
    tokens[321] = 64
    np.save(tmp_path / "tokens.npy", tokens)
    with pytest.raises(ValueError, match="token 64 at position 321 is outside the model's vocabulary of 64"):
        training.train(
            fresh(), tmp_path / "tokens.npy", training.TrainConfig(max_steps=50, **SETTINGS), tmp_path / "run"
        )


def test_too_few_tokens_and_too_long_sequences_are_refused(token_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(20, np.uint16))
    with pytest.raises(ValueError, match="20 tokens are too few"):
        training.train(fresh(), tmp_path / "few.npy", training.TrainConfig(**SETTINGS), tmp_path / "run")
    with pytest.raises(ValueError, match="sequence_length is 65, the model's context is 64"):
        config = training.TrainConfig(**{**SETTINGS, "sequence_length": 65})
        training.train(fresh(), token_file, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rope_scaling_extends_the_context_of_training(token_file: Path, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    shape = CONFIG.replace(max_position_embeddings=32, rope_scaling=yarn)
    assert shape.context_length == 128
    row = np.arange(128)[None] % 64
    config = training.TrainConfig(max_steps=1, **SETTINGS | {"sequence_length": 128})
    for place, data in enumerate((token_file, [(row, row)])):
        training.train(LlamaForCausalLM(shape), data, config, tmp_path / str(place), progress=False)
    examples = [training.Example(row[0], row[0])]
    training.train_on_examples(LlamaForCausalLM(shape), examples, config, tmp_path / "examples", progress=False)


def test_an_incomplete_last_line_of_metrics_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert training.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
