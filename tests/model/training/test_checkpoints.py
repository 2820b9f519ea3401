"""Checkpoints: a resumed run equals an uninterrupted one, a killed run leaves a complete one, damage is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bpe_llama.model import LlamaForCausalLM, lora, quantize, training
from bpe_llama.model.training.checkpoints.checkpoint import (
    TrainState,
    checkpoint_to_resume,
    find_checkpoint,
    save_checkpoint,
)
from bpe_llama.model.training.optimizers.state import optimizer_for
from tests.model.training.helpers import CONFIG, SETTINGS, fresh, load_checkpoint, losses


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=14, save_every=5, gradient_accumulation=2, **SETTINGS)
    whole = fresh()
    training.train(whole, token_file, config, tmp_path / "whole")

    # The first part ends as a killed process does: the last checkpoint is of step 5, metrics go on to step 8.
    with pytest.raises(_Killed):
        training.train(_dies_after(fresh(), forward_passes=16), token_file, config, tmp_path / "parts")
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


def _dies_after(model: LlamaForCausalLM, forward_passes: int) -> LlamaForCausalLM:
    """Let a model die in a forward pass of training, as a process does that is killed."""
    left = iter(range(forward_passes))

    def hook(module: nn.Module, _: Any) -> None:
        if module.training and next(left, None) is None:
            raise _Killed

    model.model.register_forward_pre_hook(hook)
    return model


def test_dropout_is_the_same_in_a_resumed_run(
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
        patch.setattr(training.loop.Trainer, "unfinished", lambda self: self.step < 2)
        run("parts")
    run("parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_an_adapter_is_not_resumed_on_another_base(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=2, **SETTINGS)

    def run(base: LlamaForCausalLM, resume: bool = True) -> training.TrainResult:
        model = lora.add(base, rank=2)
        return training.train(model, token_file, config, tmp_path / "run", resume=resume, progress=False)

    run(fresh(), resume=False)
    assert run(fresh().to(torch.bfloat16)).step == 2  # as on a GPU
    with pytest.raises(ValueError, match=r"the frozen weights was \w{16} and is \w{16}; expected the same base model"):
        run(LlamaForCausalLM(CONFIG, seed=1))
    with pytest.raises(ValueError, match="expected the same base model"):
        run(quantize.quantize(fresh(), "int8"))


def test_an_adapter_that_is_not_trained_is_no_part_of_the_base(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=2, **SETTINGS)

    def run(seed: int, resume: bool) -> training.TrainResult:
        model = lora.add(lora.add(fresh(), rank=2, name="before", seed=seed), rank=2, name="now")
        return training.train(model, token_file, config, tmp_path / "run", resume=resume, progress=False)

    run(0, resume=False)
    assert run(1, resume=True).step == 2  # the checkpoint has both


def test_a_finished_run_returns_the_same_result_when_resumed(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=7, **(SETTINGS | {"log_every": 5}))
    told = training.train(fresh(), token_file, config, tmp_path / "run", progress=False)
    again = training.train(fresh(), token_file, config, tmp_path / "run", resume=True, progress=False)
    assert dataclasses.replace(again, seconds=told.seconds) == told


def test_a_state_that_is_not_finite_never_replaces_a_checkpoint(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    model = fresh()
    kept = training.train(model, token_file, config, tmp_path / "run", progress=False).checkpoint
    optimizer = optimizer_for(model, training.TrainConfig())
    load_checkpoint(kept, model, optimizer)
    for tensor, name in ((model.model.norm.weight.data, "model.norm.weight"), (None, "model.norm.weight.exp_avg_sq")):
        spoilt = optimizer.state[model.model.norm.weight]["exp_avg_sq"] if tensor is None else tensor
        before, spoilt[3] = spoilt[3].item(), float("inf")
        with pytest.raises(ValueError, match=rf"run: step 2 is not saved, as {name} is not finite; {kept.name} stays"):
            save_checkpoint(tmp_path / "run", model, optimizer, TrainState(2, 1.0, {}))
        spoilt[3] = before
        assert find_checkpoint(tmp_path / "run") == kept
    assert save_checkpoint(tmp_path / "run", model, optimizer, TrainState(2, 1.0, {})).name == "step-00000002"


def test_a_full_disk_is_one_clear_line(token_file: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs a system that limits the size of files")
    out = tmp_path / "run"
    config = training.TrainConfig(max_steps=2, save_every=1, **SETTINGS)
    model = fresh()
    optimizer = optimizer_for(model, training.TrainConfig())
    kept = training.train(model, token_file, config, out, progress=False).checkpoint
    load_checkpoint(kept, model, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"run: the checkpoint of step 3 cannot be written: .*[Ff]ile too large.*; step-00000002 stays"
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=message):
            save_checkpoint(out, model, optimizer, TrainState(3, 1.0, {}))
        metrics = training.report.metrics.MetricsFile(out / "metrics.jsonl", 2)
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
        f"import time; from pathlib import Path; from bpe_llama._files import locked\n"
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
    (out / ".saving-step-00000000" / "part").mkdir(parents=True)  # of a process killed while it removed a checkpoint
    training.train(fresh(), token_file, config, out, resume=True, progress=False)
    assert sorted(os.listdir(out)) == ["loss.png", "metrics.jsonl", "step-00000001"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_run_killed_at_any_moment_resumes_with_the_same_results(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("killed_run.py")), "3"]
    told = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert re.search(r"^[3-5] kills, 0 runs with other results$", told.stdout, re.MULTILINE), told


def test_a_model_that_transformers_does_not_support_is_saved(token_file: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG.replace(position_encoding="sinusoidal"), seed=0)
    result = training.train(model, token_file, training.TrainConfig(max_steps=2, **SETTINGS), tmp_path / "run")
    loaded = LlamaForCausalLM.from_pretrained(result.checkpoint, device="cpu")
    assert loaded.config.position_encoding == "sinusoidal"
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_run_is_neither_overwritten_nor_resumed_with_other_data(token_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    training.train(fresh(), token_file, training.TrainConfig(max_steps=2, **SETTINGS), out)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "step-00000004").touch()
    with pytest.raises(ValueError, match="step-00000004: no folder, where a run writes a checkpoint"):
        checkpoint_to_resume(tmp_path / "taken", True)
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
    spelt = dataclasses.replace(config, document_mask=False)  # what None stands for
    assert training.train(fresh(), token_file, spelt, out, resume=True).step == 2
    with pytest.raises(ValueError, match="document_mask was False and is True"):
        training.train(fresh(), token_file, dataclasses.replace(config, document_mask=True), out, resume=True)
    path = find_checkpoint(out)
    assert path is not None
    state = json.loads((path / "training.json").read_text())
    del state["data"]  # as earlier versions wrote it
    (path / "training.json").write_text(json.dumps(state))
    assert training.train(fresh(), tmp_path / "other.npy", config, out, resume=True).step == 2


def test_a_run_is_saved_by_time_unless_told_when(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long work is resumable without an option: the default is a checkpoint after each ten minutes."""
    saved: list[str] = []

    class Saved(training.Callback):
        def on_checkpoint(self, run: training.Run, checkpoint: Path) -> None:
            saved.append(checkpoint.name)

    loop = sys.modules["bpe_llama.model.training.loop"]
    assert loop.SAVE_SECONDS == 600
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    for name, save_every, steps in (("by time", None, [1, 2, 3]), ("at the end", 0, [3])):
        config = training.TrainConfig(max_steps=3, save_every=save_every, **SETTINGS)
        training.train(fresh(), token_file, config, tmp_path / name, progress=False, callbacks=[Saved()])
        assert saved == [f"step-{step:08d}" for step in steps]
        saved.clear()


