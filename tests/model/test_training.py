"""Training: batches, schedule, optimizer, checkpoints, and a run that resumes as if never stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, lora, training
from bpe_llama.model.training.checkpoint import TrainState, find_checkpoint, load_checkpoint, save_checkpoint
from bpe_llama.model.training.data.batches import split_held_out
from bpe_llama.model.training.data.examples import ExampleBatches
from bpe_llama.model.training.optimizer import (
    StochasticAdamW,
    adamw,
    load_optimizer_tensors,
    optimizer_tensors,
    round_stochastically,
)
from bpe_llama.model.training.step import batch_loss

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
SETTINGS: dict[str, Any] = {
    "sequence_length": 16,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 5,
    "log_every": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


def fresh() -> LlamaForCausalLM:
    return LlamaForCausalLM(CONFIG, seed=0)


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums of small steps: easy to learn."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, (np.cumsum(np.random.default_rng(0).integers(0, 3, 4000)) % 64).astype(np.uint16))
    return path


def losses(out: Path) -> dict[float, float]:
    return {line["step"]: line["loss"] for line in training.read_metrics(out / "metrics.jsonl") if "loss" in line}


# ---- the whole run ----


def test_a_run_learns_and_leaves_metrics_curve_and_checkpoint(token_file: Path, tmp_path: Path) -> None:
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


def test_a_resumed_run_has_the_losses_and_weights_of_one_never_stopped(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=14, save_every=5, gradient_accumulation=2, **SETTINGS)
    whole = fresh()
    training.train(whole, token_file, config, tmp_path / "whole")

    # The first part ends as a killed process does: the last checkpoint is of step 5, metrics go on to step 8.
    first = fresh()
    stopping = _StopAfter(first, forward_passes=16)
    with pytest.raises(_Killed):
        training.train(stopping, token_file, config, tmp_path / "parts")  # type: ignore[arg-type]
    assert [folder.name for folder in (tmp_path / "parts").glob("step-*")] == ["step-00000005"]
    assert max(losses(tmp_path / "parts")) == 8

    second = LlamaForCausalLM(CONFIG, seed=99)  # its own weights must not matter
    result = training.train(second, token_file, config, tmp_path / "parts", resume=True)
    assert result.step == 14
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class _Killed(BaseException):
    pass


class _StopAfter(nn.Module):
    """A model that dies in a forward pass, as a process does that is killed."""

    def __init__(self, model: LlamaForCausalLM, forward_passes: int) -> None:
        super().__init__()
        self.model, self.config, self.left = model, model.config, forward_passes

    def forward(self, *arguments: Any, **options: Any) -> Any:
        if self.training:
            self.left -= 1
            if self.left < 0:
                raise _Killed
        return self.model(*arguments, **options)

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        return self.model.named_parameters(*arguments, **options)

    def save_pretrained(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def test_accumulated_gradients_equal_those_of_a_larger_batch(token_file: Path, tmp_path: Path) -> None:
    options = {**SETTINGS, "batch_size": 8}
    large, small = fresh(), fresh()
    training.train(large, token_file, training.TrainConfig(max_steps=5, **options), tmp_path / "large")
    options |= {"batch_size": 2, "gradient_accumulation": 4}
    training.train(small, token_file, training.TrainConfig(max_steps=5, **options), tmp_path / "small")
    assert list(losses(tmp_path / "small").values()) == pytest.approx(
        list(losses(tmp_path / "large").values()), rel=1e-4
    )


def learned_from(ids: Any, learned: int) -> training.Example:
    return training.Example(ids, np.where(np.arange(len(ids)) >= len(ids) - learned, ids, -100))


@pytest.fixture(scope="module")
def uneven() -> list[training.Example]:
    """Texts of different lengths, of which very different numbers of tokens are learned."""
    random = np.random.default_rng(0)
    sizes = ((40, 1), (12, 3), (60, 50), (33, 30), (5, 4), (40, 2), (21, 20), (60, 1))
    return [learned_from(random.integers(3, 60, length), learned) for length, learned in sizes]


@pytest.mark.parametrize("rows", ["packed", "padded"])
@pytest.mark.parametrize("shape", [{}, {"num_local_experts": 4, "router_aux_loss_coef": 0.0}], ids=["dense", "experts"])
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
        for ids, labels in zip(*batches.inputs_and_labels(0), strict=True):
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


def test_routers_count_no_padding(uneven: list[training.Example]) -> None:
    batches = ExampleBatches(uneven, batch_size=3)
    (ids, labels), mask = batches.inputs_and_labels(1), batches.attention_mask(1)
    assert mask.shape == ids.shape and (labels[mask == 0] == -100).all()
    assert sorted(mask.sum(1)) == sorted((np.trim_zeros(row, "b") != -1).sum() for row in ids)
    model = LlamaForCausalLM(CONFIG.replace(num_local_experts=4, router_aux_loss_coef=1.0), seed=0).train()
    tensors = [torch.from_numpy(array) for array in (ids, labels, mask)]
    wider = [functional.pad(array, (0, 9), value=fill) for array, fill in zip(tensors, (0, -100, 0), strict=True)]
    assert batch_loss(model, *wider).item() == pytest.approx(batch_loss(model, *tensors).item(), rel=1e-6)
    assert batch_loss(model, *wider[:2]).item() != pytest.approx(batch_loss(model, *tensors[:2]).item(), rel=1e-5)


def test_a_large_vocabulary_is_scored_in_chunks(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training.TrainConfig(max_steps=4, gradient_accumulation=2, **SETTINGS)
    rows: list[int] = []

    def run(name: str) -> dict[float, float]:
        model = fresh()
        model.lm_head.register_forward_hook(lambda module, args, out: rows.append(args[0][..., 0].numel()))
        training.train(model, token_file, config, tmp_path / name, progress=False)
        return losses(tmp_path / name)

    whole, at_once = run("whole"), max(rows)
    rows.clear()
    monkeypatch.setattr(training.step, "LARGEST_LOGITS", 10 * CONFIG.vocab_size)
    assert run("chunks") == pytest.approx(whole, rel=1e-5)
    assert at_once == 64 and max(rows) == 10
    rows.clear()
    monkeypatch.undo()
    large = LlamaForCausalLM(CONFIG.replace(vocab_size=128_256, hidden_size=8), seed=0)
    large.lm_head.register_forward_hook(lambda module, args, out: rows.append(args[0][..., 0].numel()))
    training.train(
        large, token_file, training.TrainConfig(max_steps=1, **(SETTINGS | {"batch_size": 40})), tmp_path / "l"
    )
    assert max(rows) == (1 << 25) // 128_256


# ---- steps that are not finite, and what is saved ----


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
        ValueError, match=r"(loss is nan|gradient norm nan) .*at step 11, .* as at the 3 steps before: all of them were skipped"
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


def test_what_is_not_finite_never_replaces_a_checkpoint(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    model = fresh()
    kept = training.train(model, token_file, config, tmp_path / "run", progress=False).checkpoint
    optimizer = adamw(model, learning_rate=1.0)
    load_checkpoint(kept, model, optimizer)
    for tensor, name in ((model.model.norm.weight.data, "model.norm.weight"), (None, "model.norm.weight.exp_avg_sq")):
        spoilt = optimizer.state[model.model.norm.weight]["exp_avg_sq"] if tensor is None else tensor
        before, spoilt[3] = spoilt[3].item(), float("inf")
        with pytest.raises(ValueError, match=rf"run: step 2 is not saved, as {name} is not finite; {kept.name} stays"):
            save_checkpoint(tmp_path / "run", model, optimizer, TrainState(2, 1.0, {}))
        spoilt[3] = before
        assert find_checkpoint(tmp_path / "run") == kept
    assert save_checkpoint(tmp_path / "run", model, optimizer, TrainState(2, 1.0, {})).name == "step-00000002"


def test_a_disk_that_takes_no_more_is_one_clear_line(token_file: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs a system that limits the size of files")
    out = tmp_path / "run"
    config = training.TrainConfig(max_steps=2, save_every=1, **SETTINGS)
    model = fresh()
    optimizer = adamw(model, learning_rate=1.0)
    kept = training.train(model, token_file, config, out, progress=False).checkpoint
    load_checkpoint(kept, model, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"run: the checkpoint of step 3 cannot be written: .*[Ff]ile too large.*; step-00000002 stays"
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=message):
            save_checkpoint(out, model, optimizer, TrainState(3, 1.0, {}))
        metrics = training.report.MetricsFile(out / "metrics.jsonl", 2)
        with contextlib.closing(metrics), pytest.raises(OSError, match=r"File too large: .*metrics\.jsonl"):
            for step in range(100):
                metrics.write(step=step, loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(out)) == ["loss.png", "metrics.jsonl", "step-00000002"]
    assert load_checkpoint(kept, model, optimizer).step == 2


def test_two_runs_in_one_folder_are_refused(token_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    hold = (
        f"import time; from pathlib import Path; from bpe_llama.model.training.lock import locked\n"
        f"with locked(Path({str(out)!r})): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(
                ValueError, match=rf"run: another run is going on in this folder \(process {holder.pid}\)"
            ):
                training.train(fresh(), token_file, config, out, progress=False)
            assert sorted(os.listdir(out)) == [".lock"]
        finally:
            holder.kill()
    training.train(fresh(), token_file, config, out, progress=False)  # the lock of a killed process blocks nobody
    assert sorted(os.listdir(out)) == ["loss.png", "metrics.jsonl", "step-00000001"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_run_killed_at_any_moment_resumes_with_the_same_numbers(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("killed_run.py")), "3"]
    told = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert re.search(r"^[3-5] kills, 0 runs with other numbers$", told.stdout, re.MULTILINE), told


# ---- signals ----


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
    assert load_checkpoint(result.checkpoint, model, adamw(model, learning_rate=1.0)).step == result.step


def test_a_run_limited_by_time_ends_on_time_at_the_lowest_rate(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=10**9, max_seconds=0.5, min_learning_rate_ratio=0.0, **SETTINGS)
    began = time.perf_counter()
    training.train(fresh(), token_file, config, tmp_path / "run")
    assert time.perf_counter() - began < 30  # the curve and the checkpoint come on top
    lines = [line for line in training.read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert lines[-2]["seconds"] <= 0.5 <= lines[-1]["seconds"] + 0.5
    assert lines[-1]["learning_rate"] < 0.1 * config.learning_rate


def test_a_finished_run_that_is_resumed_tells_what_it_told(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=7, **(SETTINGS | {"log_every": 5}))
    told = training.train(fresh(), token_file, config, tmp_path / "run", progress=False)
    again = training.train(fresh(), token_file, config, tmp_path / "run", resume=True, progress=False)
    assert dataclasses.replace(again, seconds=told.seconds) == told


def test_dropout_is_the_same_in_a_run_that_is_resumed(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training.TrainConfig(max_steps=6, **SETTINGS)

    def run(name: str, resume: bool = False) -> None:
        model = lora.add(fresh(), rank=2, dropout=0.5)
        training.train(model, token_file, config, tmp_path / name, resume=resume, progress=False)

    before = torch.get_rng_state()
    run("whole")
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's draws are disturbed
    torch.rand(3)
    with monkeypatch.context() as patch:
        patch.setattr(training.loop.Trainer, "unfinished", lambda self, step, elapsed: step < 2)
        run("parts")
    run("parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(token_file: Path, tmp_path: Path) -> None:
    plain = training.TrainConfig(max_steps=3, **SETTINGS)
    for name, config in (("plain", plain), ("compiled", dataclasses.replace(plain, compile=True))):
        training.train(fresh(), token_file, config, tmp_path / name, progress=False)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


# ---- number formats ----


def test_bfloat16_weights_stay_and_learn_as_float32_ones(token_file: Path, tmp_path: Path) -> None:
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
        patch.setattr(training.loop.Trainer, "unfinished", lambda self, step, elapsed: step < 2)
        training.train(fresh(), token_file, config, tmp_path / "parts", progress=False)
    training.train(parts, token_file, config, tmp_path / "parts", resume=True, progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert all(map(torch.equal, parts.parameters(), whole.parameters()))


def test_stochastic_adamw_is_adamw_but_for_the_rounding() -> None:
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


def test_bfloat16_autocast_keeps_float32_weights(token_file: Path, tmp_path: Path) -> None:
    model = fresh().to(torch.bfloat16)
    config = training.TrainConfig(max_steps=3, dtype="bfloat16", **SETTINGS)
    result = training.train(model, token_file, config, tmp_path / "run")
    assert np.isfinite(result.loss)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


# ---- bad input ----


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
        ("dtype", "float8"),
        ("gradient_clip", -1.0),
        ("max_skipped_steps", -1),
        ("weights_dtype", "float16"),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} (is|are) .*{re.escape(str(value)[:3])}"):
        training.TrainConfig(**{field: value})


def test_settings_survive_json() -> None:
    config = training.TrainConfig(max_steps=7, betas=(0.8, 0.9), max_seconds=1.5)
    assert training.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown training options: stpes"):
        training.TrainConfig.from_dict({"stpes": 3})


def test_a_model_for_study_is_saved_though_transformers_does_not_compute_it(token_file: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG.replace(position_encoding="sinusoidal"), seed=0)
    result = training.train(model, token_file, training.TrainConfig(max_steps=2, **SETTINGS), tmp_path / "run")
    loaded = LlamaForCausalLM.from_pretrained(result.checkpoint, device="cpu")
    assert loaded.config.position_encoding == "sinusoidal"
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_run_is_not_overwritten_nor_resumed_with_other_data(token_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    training.train(fresh(), token_file, training.TrainConfig(max_steps=2, **SETTINGS), out)
    with pytest.raises(ValueError, match="holds a run already"):
        training.train(fresh(), token_file, training.TrainConfig(max_steps=4, **SETTINGS), out)
    with pytest.raises(ValueError, match="batch_size was 4 and is 5"):
        other = training.TrainConfig(max_steps=4, **{**SETTINGS, "batch_size": 5})
        training.train(fresh(), token_file, other, out, resume=True)
    with pytest.raises(ValueError, match=r"of another model: .*embed_tokens"):
        model = LlamaForCausalLM(CONFIG.replace(vocab_size=80))
        training.train(model, token_file, training.TrainConfig(max_steps=4, **SETTINGS), out, resume=True)
    config = training.TrainConfig(max_steps=2, **SETTINGS)
    assert training.train(fresh(), token_file, config, out, resume=True).step == 2
    tokens = np.load(token_file)
    changed = tokens.copy()
    changed[7] ^= 1
    for other in (tokens[:-200], changed):
        np.save(tmp_path / "other.npy", other)
        expected = (
            r"the data was ([\d,]+ tokens) \(sha256 \w{16}\) and is ([\d,]+ tokens) \(sha256 \w{16}\); begin a new"
        )
        with pytest.raises(ValueError, match=expected):
            training.train(fresh(), tmp_path / "other.npy", config, out, resume=True)
    np.save(tmp_path / "moved.npy", tokens.astype(np.uint32))
    assert training.train(fresh(), tmp_path / "moved.npy", config, out, resume=True).step == 2
    path = find_checkpoint(out)
    assert path is not None
    state = json.loads((path / "training.json").read_text())
    del state["data"]  # as earlier versions wrote it
    (path / "training.json").write_text(json.dumps(state))
    assert training.train(fresh(), tmp_path / "other.npy", config, out, resume=True).step == 2


def test_data_is_told_apart_at_both_ends_and_between() -> None:
    tokens = np.random.default_rng(0).integers(0, 64, 3_000_000).astype(np.uint16)

    def identity(array: Any) -> str:
        return training.TokenBatches(array, window=16, batch_size=4, vocab_size=64).fingerprint

    first = identity(tokens)
    for place in (0, 1_000_000, 2_999_999):
        other = tokens.copy()
        other[place : place + 200_000] = 5
        assert identity(other) != first
    assert identity(tokens.copy()) == first
    assert identity(np.append(tokens, tokens[-1])) != first


@pytest.mark.parametrize("step", [1, 2], ids=["the same step again", "a later step"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "run")
    model = fresh()
    optimizer = adamw(model, learning_rate=1.0)
    load_checkpoint(tmp_path / "run" / "step-00000001", model, optimizer)
    state = TrainState(step, 7.0, config.to_dict())
    survivors = set()
    for moment in itertools.count():
        out = tmp_path / f"killed-{moment}"
        shutil.copytree(tmp_path / "run", out)
        with monkeypatch.context() as patched:
            killed = _kill_at(patched, moment)
            with contextlib.suppress(_Killed):
                save_checkpoint(out, model, optimizer, state)
            done = not killed()
        found = find_checkpoint(out)
        assert found is not None
        left = load_checkpoint(found, fresh(), adamw(fresh(), learning_rate=1.0))
        survivors.add(left.elapsed == 7.0)
        last = save_checkpoint(out, model, optimizer, TrainState(step, 9.0, config.to_dict()))
        assert [folder.name for folder in out.glob("*step*")] == [last.name] and not list(out.glob(".saving-*"))
        if done:
            break
    assert moment > 8 and survivors == {False, True}


def _kill_at(patched: pytest.MonkeyPatch, moment: int) -> Callable[[], bool]:
    """Let nothing be made, renamed or removed from the given call on, as if the process were no more."""
    calls = itertools.count()
    dead = []

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= moment:
                dead.append(True)
                raise _Killed
            return real(*arguments, **options)

        return change

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        patched.setattr(os, name, dying(getattr(os, name)))
    return lambda: bool(dead)


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_damaged_checkpoint_is_refused(token_file: Path, tmp_path: Path, damaged: str) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    file = training.train(fresh(), token_file, config, tmp_path / "run").checkpoint / damaged
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        training.train(fresh(), token_file, config, tmp_path / "run", resume=True)
    file.unlink()
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        training.train(fresh(), token_file, config, tmp_path / "run", resume=True)


def test_token_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npy: no such token file"):
        training.open_tokens(tmp_path / "absent.npy")
    for name, array in (
        ("float", np.zeros(4)),
        ("matrix", np.zeros((2, 2), np.uint16)),
        ("empty", np.zeros(0, np.uint16)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=r"expected one row of uint16 or uint32|holds no tokens|not a complete"):
            training.open_tokens(tmp_path / f"{name}.npy")
    np.save(tmp_path / "cut.npy", np.zeros(1000, np.uint16))
    whole = (tmp_path / "cut.npy").read_bytes()
    for length in (0, 5, 60, 200, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"not a (complete )?\.npy file"):
            training.open_tokens(tmp_path / "cut.npy")


def test_tokens_outside_the_vocabulary_are_found(tmp_path: Path) -> None:
    tokens = np.zeros(500, np.uint16)
    tokens[321] = 64
    np.save(tmp_path / "tokens.npy", tokens)
    with pytest.raises(ValueError, match="token 64 at position 321 is outside the model's vocabulary of 64"):
        training.train(
            fresh(), tmp_path / "tokens.npy", training.TrainConfig(max_steps=50, **SETTINGS), tmp_path / "run"
        )


def test_too_few_tokens_and_too_long_windows_are_refused(token_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(20, np.uint16))
    with pytest.raises(ValueError, match="20 tokens are too few"):
        training.train(fresh(), tmp_path / "few.npy", training.TrainConfig(**SETTINGS), tmp_path / "run")
    with pytest.raises(ValueError, match="sequence_length is 65, the model's context is 64"):
        config = training.TrainConfig(**{**SETTINGS, "sequence_length": 65})
        training.train(fresh(), token_file, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- batches ----


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_visits_each_window_once_and_stays_inside(count: int, window: int, seed: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    if count < window:
        with pytest.raises(ValueError, match="expected at least one window"):
            training.TokenBatches(tokens, window=window, batch_size=1, vocab_size=count, seed=seed)
        return
    batches = training.TokenBatches(tokens, window=window, batch_size=1, vocab_size=count, seed=seed)
    for epoch in (0, 1):
        first = epoch * batches.windows_per_epoch
        rows = [batches.batch(first + index)[0] for index in range(batches.windows_per_epoch)]
        assert all(np.array_equal(row, np.arange(row[0], row[0] + window)) for row in rows)
        begins = sorted(int(row[0]) for row in rows)
        assert all(later - earlier == window for earlier, later in pairwise(begins))


def test_a_batch_depends_on_seed_and_index_only() -> None:
    tokens = np.arange(1000, dtype=np.uint16)

    def batches(seed: int) -> training.TokenBatches:
        return training.TokenBatches(tokens, window=10, batch_size=7, vocab_size=1000, seed=seed)

    forward = [batches(3).batch(index) for index in range(40)]
    again = batches(3)
    for index in reversed(range(40)):
        assert np.array_equal(again.batch(index), forward[index])
    assert not np.array_equal(batches(4).batch(0), forward[0])
    assert not np.array_equal(forward[0], batches(3).batch(14))  # the next epoch has another order


def test_the_tail_is_kept_apart() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    train, held_out = split_held_out(tokens, 0.01, 16)
    assert (len(train), len(held_out), held_out[0]) == (84, 16, 84)
    assert [len(part) for part in split_held_out(tokens, 0.0, 16)] == [100, 0]


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


# ---- initial weights, schedule, optimizer ----


def test_layers_that_start_as_the_identity_pass_the_embedding_through_and_still_learn() -> None:
    model = training.start_as_identity(fresh())
    ids = torch.arange(16)[None]
    out = model(ids, labels=ids)
    torch.testing.assert_close(out.logits, model.lm_head(model.model.norm(model.model.embed_tokens(ids))))
    out.loss.backward()
    layer = model.model.layers[0]
    assert layer.self_attn.o_proj.weight.grad.abs().sum() > 0 and layer.mlp.down_proj.weight.grad.abs().sum() > 0


def test_the_learning_rate_rises_then_falls_to_its_floor() -> None:
    config = training.TrainConfig(max_steps=200, warmup_steps=20, learning_rate=2.0, min_learning_rate_ratio=0.25)
    rates = [training.learning_rate_at(config, step) for step in range(201)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[19] == rates[20] == 2.0
    assert all(a >= b for a, b in pairwise(rates[20:]))
    assert rates[110] == pytest.approx((2.0 + 0.5) / 2) and rates[200] == pytest.approx(0.5)
    timed = training.TrainConfig(max_steps=200, warmup_steps=20, learning_rate=2.0, max_seconds=10.0)
    assert training.learning_rate_at(timed, 20, elapsed=10.0) == pytest.approx(0.2)


def test_adamw_matches_the_paper_and_decays_matrices_only() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = adamw(layer, learning_rate=0.1, weight_decay=0.5)
    layer(torch.zeros(1, 3)).sum().backward()  # no gradient on the weight, 1 on the bias
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 3), 1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), torch.full((2,), 1 - 0.1))  # the first step's size is the rate
    layer.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        adamw(layer, learning_rate=0.1)


def test_optimizer_state_of_another_model_is_refused() -> None:
    model, optimizer = nn.Linear(3, 2), None
    optimizer = adamw(model, learning_rate=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    assert sorted(state) == sorted(
        f"{p}.{key}" for p in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    )
    other = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"does not fit the model: .*weight\.exp_avg"):
        load_optimizer_tensors(other, adamw(other, learning_rate=0.1), state)
    del state["bias.step"]
    with pytest.raises(ValueError, match=r"bias \(absent\)"):
        load_optimizer_tensors(model, optimizer, state)


def test_metrics_cut_by_a_kill_are_read_up_to_the_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert training.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
