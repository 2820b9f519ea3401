"""Data sets of Hugging Face's `datasets`: ``encode_dataset``, and ``map`` with our tokenizers as its function."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer

datasets = pytest.importorskip("datasets", reason="needs bpe_llama[hub]")

TEXTS = ["the quick", "fox", "", "brown the fox quick</s> the", "naïve 日本語 " * 9] * 40


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train_from_iterator(
        ["the quick brown fox naïve 日本語"] * 4, vocab_size=280, special_tokens=["<s>", "</s>"], progress=False
    )


@pytest.fixture
def rows() -> Any:
    return datasets.Dataset.from_dict({"label": list(range(len(TEXTS))), "text": TEXTS})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bos": True, "eos": True},
        {"bos": True, "max_length": 4},
        {"eos": True, "max_length": 3, "truncation_side": "left", "allowed_special": {"</s>"}},
        {"eos": True, "max_length": 1, "num_threads": 1},
    ],
    ids=str,
)
def test_rows_are_those_of_a_call(tok: Tokenizer, rows: Any, options: dict[str, Any]) -> None:
    expected = tok(TEXTS, **options)["input_ids"]
    found = tok.encode_dataset(rows, batch_size=37, **options)
    assert found.features == datasets.Features(
        label=datasets.Value("int64"), input_ids=datasets.List(datasets.Value("int32")), length=datasets.Value("int32")
    )
    assert found["input_ids"][:] == expected and found["label"][:] == list(range(len(TEXTS)))
    assert found["length"][:] == list(map(len, expected))
    lazy = tok.encode_dataset(rows.to_iterable_dataset(num_shards=2), batch_size=37, **options)
    assert isinstance(lazy, datasets.IterableDataset) and lazy.features == found.features
    assert [row["input_ids"] for row in lazy] == expected


def test_special_tokens_that_can_be_read_once_hold_for_every_batch(tok: Tokenizer, rows: Any) -> None:
    found = tok.encode_dataset(rows, batch_size=37, allowed_special=iter(["</s>"]))
    assert found["input_ids"][:] == tok(TEXTS, allowed_special={"</s>"})["input_ids"]


def test_splits_formats_and_generators(tok: Tokenizer, rows: Any) -> None:
    expected = tok(TEXTS)["input_ids"]
    for given in (datasets.DatasetDict(a=rows, b=rows.select([1])), datasets.IterableDatasetDict(a=rows)):
        found = tok.encode_dataset(given)
        assert type(found) is type(given) and [row["input_ids"] for row in found["a"]] == expected
    formatted = rows.select(range(150)).with_format("np", columns=["label"])  # the column of texts is hidden
    assert tok.encode_dataset(formatted)["input_ids"][:] == expected[:150]
    generated = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    assert [row["input_ids"] for row in tok.encode_dataset(generated)] == expected


@pytest.mark.parametrize("texts", [[], TEXTS], ids=["null", "text"])
def test_empty_splits_have_the_columns_of_the_others(tok: Tokenizer, texts: list[str]) -> None:
    rows = datasets.Dataset.from_dict({"text": texts, "label": list(range(len(texts)))}, split="train")
    found = tok.encode_dataset(datasets.DatasetDict(train=rows.select([]), test=rows))
    assert found["train"].column_names == ["label", "input_ids", "length"]
    assert found["train"].features == found["test"].features
    assert (len(found["train"]), found["train"].split) == (0, "train")
    if texts:
        assert len(datasets.concatenate_datasets([found["train"], found["test"]])) == len(texts)
        with pytest.raises(ValueError, match="column 'label' holds int64; expected text"):
            tok.encode_dataset(rows.select([]), "label")


@pytest.mark.parametrize("name", ["length", "input_ids"])
def test_columns_with_the_names_of_the_result_are_refused(tok: Tokenizer, rows: Any, name: str) -> None:
    message = f"the data set has a column '{name}', which encode_dataset writes; rename or remove it first"
    for column, data in (("text", rows.rename_column("label", name)), (name, rows.rename_column("text", name))):
        with pytest.raises(ValueError, match=message):
            tok.encode_dataset(data, column)
        generated = datasets.IterableDataset.from_generator(lambda data=data: iter(data))
        with pytest.raises(ValueError, match=message):
            next(iter(tok.encode_dataset(generated, column)))


def test_refusals(tok: Tokenizer, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = datasets.Dataset.from_dict({"text": ["a", None]})
    for data, options, error, message in (
        (["a"], {}, TypeError, "expected a data set of Hugging Face's datasets, got list"),
        (rows, {"column": "txt"}, ValueError, r"no column 'txt'; its columns are \['label', 'text'\]"),
        (rows, {"column": "label"}, ValueError, "column 'label' holds int64; expected text"),
        (broken, {}, ValueError, "column 'text' is null in row 1 of a batch; expected text"),
        (rows, {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (rows, {"num_threads": 0}, ValueError, "num_threads must be at least 1"),
        (rows, {"allowed_special": ["<x>"]}, ValueError, 'allowed_special names "<x>"'),
        (rows, {"bos": True, "eos": True, "max_length": 1}, ValueError, "the special tokens alone are 2"),
        (rows, {"truncation_side": "up"}, ValueError, "truncation_side must be one of 'left', 'right'"),
    ):
        with pytest.raises(error, match=message):
            tok.encode_dataset(data, **options)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'bpe_llama\[hub\]'"):
        tok.encode_dataset(rows)


def test_the_cache_is_found_by_other_processes_and_numbers_of_threads(
    tok: Tokenizer, rows: Any, tmp_path: Path
) -> None:
    tok.with_special_tokens([f"<{number}>" for number in range(9)]).save(tmp_path / "saved")
    script = """
import datasets
from bpe_llama import Tokenizer
tok = Tokenizer.from_file(path)
found = tok.encode_dataset(datasets.Dataset.from_dict({"text": ["a"]}))._fingerprint
found += datasets.fingerprint.Hasher.hash(tok)
"""
    path = str(tmp_path / "saved")
    command = [sys.executable, "-c", f"import sys; path = sys.argv[1]{script}print(found)", path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    here: dict[str, Any] = {"path": path}
    exec(script, here)
    assert done.stdout.strip() == here["found"], done.stderr
    one, two = (tok.encode_dataset(rows, num_threads=count)._fingerprint for count in (1, 2))
    assert one == two != tok.encode_dataset(rows, eos=True)._fingerprint
    assert pickle.loads(pickle.dumps(tok)).encode_dataset(rows)._fingerprint == one


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("door", [False, True], ids=["Tokenizer", "as_transformers"])
def test_map_in_forked_workers(tok: Tokenizer, rows: Any, door: bool, capfd: pytest.CaptureFixture[str]) -> None:
    if door:
        pytest.importorskip("transformers")
    call: Any = tok.as_transformers(num_threads=1) if door else tok
    options = {} if door else {"num_threads": 1}
    text = ["the quick brown fox " * 20_000] * 4
    expected = call(TEXTS)["input_ids"]
    tok.encode_batch(text, num_threads=2), call(text)  # threads have run before the fork
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # Python's own, of any threads
        mapped = rows.map(call, input_columns="text", batched=True, batch_size=50, num_proc=2, fn_kwargs=options)
    assert mapped["input_ids"][:] == expected and set(mapped.column_names) >= {"label", "text", "attention_mask"}
    written = capfd.readouterr().err
    assert "parallelism" not in written and "could not" not in written  # be hashed
