"""What a run reports: figures, lines on stderr, samples, loggers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, lora, quantize, training
from bpe_llama.model.evaluation import evaluate_text, token_bytes
from bpe_llama.model.training.report import throughput
from bpe_llama.model.training.report.loggers import LOGGERS, logger_named
from bpe_llama.model.training.report.metrics import plot_loss
from bpe_llama.model.training.report.samples import Samples
from bpe_llama.model.training.report.throughput import expert_loads, flops_per_token, peak_flops
from tests.model.training.helpers import CONFIG, FINETUNE_SETTINGS, SETTINGS, fresh, fresh_for_text, losses


def test_a_pipe_gets_the_first_loss_at_once_and_then_lines(
    token_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    class Peek(training.Callback):
        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            seen.append(capfd.readouterr().err)

    config = training.TrainConfig(max_steps=3, **(SETTINGS | {"log_every": 2}))
    result = training.train(fresh(), token_file, config, tmp_path / "run", callbacks=[Peek()])
    training.train(fresh(), token_file, training.TrainConfig(max_steps=1, **SETTINGS), tmp_path / "one", progress=False)
    first = losses(tmp_path / "one")[1]
    assert seen[0].startswith(f"step 1  loss {first:.3f}") and seen[1:] == ["", ""]  # at most one line in 5 s
    last = capfd.readouterr().err.splitlines()
    assert last[0].startswith(f"step 3  loss {result.loss:.3f}") and last[0].endswith("0:00 left")
    assert last[1] == f"step 3  held-out loss {result.eval_loss:.3f}"
    config = training.TrainConfig(max_steps=4, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "run", resume=True)
    assert capfd.readouterr().err.startswith(f"step 3  loss {result.loss:.3f}\n")
    training.train(fresh(), token_file, config, tmp_path / "silent", progress=False)
    assert capfd.readouterr().err == ""


def test_a_run_without_metrics_draws_no_plot(token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.loop.Trainer, "optimizer_step", lambda *_: None)  # as Ctrl-C in the first step
    training.train(fresh(), token_file, training.TrainConfig(**SETTINGS), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "loss.png").exists()


def test_a_run_that_cannot_write_its_plot_ends_well(token_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "loss.png").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"loss\.png is not drawn: .*directory"):
        training.train(fresh(), token_file, training.TrainConfig(max_steps=2, **SETTINGS), tmp_path / "run")


def test_bits_per_byte_are_nats_over_bytes(token_file: Path, tmp_path: Path) -> None:
    token_bytes = np.arange(64) % 3 + 1
    model = fresh()
    config = training.TrainConfig(max_steps=3, **(SETTINGS | {"log_every": 3}))
    batches = training.TokenBatches(training.open_tokens(token_file)[:-40], window=16, batch_size=4, vocab_size=64)
    training.train(model, token_file, config, tmp_path / "run", token_bytes=token_bytes, progress=False)
    trained, held_out = training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    size = sum(int(token_bytes[batches.batch(step).ids[:, 1:]].sum()) for step in range(3))
    assert trained["bits_per_byte"] == pytest.approx(trained["loss"] * 3 * 60 / math.log(2) / size)
    tokens = training.open_tokens(token_file)[-40:][:32].reshape(2, 16)
    assert held_out["eval_bits_per_byte"] == pytest.approx(
        held_out["eval_loss"] * 30 / math.log(2) / int(token_bytes[tokens[:, 1:]].sum())
    )


@pytest.mark.parametrize("bos", [False, True])
def test_held_out_bits_per_byte_are_those_of_eval(bos: bool, tmp_path: Path) -> None:
    special = ["<s>", "</s>"] if bos else ["</s>"]
    texts = ["what is up", "and why is it so", "it is", "so it is, and why", "up and up"] * 2
    tokenizer = Tokenizer.train_from_iterator(texts, vocab_size=270, special_tokens=special, progress=False)
    if bos:
        tokenizer.save(tmp_path / "tokenizer.json")
        saved = json.loads((tmp_path / "tokenizer.json").read_text())
        begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        saved["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.special_tokens["<s>"]], "tokens": ["<s>"]}},
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
        tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer.encode_corpus([rows], tmp_path / "shards", eos=True, progress=False)
    model = fresh_for_text(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.special_tokens["</s>"])
    config = training.TrainConfig(max_steps=3, **(SETTINGS | {"packing": "best_fit", "sequence_length": 32}))
    training.train(
        model,
        tmp_path / "shards",
        config,
        tmp_path / "run",
        eval_file=tmp_path / "shards",
        token_bytes=token_bytes(tokenizer),
        progress=False,
    )
    lines = training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    expected = evaluate_text(model, tokenizer, texts, progress=False)
    assert lines[-1]["eval_bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert lines[-1]["eval_loss"] != pytest.approx(expected.loss, rel=1e-3)  # which has the loss of </s>


def test_bits_per_byte_of_steps_leave_out_tokens_without_bytes(token_file: Path, tmp_path: Path) -> None:
    sizes = np.arange(64) % 3
    config = training.TrainConfig(max_steps=1, **SETTINGS)
    batch = training.TokenBatches(training.open_tokens(token_file)[:-40], window=16, batch_size=4, vocab_size=64)
    ids = torch.from_numpy(batch.batch(0).ids)
    nats = functional.cross_entropy(fresh()(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    size = torch.from_numpy(sizes)[ids[:, 1:].flatten()]
    training.train(fresh(), token_file, config, tmp_path / "run", token_bytes=sizes, progress=False)
    line = training.read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert line["loss"] == pytest.approx(nats.mean().item(), rel=1e-5)
    assert line["bits_per_byte"] == pytest.approx((nats[size > 0].sum() / math.log(2) / size.sum()).item(), rel=1e-5)
    smoothed = dataclasses.replace(config, z_loss=0.1)  # the loss is not the cross-entropy alone
    training.train(fresh(), token_file, smoothed, tmp_path / "z", token_bytes=sizes, progress=False)
    first, held_out = training.read_metrics(tmp_path / "z" / "metrics.jsonl")
    assert "bits_per_byte" not in first and held_out["eval_bits_per_byte"] > 0


def test_flops_count_trained_frozen_and_active_weights() -> None:
    matrices = sum(
        weight.numel() for name, weight in fresh().named_parameters() if weight.dim() == 2 and "embed" not in name
    )
    attention = 12 * CONFIG.num_hidden_layers * CONFIG.hidden_size * 16
    tied = 64 * 32
    assert flops_per_token(fresh(), 16) == 6 * (matrices + tied) + attention
    adapted = lora.add(fresh(), rank=2)
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert flops_per_token(adapted, 16) == 4 * (matrices + tied) + 6 * trained + attention
    packed = lora.add(quantize.quantize(fresh(), "int8"), rank=2)
    assert flops_per_token(packed, 16) == flops_per_token(adapted, 16)
    mixture = LlamaForCausalLM(CONFIG.replace(num_local_experts=4, num_experts_per_tok=1), seed=0)
    experts = 3 * 32 * 48 * 2
    assert flops_per_token(mixture, 16) == 6 * (matrices + tied + 2 * 4 * 32) + attention
    assert experts < matrices
    assert peak_flops(torch.device("cpu"), torch.float32, 1) > 1e8


def test_the_load_of_experts_is_reported(token_file: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG.replace(num_local_experts=4), seed=0)
    assert expert_loads(model) is None and expert_loads(fresh()) is None
    training.train(model, token_file, training.TrainConfig(max_steps=1, **SETTINGS), tmp_path / "run", progress=False)
    line = training.read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert 0 <= line["expert_load_min"] <= 1 <= line["expert_load_max"] <= 2  # 2 of 4 experts a token
    for layer in model.model.layers:  # all tokens choose the experts 0 and 1
        layer.block_sparse_moe.router_logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(5, 4)
    assert expert_loads(model) == (0.0, 2.0)


def test_the_speed_is_without_the_time_of_evaluations(token_file: Path, tmp_path: Path) -> None:
    class Slow(training.Callback):
        def on_eval(self, run: training.Run, metrics: dict[str, float]) -> None:
            time.sleep(1)

    config = training.TrainConfig(max_steps=8, eval_every=4, **SETTINGS | {"log_every": 2})
    training.train(fresh(), token_file, config, tmp_path / "run", callbacks=[Slow()], progress=False)
    lines = [line for line in training.read_metrics(tmp_path / "run" / "metrics.jsonl") if "mfu" in line]
    wall, tokens = lines[2]["seconds"] - lines[1]["seconds"], lines[2]["tokens"] - lines[1]["tokens"]
    assert wall > 1
    assert lines[2]["tokens_per_second"] > 2 * tokens / wall


def test_the_speed_counts_the_rows_of_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(training.loop, "flops_per_token", lambda model, length: lengths.append(length) or 1.0)
    rows = [(ids, ids) for ids in np.random.default_rng(0).integers(0, 64, (4, 8, 32))]
    config = training.TrainConfig(max_steps=2, **SETTINGS | {"batch_size": 1})
    training.train(fresh(), rows, config, tmp_path / "run", progress=False)
    assert lengths == [32, 32]


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 PCIe", 756e12), ("NVIDIA L4", 121e12), ("NVIDIA L40", None), ("NVIDIA H100", None)]
)
def test_the_peak_is_that_of_the_whole_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*shape: int, **place: object) -> torch.Tensor:
        raise NotImplementedError(shape)

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "ones", measured)
    found = throughput.peak_flops.__wrapped__
    with contextlib.nullcontext() if peak else pytest.raises(NotImplementedError):
        assert found(torch.device("cuda"), torch.bfloat16, 1) == peak


def test_samples_are_written_and_change_no_loss(
    tokenizer: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("what is up, and why is it so " * 40)
    config = training.TrainConfig(**(FINETUNE_SETTINGS | {"eval_every": 2, "eval_fraction": 0.2}))
    training.finetune(fresh_for_text(), tokenizer, tmp_path / "a.txt", config, tmp_path / "plain", progress=False)
    samples = Samples(tokenizer, ["what", "é"])
    training.finetune(
        fresh_for_text(), tokenizer, tmp_path / "a.txt", config, tmp_path / "run", callbacks=[samples], progress=False
    )
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    written = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8")
    assert '"prompt": "é"' in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (step, p) for step in (2, 4, 6) for p in ("what", "é")
    ]
    assert f"step 6: é{lines[-1]['text']}" in capfd.readouterr().err and lines[-1]["text"]


def test_callbacks_of_an_evaluation_see_the_average_that_is_evaluated(token_file: Path, tmp_path: Path) -> None:
    class Peek(training.Callback):
        def on_eval(self, run: training.Run, metrics: dict[str, float]) -> None:
            evaluated.append((training.evaluate(run.whole_model(), held_out, window=16), metrics["eval_loss"]))

        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            trained.append(training.evaluate(run.whole_model(), held_out, window=16))

    evaluated, trained = list[tuple[float, float]](), list[float]()
    held_out = training.open_tokens(token_file)[-40:]
    config = training.TrainConfig(max_steps=6, eval_every=3, ema_decay=0.9, **SETTINGS)
    model = fresh()
    training.train(model, token_file, config, tmp_path / "run", callbacks=[Peek()], progress=False)
    for (seen, reported), last in zip(evaluated, trained[2::3], strict=True):
        assert seen == pytest.approx(reported, rel=1e-6) != pytest.approx(last, rel=1e-3)
    assert training.evaluate(model, held_out, window=16) == pytest.approx(evaluated[-1][1], rel=1e-6)  # and is saved


def test_tensorboard_reads_the_metrics(token_file: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=4, **SETTINGS)
    out = tmp_path / "run"
    training.train(fresh(), token_file, config, out, callbacks=[logger_named("tensorboard")], progress=False)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(losses(out))
    assert [event.step for event in events.Scalars("eval_loss")] == [4]


def test_trackio_stores_the_metrics(token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = training.TrainConfig(max_steps=3, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "run", callbacks=[logger_named("trackio")], progress=False)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
    stored = {step: json.loads(text)["loss"] for step, text in rows if "loss" in json.loads(text)}
    assert stored == pytest.approx(losses(tmp_path / "run"))


def test_wandb_records_offline(token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = training.TrainConfig(max_steps=3, **SETTINGS)
    training.train(fresh(), token_file, config, tmp_path / "run", callbacks=[logger_named("wandb")], progress=False)
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 300  # wandb's own process writes the file
    while b"tokens_per_second" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"tokens_per_second" in record.read_bytes()


def test_unknown_and_missing_loggers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="logger is 'mlflow', expected tensorboard, wandb or trackio"):
        logger_named("mlflow")
    for name in LOGGERS:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
        with pytest.raises(ImportError, match=rf"pip install 'bpe_llama\[{name}\]'"):
            logger_named(name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": "1"}', "line 2: step is '1'; expected a number"),
        ('{"step": 1, "tokens": 5, "loss": [1]}', r"line 2: loss is \[1\]"),
        ('{"step": 1, "tokens": {}, "loss": 1}', r"line 2: tokens is \{\}"),
        (f'{{"step": 1, "eval_loss": {10**30}}}', "line 2: eval_loss is 1000"),
        (f'{{"step": 1, "n": {"9" * 5000}}}', "line 2 is not JSON"),
    ],
)
def test_metrics_are_numbers(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": NaN}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl: {message}"):
        training.read_metrics(path)
    path.write_text('{"step": 1, "loss": 2.5}\n')
    plot_loss(training.read_metrics(path), tmp_path / "loss.svg")  # without tokens there is no point


def test_a_run_without_matplotlib_ends_well(token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.warns(UserWarning, match=r"loss\.png is not drawn: a plot needs matplotlib"):
        training.train(fresh(), token_file, training.TrainConfig(max_steps=2, **SETTINGS), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000002"]
    assert not (tmp_path / "run" / "loss.png").exists()
