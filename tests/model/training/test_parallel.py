"""Several ranks against one process: the same losses and weights, whatever the number of ranks and the sharding."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import itertools
import math
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bpe_llama import Tokenizer
from bpe_llama._files import locked
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification, lora, quantize, training
from bpe_llama.model.evaluation.classification import LabelledText
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.training import parallel
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.finetuning.classification import train_classifier
from tests.model.training import ranks
from tests.model.training.helpers import CONFIG
from tests.unit.model_commands.helpers import TEXT, finetune, pretrain

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")

FULL = os.environ.get("BPE_LLAMA_FULL") == "1"  # as `make parity` sets it
SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "sequence_length": 16,
    "batch_size": 5,  # which two and four ranks cannot split evenly
    "gradient_accumulation": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "eval_every": 2,
    "log_every": 1,
    "device": "cpu",
}


def _tokens() -> np.ndarray[Any, Any]:
    return (np.cumsum(np.random.default_rng(0).integers(0, 3, 2000)) % 64).astype(np.uint16)


def _examples(count: int = 23) -> list[training.Example]:
    """Texts of different lengths, of which very different numbers of tokens are learned."""
    drawn = np.random.default_rng(0)
    texts = [drawn.integers(3, 60, drawn.integers(5, 40)) for _ in range(count)]
    return [training.Example(ids, np.where(np.arange(len(ids)) > drawn.integers(1, 4), ids, -100)) for ids in texts]


def _model(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(dataclasses.replace(CONFIG, **changes), seed=0)


def _on_tokens(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model, config = _model(), dataclasses.replace(config, ema_decay=0.9)
    training.train(model, out.parent / "tokens.npy", config, out, progress=False, **options)
    return model


def _on_examples(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model = _model(tie_word_embeddings=False)
    model.gradient_checkpointing_enable()
    return _train_on_examples(model, out, config, **options)


def _with_adapter(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model = lora.add(_model(), rank=3)
    return _train_on_examples(model, out, config, **options)


def _with_experts(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    shape = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    return _train_on_examples(_model(**shape), out, config, **options)


def _with_quantized_weights(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    model = _model(tie_word_embeddings=False)
    quantize.quantize(model, "int8")
    return _train_on_examples(lora.add(model, rank=3), out, config, **options)


def _distilled(out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    teacher = LlamaForCausalLM(CONFIG, seed=7)
    return _on_tokens(out, config, loss_fn=training.distillation_loss(teacher, chunk_size=16), **options)


def _classifier(out: Path, config: TrainConfig, **options: Any) -> LlamaForSequenceClassification:
    model = LlamaForSequenceClassification.from_causal_lm(_model(), ["no", "yes"], pad_token_id=0, seed=1)
    texts = [LabelledText(example.ids, int(example.ids[0] > 30)) for example in _examples()]
    train_classifier(model, texts[:18], config, out, eval_texts=texts[18:], progress=False, **options)
    return model


def _train_on_examples(model: LlamaForCausalLM, out: Path, config: TrainConfig, **options: Any) -> LlamaForCausalLM:
    data = _examples()
    training.train_on_examples(model, data[:18], config, out, eval_examples=data[18:], progress=False, **options)
    return model


RUNS: dict[str, Callable[..., Pretrained]] = {
    "tokens": _on_tokens,
    "examples": _on_examples,
    "adapter": _with_adapter,
    "experts": _with_experts,
    "quantized": _with_quantized_weights,
    "distilled": _distilled,
    "classifier": _classifier,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    np.save(folder / "tokens.npy", _tokens())
    with torch.enable_grad():
        for name, run in RUNS.items():
            save_file(_trained(run(folder / name, TrainConfig(**SETTINGS))), folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize(("world", "parallel"), [(4, "ddp"), (2, "fsdp"), *([(2, "ddp"), (4, "fsdp")] if FULL else [])])
def test_ranks_give_the_losses_and_weights_of_one_process(
    world: int, parallel: str, alone: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "tokens.npy", _tokens())

    def work(rank: int) -> None:
        for name, run in RUNS.items():
            trained = run(tmp_path / name, TrainConfig(**SETTINGS, parallel=parallel))
            save_file(_trained(trained), tmp_path / f"{name}.{rank}.safetensors")

    ranks.run(world, work, tmp_path / "log")
    for name in RUNS:
        _check_equal(name, world, alone, tmp_path)


class _Terminated(training.Callback):
    """Sends SIGTERM to the last rank alone, after a step."""

    on_every_rank = True

    def __init__(self, step: int) -> None:
        self.step = step

    def on_start(self, run: training.Run) -> None:
        if self.step == 0:
            signal.raise_signal(signal.SIGTERM)

    def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
        if run.step == self.step and run.ranks.rank == run.ranks.world - 1:
            signal.raise_signal(signal.SIGTERM)


def test_a_run_goes_on_with_another_number_of_ranks_after_a_signal_to_one(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "examples"
    # Several ranks learn of the signal at the end of the next step.
    parts = [(2, "fsdp", 0, 0), (4, "fsdp", 1, 2), (1, "auto", 3, 3), (4, "fsdp", 4, 5), (2, "ddp", 99, 6)]
    for world, kind, signalled, last in parts:

        def work(rank: int, parallel: str = kind, signalled: int = signalled) -> None:
            callbacks = [_Terminated(signalled)]
            trained = _on_examples(out, TrainConfig(**SETTINGS, parallel=parallel), resume=True, callbacks=callbacks)
            save_file(_trained(trained), tmp_path / f"examples.{rank}.safetensors")

        ranks.run(world, work, tmp_path / f"log-{last}")
        (checkpoint,) = out.glob("step-*")
        assert checkpoint.name == f"step-{last:08d}"
        sharded = kind == "fsdp" and last > 0  # there is no state before the first step
        assert (checkpoint / "optimizer").is_dir() == sharded
        assert (checkpoint / "optimizer.safetensors").is_file() == (not sharded)
        loaded = dict(LlamaForCausalLM.from_pretrained(checkpoint, device="cpu").named_parameters())
        trained = load_file(tmp_path / "examples.0.safetensors")
        assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())
    _check_equal("examples", 2, alone, tmp_path)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_rank_and_a_restart_lose_nothing(parallel: str, tmp_path: Path) -> None:
    config = TrainConfig(**SETTINGS, parallel=parallel, save_every=1)

    class Waits(training.Callback):
        on_every_rank = True

        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            if metrics["step"] == 5 and os.environ["RANK"] == "1":
                time.sleep(600)  # the run does not end before it is killed

    def work(rank: int, out: Path, **options: Any) -> None:
        save_file(
            _trained(_with_experts(out, config, resume=True, **options)), out.parent / f"{out.name}.{rank}.safetensors"
        )

    ranks.run(2, partial(work, out=tmp_path / "whole"), tmp_path / "log-whole")
    out = tmp_path / "killed"
    processes = ranks.start(2, partial(work, out=out, callbacks=[Waits()]), tmp_path / "log-killed")
    while len(training.read_metrics(out / "metrics.jsonl")) < 3:
        time.sleep(0.01)
    time.sleep(random.SystemRandom().uniform(0.0, 0.3))
    os.kill(processes[1], signal.SIGKILL)
    assert ranks.wait(processes, 120.0) == [1, -signal.SIGKILL]  # rank 0 ends with an error, without waiting
    ranks.run(2, partial(work, out=out), tmp_path / "log-resumed")
    _check_equal("killed", 2, tmp_path, tmp_path, "whole", exactly=True)


def test_what_ranks_refuse_they_name_before_the_first_step(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", _tokens())

    def work(rank: int) -> None:
        with pytest.raises(ValueError, match="a micro-batch has 1 rows for 2 ranks; expected a row for each at least"):
            _on_tokens(tmp_path / "rows", TrainConfig(**(SETTINGS | {"batch_size": 1})))
        with pytest.raises(ValueError, match=r"the data of rank 1 is .*, that of rank 0 .*; expected the same"):
            training.train_on_examples(_model(), _examples(5 + rank), TrainConfig(**SETTINGS), tmp_path / "data")
        if rank == 1:
            (tmp_path / "run").mkdir()
        parallel.start().barrier()
        with contextlib.ExitStack() as stack:
            if rank == 1:  # the other process of another run
                stack.enter_context(locked(tmp_path / "run"))
            parallel.start().barrier()
            with pytest.raises(ValueError, match="another run is going on in this folder"):
                _on_tokens(tmp_path / "run", TrainConfig(**SETTINGS))
            parallel.start().barrier()

    ranks.run(2, work, tmp_path / "log")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(parallel: str, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", _tokens())

    def work(rank: int) -> None:
        calls = itertools.count()

        def loss_fn(model: LlamaForCausalLM, batch: training.TensorBatch, learned: int) -> torch.Tensor:
            bad = rank == 1 and next(calls) == 3  # the second micro-batch of the second step
            return training.batch_loss(model, batch, learned) * (math.nan if bad else 1.0)

        result = training.train(
            _model(),
            tmp_path / "tokens.npy",
            TrainConfig(**SETTINGS, parallel=parallel),
            tmp_path / "run",
            loss_fn=loss_fn,
            progress=False,
        )
        assert (result.step, result.skipped) == (6, 1)

    ranks.run(2, work, tmp_path / "log")
    assert [line["step"] for line in training.read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == [
        *(1, 3, 4, 5, 6)
    ]


def test_pretrain_and_finetune_print_and_save_on_rank_0(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|endoftext|>"], progress=False)
    tokenizer.save(tmp_path / "tokenizer.json")
    np.save(tmp_path / "tokens.npy", np.array(tokenizer.encode(TEXT), dtype=np.uint16))

    def work(rank: int, command: list[str], prints: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(command) == 0
        assert (prints in printed.getvalue()) == (rank == 0) == bool(printed.getvalue())

    command = pretrain(tmp_path, tmp_path / "run", "--parallel", "fsdp")
    ranks.run(2, partial(work, command=command, prints="step 4:"), tmp_path / "log-pretrain")
    command = finetune(tmp_path, tmp_path / "tuned", "--rank", "2", "--merge")
    ranks.run(2, partial(work, command=command, prints="step 6:"), tmp_path / "log-finetune")
    errors = [(tmp_path / f"log-finetune.{rank}").read_text() for rank in range(2)]
    assert "trainable parameters" in errors[0] and errors[1] == ""
    before, after = (
        LlamaForCausalLM.from_pretrained(tmp_path / run / "model", device="cpu") for run in ("run", "tuned")
    )
    assert not all(map(torch.equal, before.parameters(), after.parameters()))


def test_bad_usage_is_one_line_of_rank_0_and_an_error_of_one_rank_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "tokens.npy", _tokens())
    Tokenizer.train_from_iterator([TEXT], vocab_size=260, progress=False).save(tmp_path / "tokenizer.json")
    for name, flags, message, seconds in (
        ("unknown", ["--unknown"], "--unknown", 300),
        ("steps", ["--steps", "0"], "max_steps is 0, expected at least 1", 300),
        ("alone", ["--unknown"], "--unknown", 2),
    ):
        monkeypatch.setattr(parallel, "ERROR_TIMEOUT", datetime.timedelta(seconds=seconds))
        command, ended = pretrain(tmp_path, tmp_path / "run", *flags), tmp_path / f"ended-{name}"

        def work(rank: int, alone: bool = name == "alone", command: Any = command, ended: Path = ended) -> None:
            if rank == 0:  # torchrun's own process hosts the store otherwise
                place = ("127.0.0.1", int(os.environ["MASTER_PORT"]))
                store = torch.distributed.TCPStore(*place, is_master=True, wait_for_workers=False, multi_tenant=True)
                assert store.port == place[1]
            if rank == 1 or not alone:
                assert main(command) == 2
            if rank == 1:
                ended.touch()
            while not ended.exists():
                time.sleep(0.05)

        ranks.run(2, work, tmp_path / f"log-{name}")
        first, second = ((tmp_path / f"log-{name}.{rank}").read_text() for rank in range(2))
        reported, silent = (second, first) if name == "alone" else (first, second)
        assert message in reported and reported.count("\n") == 1 and silent == ""


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "variable WORLD_SIZE is 'abc'; expected a number from 1 to 65535, as torchrun sets it"),
        ({"WORLD_SIZE": "-1"}, "variable WORLD_SIZE is '-1'; expected"),
        ({"RANK": "abc"}, "variable RANK is 'abc'; expected a number from 0 to 1"),
        ({"RANK": "5"}, "variable RANK is '5'; expected a number from 0 to 1"),
        ({"MASTER_PORT": "abc"}, "variable MASTER_PORT is 'abc'; expected"),
    ],
)
def test_variables_that_torchrun_does_not_set_so_are_named(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    for name, value in (place | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        parallel.start("cpu")
    assert not parallel.is_reported_by_rank_0(message)


def _check_equal(
    name: str, world: int, expected: Path, found: Path, expected_name: str = "", *, exactly: bool = False
) -> None:
    """Compare metrics and weights, those of each rank, with those of one process or of another run."""
    before = expected_name or name
    theirs = training.read_metrics(expected / before / "metrics.jsonl")
    ours = training.read_metrics(found / name / "metrics.jsonl")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("loss", "grad_norm", "eval_loss", "eval_accuracy"):
        wanted, had = ([line[key] for line in lines if key in line] for lines in (theirs, ours))
        np.testing.assert_allclose(had, wanted, rtol=0 if exactly else 2e-5, err_msg=f"{name}: {key}")
    weights = load_file(expected / (f"{before}.0.safetensors" if exactly else f"{before}.safetensors"))
    tolerance = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-4, "atol": 2e-5}
    for rank in range(world):
        torch.testing.assert_close(load_file(found / f"{name}.{rank}.safetensors"), weights, **tolerance)


def _trained(model: Pretrained) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own read
def test_sharded_layers_that_are_compiled_give_the_same_losses(alone: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", _tokens())

    def work(rank: int) -> None:
        trained = _on_tokens(tmp_path / "tokens", TrainConfig(**SETTINGS, parallel="fsdp", compile=True))
        save_file(_trained(trained), tmp_path / f"tokens.{rank}.safetensors")

    ranks.run(2, work, tmp_path / "log")
    _check_equal("tokens", 2, alone, tmp_path)
