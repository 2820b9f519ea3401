"""Saving, loading, and files of ids."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer


def test_tokenizer_json_keeps_everything(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    tok.save(tmp_path / "tokenizer.json")
    for again in (
        Tokenizer.from_file(tmp_path / "tokenizer.json"),
        Tokenizer.from_file(str(tmp_path)),
        Tokenizer.from_huggingface(tmp_path / "tokenizer.json"),
    ):
        assert again.encode(corpus[0]) == tok.encode(corpus[0])
        assert again.mergeable_ranks == tok.mergeable_ranks
        assert again.special_tokens == tok.special_tokens
        assert again.pattern == tok.pattern
        assert again.merges == tok.merges
        assert (again.vocab_size, again.bos_id, again.eos_id) == (tok.vocab_size, tok.bos_id, tok.eos_id)


def test_tiktoken_files_keep_ranks(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    tok.save(tmp_path / "vocab.tiktoken")
    again = Tokenizer.from_tiktoken(tmp_path / "vocab.tiktoken", pattern=tok.pattern, special_tokens=tok.special_tokens)
    assert again.mergeable_ranks == tok.mergeable_ranks
    assert again.encode(corpus[0]) == tok.encode(corpus[0])


def test_ranks_in_memory(tok: Tokenizer, corpus: list[str]) -> None:
    again = Tokenizer.from_ranks(tok.mergeable_ranks, pattern=tok.pattern, special_tokens=tok.special_tokens)
    assert again.encode(corpus[0]) == tok.encode(corpus[0])


def test_an_unknown_suffix_is_named(tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.pickle"):
        tok.save(tmp_path / "vocab.pickle")
    assert list(tmp_path.iterdir()) == []


def test_saving_leaves_no_temporary_file_and_replaces_whole(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("old")
    tok.save(tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))


def test_saving_into_a_folder_that_is_not_there_raises(tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        tok.save(tmp_path / "missing" / "tokenizer.json")


def test_encode_files_equals_encoding_each_document(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    paths = []
    for index, text in enumerate(corpus):
        paths.append(tmp_path / f"{index}.txt")
        paths[-1].write_bytes(text.encode())
    tok.encode_files(paths, out=tmp_path / "ids.npy")
    ids = np.load(tmp_path / "ids.npy")
    assert ids.dtype == np.uint16, "a vocabulary of 1,000 fits"
    assert ids.tolist() == [i for text in corpus for i in tok.encode(text, eos=True)]
    tok.encode_files(paths, out=tmp_path / "ids.npy", eos=False)
    assert np.load(tmp_path / "ids.npy").tolist() == [i for text in corpus for i in tok.encode(text)]


def test_encode_files_cuts_at_a_separator(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<sep>two<sep>three", encoding="utf-8")
    tok.encode_files([tmp_path / "a.txt"], out=tmp_path / "ids.npy", separator="<sep>")
    expected = [i for text in ("one", "two", "three") for i in tok.encode(text, eos=True)]
    assert np.load(tmp_path / "ids.npy").tolist() == expected


def test_encode_files_reads_compressed_text(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(corpus[0].encode()))
    tok.encode_files([tmp_path / "a.txt.gz"], out=tmp_path / "ids.npy")
    assert np.load(tmp_path / "ids.npy").tolist() == tok.encode(corpus[0], eos=True)


def test_encode_files_that_fails_leaves_no_file(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine", encoding="utf-8")
    with pytest.raises(OSError, match=r"missing\.txt"):
        tok.encode_files([tmp_path / "a.txt", tmp_path / "missing.txt"], out=tmp_path / "ids.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
