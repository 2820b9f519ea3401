"""Whole documents packed into rows: every token once, no document cut in vain, no loss and no attention across."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama.model import LlamaForCausalLM, training
from bpe_llama.model.training.data.packing import PackedRows, best_fit
from bpe_llama.model.training.data.rows import RowBatches, Windows
from tests.model.training.helpers import CONFIG, SETTINGS, fresh, losses, steps_of, write_shards


def naive_best_fit(lengths: list[int], window: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= window]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@given(st.integers(1, 30).flatmap(lambda window: st.tuples(st.just(window), st.lists(st.integers(1, window)))))
@settings(max_examples=200, deadline=None)
def test_the_rows_are_those_of_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    window, lengths = case
    rows = best_fit([lengths.count(length) for length in range(window + 1)], window)
    placed = [length for pattern, rows_of in rows for length, count in pattern for _ in range(rows_of * count)]
    assert sorted(placed) == sorted(lengths)
    sizes = [sum(length * count for length, count in pattern) for pattern, number in rows for _ in range(number)]
    assert sorted(sizes) == sorted(map(sum, naive_best_fit(lengths, window)))


@given(st.lists(st.integers(0, 25), min_size=1, max_size=40).filter(any), st.integers(2, 12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_token_once_and_cuts_long_documents_only(sizes: list[int], window: int, seed: int) -> None:
    starts = np.cumsum([0, *sizes])
    tokens = np.arange(starts[-1], dtype=np.uint16)
    rows = PackedRows(tokens, starts, window=window, vocab_size=len(tokens), seed=seed)
    count = 0
    for epoch in (0, 1):
        seen: list[int] = []
        for place in range(rows.rows_per_epoch):
            index = epoch * rows.rows_per_epoch + place
            assert rows.tokens_before(index) == count
            ids, labels, marks = rows.row(index)
            assert marks is not None and 0 < len(ids) <= window
            for number in range(int(marks[-1]) + 1):
                piece, learned = ids[marks == number], labels[marks == number]
                document = int(np.searchsorted(starts, piece[0], side="right")) - 1
                begin, end = starts[document], starts[document + 1]
                assert np.array_equal(piece, np.arange(piece[0], piece[0] + len(piece)))
                assert (piece[0] - begin) % window == 0 and piece[-1] + 1 in (end, piece[0] + window)
                assert learned[0] == -100 and np.array_equal(learned[1:], piece[1:])
            seen += ids.tolist()
            count += len(ids)
        assert sorted(seen) == tokens.tolist()
    assert rows.tokens_before(rows.rows_per_epoch) == len(tokens)


def test_a_packed_row_depends_on_seed_and_index_only() -> None:
    starts = np.cumsum([0, *np.random.default_rng(0).integers(1, 12, 200)])
    tokens = np.arange(starts[-1], dtype=np.uint16)

    def rows(seed: int) -> PackedRows:
        return PackedRows(tokens, starts, window=10, vocab_size=len(tokens), seed=seed)

    count = 2 * rows(3).rows_per_epoch
    forward = [rows(3).row(index).ids for index in range(0, count, 7)]
    again = rows(3)
    backward = [again.row(index).ids for index in reversed(range(0, count, 7))]
    assert all(map(np.array_equal, forward, reversed(backward)))
    assert not all(map(np.array_equal, forward, (rows(4).row(index).ids for index in range(0, count, 7))))
    first, second = (Counter(tuple(again.row(e * count // 2 + n).ids) for n in range(count // 2)) for e in (0, 1))
    assert first != second  # an epoch has combinations of its own


@given(st.lists(st.integers(1, 9), min_size=3, max_size=30), st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_windows_number_the_documents_that_they_cut(sizes: list[int], window: int) -> None:
    starts = np.cumsum([0, *sizes])
    tokens = np.arange(starts[-1], dtype=np.uint16)
    if len(tokens) < window:
        return
    rows = Windows(tokens, window=window, vocab_size=len(tokens), starts=starts)
    plain = Windows(tokens, window=window, vocab_size=len(tokens))
    for index in range(rows.rows_per_epoch):
        ids, labels, marks = rows.row(index)
        assert np.array_equal(ids, plain.row(index).ids)
        documents = np.searchsorted(starts, ids, side="right")
        assert marks is not None and np.array_equal(np.diff(marks), np.diff(documents))
        assert np.array_equal(labels == -100, np.isin(ids, starts))


@pytest.mark.parametrize("options", [{}, {"document_mask": True}, {"packing": "best_fit"}], ids=str)
def test_held_out_data_may_be_shorter_than_a_window(tmp_path: Path, options: dict[str, Any]) -> None:
    ids = np.array([3, 4, 5, 1, 6, 7, 8, 1] * 20, np.uint16)
    np.save(tmp_path / "train.npy", ids)
    np.save(tmp_path / "held_out.npy", ids[:10])
    config = training.TrainConfig(**SETTINGS | {"max_steps": 1} | options)
    model = LlamaForCausalLM(CONFIG.replace(eos_token_id=1))
    result = training.train(
        model, tmp_path / "train.npy", config, tmp_path / "run", eval_file=tmp_path / "held_out.npy", progress=False
    )
    assert result.eval_loss is not None


def test_padding_is_a_document_of_its_own_and_not_learned() -> None:
    rows = PackedRows(np.arange(9), np.array([0, 3, 5, 9]), window=4, vocab_size=9)
    batch = RowBatches(rows, rows.rows_per_epoch).batch(0)
    assert batch.attention_mask is not None and batch.document_ids is not None
    assert batch.attention_mask.sum() == 9 and batch.learned == 6
    padding = batch.attention_mask == 0
    assert (batch.labels[padding] == -100).all() and (batch.ids[padding] == 0).all()
    for marks, empty in zip(batch.document_ids, padding, strict=True):
        assert not set(marks[empty]) & set(marks[~empty])


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_a_packed_run_resumes_and_learns(packing: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [steps_of(60), steps_of(60, 1)])
    options: dict[str, Any] = SETTINGS | {"packing": packing, "document_mask": True, "save_every": 4}
    config = training.TrainConfig(max_steps=12, **options)
    model = fresh()
    result = training.train(model, folder, config, tmp_path / "whole", progress=False)

    class Stop(training.Callback):
        def on_checkpoint(self, run: training.Run, folder: Path) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(fresh(), folder, config, tmp_path / "parts", progress=False, callbacks=[Stop()])
    again = training.train(fresh(), folder, config, tmp_path / "parts", resume=True, progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert again.eval_loss == result.eval_loss and result.eval_loss is not None
    assert losses(tmp_path / "whole")[12] < losses(tmp_path / "whole")[1] - 0.5
    with pytest.raises(ValueError, match=r"document_mask was True and is False"):
        other = training.TrainConfig(max_steps=14, **(options | {"document_mask": False}))
        training.train(fresh(), folder, other, tmp_path / "parts", resume=True, progress=False)


def test_documents_of_a_token_file_are_found_by_the_ids_of_the_model(tmp_path: Path) -> None:
    tokens = np.array([5, 6, 7, 1, 5, 1, 8, 8, 1, 9], dtype=np.uint16)
    np.save(tmp_path / "a.npy", tokens)
    assert training.open_corpus(tmp_path / "a.npy").starts is None
    for ids, expected in (
        ({"ends": [1]}, [0, 4, 6, 9, 10]),
        ({"ends": [1, 9]}, [0, 4, 6, 9, 10]),
        ({"begins": [5]}, [0, 4, 10]),
        ({"ends": [63], "begins": [8]}, [0, 6, 7, 10]),
    ):
        starts = training.open_corpus(tmp_path / "a.npy", **ids).starts  # type: ignore[arg-type]
        assert starts is not None and starts.tolist() == expected
    np.save(tmp_path / "a.documents.npy", np.array([0, 2, 10]))
    starts = training.open_corpus(tmp_path / "a.npy", ends=[1]).starts
    assert starts is not None and starts.tolist() == [0, 2, 10]
    for wrong in ([0, 2, 9], [1, 10], [0, 4, 3, 10]):
        np.save(tmp_path / "a.documents.npy", np.array(wrong))
        with pytest.raises(ValueError, match=r"a\.documents\.npy: expected places that rise from 0 to 10"):
            training.open_corpus(tmp_path / "a.npy")


def test_packing_needs_documents(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full(400, 9, np.uint16))
    for options in ({"packing": "best_fit"}, {"document_mask": True}):
        config = training.TrainConfig(max_steps=1, **(SETTINGS | options))
        with pytest.raises(ValueError, match=r"a\.npy: .* its documents are not known: neither the EOS ids"):
            training.train(fresh(), tmp_path / "a.npy", config, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="packing is 'tight', expected concatenate or best_fit"):
        training.TrainConfig(packing="tight")
