"""Token files, and batches of windows and of examples."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama.model import training
from bpe_llama.model.training import Example, ExampleBatches
from tests.model.training.helpers import FINETUNE_SETTINGS, fresh_for_text


def test_invalid_token_files_are_refused(tmp_path: Path) -> None:
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


def test_the_fingerprint_depends_on_the_ends_and_the_middle_of_the_data() -> None:
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


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_visits_each_window_once(count: int, window: int, seed: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    if count < window:
        with pytest.raises(ValueError, match="expected at least one window"):
            training.TokenBatches(tokens, window=window, batch_size=1, vocab_size=count, seed=seed)
        return
    batches = training.TokenBatches(tokens, window=window, batch_size=1, vocab_size=count, seed=seed)
    for epoch in (0, 1):
        first = epoch * batches.data.rows_per_epoch
        rows = [batches.batch(first + index).ids[0] for index in range(batches.data.rows_per_epoch)]
        assert all(np.array_equal(row, np.arange(row[0], row[0] + window)) for row in rows)
        begins = sorted(int(row[0]) for row in rows)
        assert all(later - earlier == window for earlier, later in pairwise(begins))


def test_a_batch_depends_on_seed_and_index_only() -> None:
    tokens = np.arange(1000, dtype=np.uint16)

    def batches(seed: int) -> training.TokenBatches:
        return training.TokenBatches(tokens, window=10, batch_size=7, vocab_size=1000, seed=seed)

    forward = [batches(3).batch(index).ids for index in range(40)]
    again = batches(3)
    for index in reversed(range(40)):
        assert np.array_equal(again.batch(index).ids, forward[index])
    assert not np.array_equal(batches(4).batch(0).ids, forward[0])
    assert not np.array_equal(forward[0], batches(3).batch(14).ids)  # the next epoch has another order


def test_the_held_out_tokens_are_the_last_ones() -> None:
    corpus = training.Corpus("a", np.arange(100, dtype=np.uint16))
    train, held_out = corpus.split(0.01, 16)
    assert held_out is not None and held_out.tokens[0] == len(train.tokens) == 84 and len(held_out.tokens) == 16
    assert corpus.split(0.0, 16) == (corpus, None)


@given(count=st.integers(1, 9), batch_size=st.integers(1, 5), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_epoch_visits_each_example_once(count: int, batch_size: int, seed: int) -> None:
    examples = [Example(np.full(n + 2, n), np.full(n + 2, n)) for n in range(count)]
    batches = ExampleBatches(examples, batch_size=batch_size, seed=seed)
    seen, tokens = [], 0
    for index in range(3 * count):
        assert batches.tokens_before(index) == tokens
        batch = batches.batch(index)
        tokens += int((batch.labels >= 0).sum())
        seen += batch.ids.max(axis=1).tolist()
        again = ExampleBatches(examples, batch_size=batch_size, seed=seed).batch(index)
        assert np.array_equal(again.ids, batch.ids) and np.array_equal(again.labels, batch.labels)
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_invalid_examples_are_refused() -> None:
    good = np.arange(4)
    for ids, labels, message in (
        (good, good[:3], "labels"),
        (np.arange(99), np.arange(99), "has 99 tokens"),
        (good, np.full(4, -100), "no token to learn"),
        (good, np.array([0, -100, -100, -100]), "no token to learn"),
        (good + 300, good, "token 303 is outside"),
        (good - 1, good, "token -1 is outside"),
    ):
        with pytest.raises(ValueError, match=message):
            training.train_on_examples(
                fresh_for_text(), [Example(ids, labels)], training.TrainConfig(**FINETUNE_SETTINGS), "unused"
            )
    with pytest.raises(ValueError, match="no examples"):
        training.train_on_examples(fresh_for_text(), [], training.TrainConfig(**FINETUNE_SETTINGS), "unused")
    with pytest.raises(ValueError, match="no examples"):
        training.evaluate_examples(fresh_for_text(), [])
