"""Shards, and corpora mixed by weight."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama import Tokenizer
from bpe_llama._core import shown
from bpe_llama._corpus.shards import fingerprint
from bpe_llama.chat import with_chat_template
from bpe_llama.model import LlamaForCausalLM, training
from bpe_llama.model.training.data.rows import Mixture, Windows, count_below
from tests.model.training.helpers import CONFIG, SETTINGS, fresh, losses, steps_of, write_shards


def run(data: Any, out: Path, **options: Any) -> training.TrainResult:
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 3} | options))
    return training.train(fresh(), data, config, out, progress=False)


def test_shards_are_one_sequence_of_documents(tmp_path: Path) -> None:
    documents = [steps_of(5), steps_of(3, 1), [], steps_of(4, 2)]
    corpus = training.open_corpus(write_shards(tmp_path / "shards", documents), 64)
    flat = [token for shard in documents for document in shard for token in document]
    assert len(corpus.tokens) == len(flat) and corpus.tokens[:].tolist() == flat
    for begin, end in ((0, 3), (10, 190), (40, 40), (5, 10_000)):
        assert corpus.tokens[begin:end].tolist() == flat[begin:end]
    assert corpus.starts is not None
    found = [corpus.tokens[a:b].tolist() for a, b in zip(corpus.starts, corpus.starts[1:], strict=False)]
    assert found == [document for shard in documents for document in shard]


def test_shards_train_as_the_same_tokens_in_one_file(tmp_path: Path) -> None:
    documents = [steps_of(40), steps_of(40, 1)]
    np.save(tmp_path / "a.npy", np.array([t for shard in documents for d in shard for t in d], np.uint16))
    folder = write_shards(tmp_path / "shards", documents)
    one = run(tmp_path / "a.npy", tmp_path / "0", eval_fraction=0.0)
    several = run(folder, tmp_path / "1", eval_fraction=0.0)
    assert losses(tmp_path / "0") == losses(tmp_path / "1") and one.tokens == several.tokens
    alone = run(folder / "shard-00000.npy", tmp_path / "2", packing="best_fit")  # a shard is a token file
    assert alone.eval_loss is not None


@given(st.integers(0, 200), st.integers(1, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_counting_terms_below_a_bound(n: int, modulus: int, data: st.DataObject) -> None:
    step, offset = (data.draw(st.integers(0, modulus - 1)) for _ in range(2))
    bound = data.draw(st.integers(0, modulus))
    expected = sum((step * i + offset) % modulus < bound for i in range(n))
    assert count_below(n, bound, step, offset, modulus) == expected


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_mixture_keeps_its_weights_and_counts_each_corpus(weights: list[float], seed: int) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    corpora = [Windows(tokens, window=10, vocab_size=100, name=str(n), stream=n) for n in range(len(weights))]
    mixture = Mixture(corpora, weights, seed)
    seen = [0] * len(weights)
    for index in range(400):
        assert mixture.counts(index) == seen
        corpus, place = mixture.place(index)
        assert place == seen[corpus]
        seen[corpus] += 1
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - (index + 1) * weight / sum(weights)) < 4
    again = Mixture(corpora, weights, seed)
    assert [again.place(index) for index in (399, 5, 6)] == [mixture.place(index) for index in (399, 5, 6)]
    many = 10**9
    for count, weight in zip(mixture.counts(many), weights, strict=True):
        assert abs(count / many - weight / sum(weights)) < 1e-7
    assert mixture.tokens_before(400) == 4000
    assert mixture.epochs(400) == {str(n): count / corpora[n].rows_per_epoch for n, count in enumerate(seen)}


def test_a_mixture_reports_its_epochs_and_resumes(tmp_path: Path) -> None:
    small, large = write_shards(tmp_path / "a", [steps_of(6)]), write_shards(tmp_path / "b", [steps_of(90, 1)])
    data = {small: 0.25, str(large): 0.75}
    result = run(data, tmp_path / "whole", max_steps=8, packing="best_fit")
    last = training.read_metrics(tmp_path / "whole" / "metrics.jsonl")[-2]
    rows = 8 * SETTINGS["batch_size"]
    assert last["epochs/" + str(small)] > 1 > last["epochs/" + str(large)] > 0
    assert last["padding"] == pytest.approx(1 - result.tokens / (rows * SETTINGS["sequence_length"]), abs=1e-5)
    assert last["data_wait"] >= 0 and result.eval_loss is not None
    assert rows * SETTINGS["sequence_length"] * 0.8 < result.tokens <= rows * SETTINGS["sequence_length"]
    run(data, tmp_path / "parts", max_steps=8, packing="best_fit", save_every=3)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 9, "packing": "best_fit", "save_every": 3}))
    with pytest.raises(ValueError, match=r"cannot resume: the data was 0\.25 of .* and is 0\.5 of"):
        training.train(fresh(), {small: 1, large: 1}, config, tmp_path / "parts", resume=True)
    by_size = run([small, large], tmp_path / "size", max_steps=1)
    assert by_size.tokens == 64


Change = Callable[[Path], object]
BAD: dict[str, tuple[Change, str]] = {
    "no index": (lambda f: (f / "index.json").unlink(), "index"),
    "a shard is missing": (lambda f: (f / "shard-00001.npy").unlink(), r"missing.*shard-00001\.npy"),
    "a shard is short": (lambda f: cut(f / "shard-00001.npy"), r"shard-00001\.npy.*not a complete"),
    "documents are short": (lambda f: cut(f / "shard-00000.documents.npy"), r"shard-00000\.documents\.npy"),
    "a shard of another folder": (
        lambda f: shutil.copy(f / "shard-00000.npy", f / "shard-00001.npy"),
        r"shard-00001\.npy.*index\.json says",
    ),
    "vocabulary": (lambda f: write_shards(f, [steps_of(50)], vocab_size=70), "vocab_size is 70, but the model's is 64"),
    "too few tokens": (lambda f: write_shards(f, [[[1, 2]]]), "tokens are too few|expected at least one window"),
    "no tokens": (lambda f: write_shards(f, [[]]), "holds no tokens"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("case", BAD)
def test_bad_shards_are_named_before_the_first_step(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    folder = write_shards(tmp_path / "shards", [steps_of(20), steps_of(30, 1)])
    change(folder)
    with pytest.raises((ValueError, OSError), match=message):
        run(folder, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_added_tokens_leave_the_fingerprint_of_ids_with_holes() -> None:
    tok = Tokenizer.from_ranks(
        {bytes([byte]): byte for byte in range(256)}, pattern="gpt2", special_tokens={"<a>": 300}
    )
    more = tok.with_special_tokens(["<b>"])
    assert more.vocab_size == 302 and fingerprint(more) != fingerprint(tok)
    assert fingerprint(more, tok.vocab_size) == fingerprint(tok, tok.vocab_size) == fingerprint(tok)


def test_shards_of_another_tokenizer_are_refused_unless_it_only_lacks_added_tokens(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and ran. " * 60)
    own, other = (
        Tokenizer.train_from_iterator([text] * 3, vocab_size=260, progress=False) for text in ("the cat", "a mat and")
    )
    own.encode_corpus(tmp_path / "text.txt", tmp_path / "shards", progress=False)
    np.save(tmp_path / "ids.npy", np.arange(200, dtype=np.uint16))
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 1}))
    model = LlamaForCausalLM(CONFIG.replace(vocab_size=264))
    for data in ({"data": tmp_path / "shards"}, {"data": tmp_path / "ids.npy", "eval_file": tmp_path / "shards"}):
        with pytest.raises(
            ValueError, match=r"shards: another tokenizer encoded it: .*expected the same tokenizer, or one with more"
        ):
            training.train(model, **data, config=config, out=tmp_path / "run", tokenizer=other, progress=False)
        for tokenizer in (own, with_chat_template(own, "chatml", add_tokens=True), None):
            out = tmp_path / f"{len(data)}-{tokenizer and tokenizer.vocab_size}"
            training.train(model, **data, config=config, out=out, tokenizer=tokenizer, progress=False)


def test_bad_data_are_named_before_the_first_step(tmp_path: Path) -> None:
    a, b = write_shards(tmp_path / "a", [steps_of(50)]), write_shards(tmp_path / "b", [steps_of(50)], tokenizer="other")
    for weight in (0, -1.0, math.nan, math.inf, "much", 1e308, 5e-324, 10**400):
        said = re.escape(shown(weight))
        with pytest.raises(ValueError, match=rf"the weight of .*a is {said}, expected a positive number"):
            run({a: weight, tmp_path / "absent": 1.0}, tmp_path / "run")
    with pytest.raises(ValueError, match=r"different tokenizers encoded .*a and .*b"):
        run([a, b], tmp_path / "run")
    with pytest.raises(ValueError, match="given twice"):
        run([a, a], tmp_path / "run")
    with pytest.raises(ValueError, match="no data"):
        run({}, tmp_path / "run")
    with pytest.raises(TypeError, match="data are a int"):
        run(7, tmp_path / "run")
    np.save(tmp_path / "large.npy", np.array([*range(60)] * 9 + [64], np.uint16))
    with pytest.raises(ValueError, match=r"large\.npy: token 64 at position 540 is outside the model's vocabulary"):
        run(tmp_path / "large.npy", tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_rows_of_ranks() -> None:
    batch = training.Batch(*[np.arange(10).reshape(5, 2)] * 2, document_ids=np.zeros((5, 2), np.int64))
    for world in range(1, 6):
        parts = [batch.rows(rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate([part.ids for part in parts]), batch.ids)
        sizes = [len(part.ids) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(part.attention_mask is None and part.document_ids is not None for part in parts)
    with pytest.raises(ValueError, match="6 ranks share micro-batches of 5 rows; expected a batch_size of at least 6"):
        batch.rows(0, 6)
