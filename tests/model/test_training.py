"""Training: batches, schedule, optimizer, checkpoints, and a run that resumes as if never stopped."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
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
from torch import nn

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training
from bpe_llama.model.training.checkpoint import TrainState, find_checkpoint, load_checkpoint, save_checkpoint
from bpe_llama.model.training.data import split_tail
from bpe_llama.model.training.optimizer import adamw, load_optimizer_tensors, optimizer_tensors

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


def test_ctrl_c_saves_a_checkpoint_that_resumes(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=1_000_000, **SETTINGS)
    out = tmp_path / "run"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while len(training.read_metrics(out / "metrics.jsonl")) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    usual = signal.getsignal(signal.SIGINT)
    helper = threading.Thread(target=interrupt, daemon=True)
    helper.start()
    result = training.train(fresh(), token_file, config, out)
    helper.join()
    assert result.interrupted and result.step >= 3 and result.eval_loss is None
    assert result.checkpoint == find_checkpoint(out)
    assert signal.getsignal(signal.SIGINT) is usual
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
    ],
)
def test_settings_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} (is|are) .*{re.escape(str(value)[:3])}"):
        training.TrainConfig(**{field: value})


def test_settings_survive_json() -> None:
    config = training.TrainConfig(max_steps=7, betas=(0.8, 0.9), max_seconds=1.5)
    assert training.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown training settings: stpes"):
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
    finished = training.train(fresh(), token_file, training.TrainConfig(max_steps=2, **SETTINGS), out, resume=True)
    assert finished.step == 2


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
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        training.train(fresh(), token_file, config, tmp_path / "run", resume=True)
    file.unlink()
    with pytest.raises(ValueError, match="not a whole checkpoint"):
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
        with pytest.raises(ValueError, match=r"expected one row of uint16 or uint32|holds no tokens|not a whole"):
            training.open_tokens(tmp_path / f"{name}.npy")
    np.save(tmp_path / "cut.npy", np.zeros(1000, np.uint16))
    whole = (tmp_path / "cut.npy").read_bytes()
    for length in (0, 5, 60, 200, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"not a (whole )?\.npy file"):
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
    train, held_out = split_tail(tokens, 0.01, 16)
    assert (len(train), len(held_out), held_out[0]) == (84, 16, 84)
    assert [len(part) for part in split_tail(tokens, 0.0, 16)] == [100, 0]


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
