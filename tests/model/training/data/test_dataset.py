"""Batches as a dataset for other trainers: torch's and torchdata's loaders, transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM as TheirModel
from transformers import Trainer, TrainingArguments

from bpe_llama.model import training
from bpe_llama.model.training import BatchDataset, TokenBatches
from bpe_llama.model.training.data.packing import PackedRows
from bpe_llama.model.training.data.rows import RowBatches
from tests.model.training.helpers import CONFIG, fresh, steps_of


def windows(batch_size: int = 4) -> TokenBatches:
    return TokenBatches(np.arange(60).repeat(9).astype(np.uint16), window=8, batch_size=batch_size, vocab_size=64)


def packed() -> RowBatches:
    documents = steps_of(60)
    tokens = np.array([token for document in documents for token in document], np.uint16)
    starts = np.cumsum([0, *map(len, documents)])
    return RowBatches(PackedRows(tokens, starts, window=32, vocab_size=64), 4)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_loader_has_the_batches_whatever_the_workers(workers: int) -> None:
    batches = windows()
    loader = DataLoader(BatchDataset(batches, 7), batch_size=4, num_workers=workers)
    for _ in range(2):
        found = [item["input_ids"] for item in loader]
        assert len(found) == 7
        assert all(np.array_equal(ids, batches.batch(index).ids) for index, ids in enumerate(found))


def test_ranks_share_the_rows() -> None:
    batches = windows(5)
    parts = [[row["input_ids"] for row in BatchDataset(batches, 3, rank=rank, world=2)] for rank in (0, 1)]
    assert [len(part) for part in parts] == [9, 6]
    every = [ids.tolist() for part in parts for ids in part]
    assert sorted(every) == sorted(ids for index in range(3) for ids in batches.batch(index).ids.tolist())


@pytest.mark.filterwarnings("ignore:'.*' is deprecated:UserWarning")  # of torch, in torchdata 0.11
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 3, 6])
def test_a_stateful_loader_resumes(workers: int, done: int) -> None:
    def loader() -> Any:
        return StatefulDataLoader(BatchDataset(windows(), 6), batch_size=4, num_workers=workers)

    whole = [item["input_ids"].tolist() for item in loader()]
    first, second = loader(), loader()
    iterator = iter(first)
    begun = [next(iterator)["input_ids"].tolist() for _ in range(done)]
    second.load_state_dict(first.state_dict())
    rest = [item["input_ids"].tolist() for item in second]
    assert begun + rest == whole


def test_transformers_tells_packed_documents_apart() -> None:
    ours = fresh().eval()
    theirs = TheirModel(TheirConfig(**ours.config.to_dict(), attn_implementation="sdpa", use_cache=False)).eval()
    theirs.load_state_dict(ours.state_dict())
    item = next(iter(DataLoader(BatchDataset(packed(), 1), batch_size=4)))
    document_ids = item.pop("document_ids")
    with torch.no_grad():
        expected = theirs(**item)
        found = ours(item["input_ids"], labels=item["labels"], document_ids=document_ids)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss)


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    model = TheirModel(TheirConfig(**CONFIG.to_dict()))
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=BatchDataset(packed(), 12))
    trainer.train()
    found = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(found) == 12 and found[-1] < found[0] - 0.3


def test_the_dataset_trains_here_too(tmp_path: Path) -> None:
    config = training.TrainConfig(max_steps=3, device="cpu", log_every=1)
    loader = DataLoader(BatchDataset(windows(), 2), batch_size=4)
    assert training.train(fresh(), loader, config, tmp_path, progress=False).tokens == 3 * 32
