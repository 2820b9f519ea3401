"""Batches made ahead in a worker thread, and batches of any iterable."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
)

from bpe_llama import Tokenizer
from bpe_llama.model import training
from bpe_llama.model.training import IterableBatches
from bpe_llama.model.training.data.prefetch import Prefetch
from tests.model.training.helpers import SETTINGS, fresh, losses


class Slow:
    """Batches that take their time, and raise at one index."""

    fingerprint = "slow"

    def __init__(self, seconds: float = 0.0, bad: int = -1, length: int = 16) -> None:
        self.seconds, self.bad, self.length = seconds, bad, length
        self.made: list[int] = []
        self.threads: set[str] = set()

    def batch(self, index: int) -> training.Batch:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if index == self.bad:
            raise RuntimeError(f"no batch {index}")
        self.made.append(index)
        ids = np.random.default_rng(index).integers(0, 64, (4, self.length))
        return training.Batch(ids, ids)

    def tokens_before(self, index: int) -> int:
        return index * 4 * self.length


def run(data: Any, out: Path, *, resume: bool = False, **options: Any) -> training.TrainResult:
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 4} | options))
    return training.train(fresh(), data, config, out, resume=resume, progress=False)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batches_are_made_ahead_in_order_and_no_more_than_needed() -> None:
    data = Slow()
    with contextlib.closing(Prefetch(data, range(3, 9), depth=2)) as ahead:
        wait_for(lambda: len(data.made) >= 3)
        time.sleep(0.3)
        assert data.made == [3, 4, 5]  # two in the queue, one in the worker's hands
        taken = [*ahead.take(2), *ahead.take(4)]
        assert data.made == list(range(3, 9)) and data.threads == {"prefetch"}
        with pytest.raises(ValueError, match="all batches of the run were taken"):
            ahead.take(1)
    expected = [Slow().batch(index).ids for index in range(3, 9)]
    assert all(np.array_equal(batch.ids, ids) for batch, ids in zip(taken, expected, strict=True))


def test_where_no_thread_can_be_started_a_step_makes_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = run(Slow(), tmp_path / "ahead")

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 4}))
    assert training.train(fresh(), Slow(), config, tmp_path / "here").loss == expected.loss  # with a bar
    assert "step 4" in capfd.readouterr().err
    data = Slow(bad=4)
    with contextlib.closing(Prefetch(data, range(3, 6))) as here:
        assert not data.made and len(here.take(1)) == 1 and data.threads == {"MainThread"}
        with pytest.raises(RuntimeError, match="no batch 4"):
            here.take(2)
        here.take(1)
        with pytest.raises(ValueError, match="all batches of the run were taken"):
            here.take(1)


def test_waits_are_measured_and_slow_steps_do_not_wait() -> None:
    data = Slow(0.2)
    with contextlib.closing(Prefetch(data, range(4))) as ahead:
        began = time.perf_counter()
        ahead.take(2)
        waited = ahead.waited
        assert 0.2 < waited <= time.perf_counter() - began  # for the second one at least
        wait_for(lambda: ahead._made.qsize() == 2)
        data.seconds = 60.0
        ahead.take(2)
        assert ahead.waited - waited < 30


def test_an_error_of_the_data_is_raised_in_its_step(tmp_path: Path) -> None:
    reached: list[float] = []

    class Steps(training.Callback):
        def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
            reached.append(metrics["step"])

    config = training.TrainConfig(**(SETTINGS | {"max_steps": 9, "gradient_accumulation": 2}))
    with pytest.raises(RuntimeError, match="no batch 5"):
        training.train(fresh(), Slow(bad=5), config, tmp_path, progress=False, callbacks=[Steps()])
    assert reached == [1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_interrupt_ends_a_wait_for_data() -> None:
    interrupted = threading.Event()
    with contextlib.closing(Prefetch(Slow(60), range(4))) as ahead:
        threading.Timer(0.2, interrupted.set).start()
        began = time.perf_counter()
        assert ahead.take(1, interrupted) == []
    assert time.perf_counter() - began < 30


def test_ctrl_c_ends_a_run_that_waits_for_data(tmp_path: Path) -> None:
    class Blocked(Slow):
        def batch(self, index: int) -> training.Batch:
            if index == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(120)
            return super().batch(index)

    began = time.perf_counter()
    result = run(Blocked(), tmp_path)
    assert result.interrupted and result.step <= 2 and result.checkpoint.is_dir()
    assert time.perf_counter() - began < 60


def pairs(count: int, seed: int = 0) -> list[tuple[Any, Any]]:
    ids = np.random.default_rng(seed).integers(0, 64, (count, 4, 16))
    return [(row, row) for row in ids]


def test_any_iterable_trains_and_resumes(tmp_path: Path) -> None:
    data = pairs(3)
    expected = run(data, tmp_path / "arrays")
    forms: dict[str, Any] = {
        "tensors": [tuple(map(torch.from_numpy, pair)) for pair in data],
        "dictionaries": [{"input_ids": torch.from_numpy(ids)} for ids, _ in data],
        "batches": [training.Batch(*pair) for pair in data],
        "masks": [{"input_ids": ids, "labels": ids, "attention_mask": np.ones_like(ids)} for ids, _ in data],
        "lists": [(ids.tolist(), ids.tolist()) for ids, _ in data],
    }
    rows = [ids for pair in data for ids in pair[0]]
    forms["loader"] = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=both)
    for name, form in forms.items():
        assert run(form, tmp_path / name).tokens == expected.tokens == 4 * 64
        assert losses(tmp_path / name) == losses(tmp_path / "arrays"), name
    metrics = training.read_metrics(tmp_path / "arrays" / "metrics.jsonl")
    assert [line["epochs"] for line in metrics if "loss" in line] == [0, 0, 0, 1]


def both(rows: list[Any]) -> Any:
    ids = torch.from_numpy(np.stack(rows))
    return ids, ids


def test_an_iterable_resumes_where_it_was(tmp_path: Path) -> None:
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 7, "save_every": 3}))

    class Stop(training.Callback):
        def on_checkpoint(self, run: training.Run, folder: Path) -> None:
            raise KeyboardInterrupt

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.train(fresh(), pairs(5), config, whole, progress=False)
    with pytest.raises(KeyboardInterrupt):
        training.train(fresh(), pairs(5), config, parts, progress=False, callbacks=[Stop()])
    result = training.train(fresh(), pairs(5), config, parts, resume=True, progress=False)
    assert losses(parts) == losses(whole) and result.tokens == 7 * 64


def test_a_finished_run_on_an_iterable_knows_its_tokens(tmp_path: Path) -> None:
    assert run(pairs(3), tmp_path / "run").tokens == run(pairs(3), tmp_path / "run", resume=True).tokens > 0


def test_an_iterator_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    def generator() -> Iterator[Any]:
        yield from pairs(2)

    assert run(generator(), tmp_path / "enough", max_steps=2).step == 2
    with pytest.raises(ValueError, match="the data end after 2 batches, and the generator cannot begin again"):
        run(generator(), tmp_path / "few")


def test_collators_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<|end|>")
    features = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    batch = IterableBatches([DataCollatorForLanguageModeling(theirs, mlm=False)(features)]).batch(0)
    assert batch.learned == 3 and batch.attention_mask is not None and batch.attention_mask.sum() == 5
    labelled = [{**row, "labels": row["input_ids"]} for row in features]
    assert IterableBatches([DataCollatorForSeq2Seq(theirs)(labelled)]).batch(0).learned == 3


def test_padding_on_the_left_is_that_of_transformers(tmp_path: Path) -> None:
    ids, mask = np.arange(3, 19).reshape(2, 8), np.array([[0] * 3 + [1] * 5, [1] * 8])
    labels = np.where(mask.cumsum(-1) > 1, ids, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model = fresh()
    model.save_pretrained(tmp_path / "model")
    config = training.TrainConfig(**SETTINGS | {"max_steps": 1, "batch_size": 2})
    found = training.train(model, [batch], config, tmp_path / "run", progress=False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = theirs(**{name: torch.from_numpy(array) for name, array in batch.items()}).loss
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)


def test_invalid_batches_are_named() -> None:
    ids = np.ones((2, 5), np.int64)
    for item, message in (
        (7, "batch 0 is a int; expected a Batch, a pair"),
        ({"labels": ids}, "batch 0 has no input_ids"),
        ({"input_ids": ids, "position_ids": ids, "x": 1}, "batch 0 has position_ids, x; expected input_ids, labels"),
        ((ids, ids[:1]), r"labels of batch 0 have shape \(1, 5\)"),
        ((ids[0], ids[0]), r"ids of batch 0 have shape \(5,\); expected \(B, T\)"),
        ((ids * 0.5, ids), "ids of batch 0 have dtype float64; expected integers"),
        ((ids * 64, ids), "token 64 of batch 0 is outside the model's vocabulary of 64"),
        ((-ids, ids), "token -1 of batch 0 is outside"),
        ((torch.ones(2, 5, dtype=torch.long, device="meta"), ids), "ids of batch 0 are no array of integers: Cannot"),
        ((torch.ones(2, 5, requires_grad=True), ids), "ids of batch 0 have dtype float32; expected integers"),
        (([[1, 2], [3]], ids), "ids of batch 0 are no array of integers: "),
        ({"input_ids": ids, "attention_mask": ids * 2**62}, f"attention_mask of batch 0 holds {2**62}; expected 0"),
        ({"input_ids": ids, "attention_mask": -ids}, "attention_mask of batch 0 holds -1; expected 0"),
        ((np.ones((1, 70), np.int64),) * 2, "batch 0 has rows of 70 tokens, the model's context is 66"),
    ):
        with pytest.raises(ValueError, match=message):
            IterableBatches([item], 64, 66).batch(0)
    batches = IterableBatches([(ids, ids)] * 3)
    batches.batch(1)
    with pytest.raises(ValueError, match="batch 0 of the list was read before; the next is 2"):
        batches.batch(0)
    with pytest.raises(ValueError, match="the data end after 0 batches"):
        IterableBatches([]).batch(0)


@pytest.mark.parametrize("kind", [training.Batch, training.Example])
def test_batches_and_examples_hold_int64_arrays(kind: Any) -> None:
    for given in ([1, 2], np.array([1, 2], np.uint16), torch.tensor([1, 2])):
        held = kind(given, given)
        assert held.ids.dtype == held.labels.dtype == np.int64 and held.ids.tolist() == [1, 2]
    for given in (None, "ab", [1.5], torch.ones(2, dtype=torch.long, device="meta")):
        with pytest.raises(ValueError, match=r"ids of an? (batch|example) (have dtype|are no array of integers)"):
            kind(given, given)