def test_the_newest_checkpoints_are_kept_and_the_newest_resumes(token_file: Path, tmp_path: Path) -> None:
    def run(name: str, steps: int, limit: int, resume: bool = False) -> list[str]:
        config = training.TrainConfig(max_steps=steps, save_every=2, save_total_limit=limit, **SETTINGS)
        found = training.train(fresh(), token_file, config, tmp_path / name, resume=resume, progress=False)
        assert found.checkpoint == find_checkpoint(tmp_path / name)
        return sorted(folder.name[-2:] for folder in (tmp_path / name).glob("step-*"))

    assert run("all", 9, 0) == ["02", "04", "06", "08", "09"]
    assert run("three", 7, 3) == ["04", "06", "07"]
    assert run("three", 9, 3, resume=True) == ["07", "08", "09"]
    assert run("three", 10, 1, resume=True) == ["10"]
    whole, resumed = (losses(tmp_path / name) for name in ("all", "three"))
    assert list(resumed.items())[:7] == list(whole.items())[:7]
    assert run("all", 9, 2, resume=True) == ["08", "09"]  # as after a kill between the last save and its removals


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [1, 2], ids=["the same step again", "a later step"])
def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, keep: int
) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "run")
    model = fresh()
    optimizer = optimizer_for(model, training.TrainConfig())
    load_checkpoint(tmp_path / "run" / "step-00000001", model, optimizer)
    state = TrainState(step, 7.0, config.to_dict())
    survivors = set()
    for moment in itertools.count():
        out = tmp_path / f"killed-{moment}"
        shutil.copytree(tmp_path / "run", out)
        with monkeypatch.context() as patched:
            killed = _kill_at(patched, moment)
            with contextlib.suppress(_Killed):
                save_checkpoint(out, model, optimizer, state, keep=keep)
            done = not killed()
        found = find_checkpoint(out)
        assert found is not None
        left = load_checkpoint(found, fresh(), optimizer_for(fresh(), training.TrainConfig()))
        survivors.add(left.elapsed == 7.0)
        last = save_checkpoint(out, model, optimizer, TrainState(step, 9.0, config.to_dict()), keep=keep)
        kept = ["step-00000001"] if step == keep == 2 else []
        assert sorted(folder.name for folder in out.glob("*step*")) == [*kept, last.name]
        assert not list(out.glob(".saving-*"))
        for folder in out.glob("step-*"):  # no part of a checkpoint
            load_checkpoint(folder, fresh(), optimizer_for(fresh(), training.TrainConfig()))
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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("step", 10**30, "step is 1000"),
        ("skipped", 2**53, "skipped is 9007"),
        ("data", [], r"data is \[\]"),
        ("base", 1, "base is 1"),
    ],
)
def test_a_state_that_no_run_has_is_refused(
    token_file: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    file = training.train(fresh(), token_file, config, tmp_path / "run").checkpoint / "training.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"training\.json: {message}"):
        training.train(fresh(), token_file, config, tmp_path / "run", resume=True)


def test_what_is_no_folder_is_removed_as_an_unfinished_checkpoint(token_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".saving-a").touch()
    (tmp_path / "run" / ".saving-b").symlink_to(tmp_path)
    training.train(fresh(), token_file, training.TrainConfig(max_steps=1, **SETTINGS), tmp_path / "run")
    assert not list((tmp_path / "run").glob(".saving-*")) and token_file.exists()
