"""Token shards: a folder that does not fit its index is refused, and the fault is named."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpe_llama import Tokenizer
from bpe_llama._corpus import shards as module
from bpe_llama._corpus.shards import fingerprint, open_shards


@pytest.fixture
def folder(tok: Tokenizer, tmp_path: Path) -> Path:
    """Return a folder of four shards of two documents each."""
    (tmp_path / "a.txt").write_text("|".join(f"document {number}" for number in range(8)))
    shards = tok.encode_corpus(tmp_path / "a.txt", tmp_path / "shards", separator="|", shard_tokens=10, progress=False)
    assert [shard.documents for shard in shards.shards] == [2, 2, 2, 2]
    return tmp_path / "shards"


def test_reading_across_shards_with_few_files_open(
    folder: Path, tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OPEN_FILES", 2)
    shards = open_shards(folder)
    documents = [tok.encode(f"document {number}", eos=True) for number in range(8)]
    everything = [i for ids in documents for i in ids]
    assert len(shards) == len(everything)
    for start in range(len(everything) + 1):
        for stop in range(start, len(everything) + 1):
            assert shards.read(start, stop).tolist() == everything[start:stop]
    again = pickle.loads(pickle.dumps(shards))
    assert again == shards and len(pickle.dumps(shards)) < 2000
    assert [again.document(number).tolist() for number in range(8)] == documents
    assert len(shards._maps) == 2
    for call in (lambda: shards.read(-1, 2), lambda: shards.read(3, 2), lambda: shards.read(0, len(shards) + 1)):
        with pytest.raises(IndexError, match=f"of {len(shards)} in "):
            call()
    for number in (-1, 8):
        with pytest.raises(IndexError, match=f"document {number} of 8"):
            shards.document(number)


def change(key: str, value: object, shard: int | None = None) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        target = index if shard is None else index["shards"][shard]
        if value is None:
            del target[key]
        else:
            target[key] = value
        (folder / "index.json").write_text(json.dumps(index))

    return do


def array(name: str, values: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, values)


def cut(name: str, by: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "index.json").unlink(), r"no index of token shards"),
        (lambda folder: (folder / "index.json").write_text("[1]"), r"index\.json: expected a JSON object"),
        (lambda folder: (folder / "index.json").write_text("{"), r"index\.json: not valid JSON"),
        (lambda folder: (folder / "shard-00001.npy").unlink(), r"missing.*shard-00001\.npy"),
        (lambda folder: (folder / "shard-00001.documents.npy").unlink(), r"missing.*shard-00001\.documents\.npy"),
        (change("format", "other"), r"format is 'other', expected 'bpe_llama\.token_shards'"),
        (change("version", 2), r"version is 2, expected 1"),
        (change("compressed", True), r"unknown key 'compressed'"),
        (change("zip", 1, shard=2), r"shard 2: unknown key 'zip'"),
        (change("bytes", None), r"no 'bytes'"),
        (change("documents", None, shard=1), r"shard 1: no 'documents'"),
        (change("dtype", "uint32"), r"dtype is 'uint32', expected 'uint16' for 1,000 ids"),
        (change("dtype", "float32"), r"dtype is 'float32'"),
        (change("tokens", 5), r"tokens is 5, but those of its shards are"),
        (change("documents", 9), r"documents is 9, but those of its shards are 8"),
        (change("bytes", True), r"bytes is True, expected a whole number"),
        (change("tokens", -1, shard=0), r"shard 0: tokens is -1, expected a whole number"),
        (change("file", "../x.npy", shard=3), r"shard 3: file is '\.\./x\.npy', expected the name"),
        (change("file", "shard-00000.npy", shard=1), r"a file is listed twice"),
        (change("shards", {}), r"shards is \{\}, expected a list"),
        (change("ends", [1000]), r"ends is \[1000\], expected ids below 1000"),
        (change("begins", "1"), r"begins is '1', expected ids"),
        (change("tokenizer", 5), r"tokenizer is 5, expected a fingerprint"),
        (cut("shard-00002.npy", 2), r"shard-00002\.npy: not a complete \.npy file"),
        (cut("shard-00002.npy", 100), r"shard-00002\.npy: not a complete \.npy file"),
        (cut("shard-00002.npy", -2), r"shard-00002\.npy: 1\d\d bytes, expected 1\d\d: more follow the array"),
        (cut("shard-00002.documents.npy", 8), r"shard-00002\.documents\.npy: not a complete \.npy file"),
        (
            array("shard-00000.npy", np.zeros(3, np.uint16)),
            r"shard-00000\.npy: uint16 of shape \(3,\), where index\.json",
        ),
        (array("shard-00000.npy", np.zeros(12, np.float32)), r"shard-00000\.npy: float32 of shape"),
        (array("shard-00000.npy", np.zeros((2, 2), np.uint16)), r"shard-00000\.npy: uint16 of shape \(2, 2\)"),
        (array("shard-00000.documents.npy", np.array([0, 7, 5])), r"documents\.npy: offsets 0 to 5, expected 0 to "),
        (array("shard-00000.documents.npy", np.array([1, 2, 12])), r"documents\.npy: offsets 1 to 12, expected 0 to"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, damage: Callable[[Path], None], complaint: str) -> None:
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        open_shards(folder)


def test_offsets_must_increase(folder: Path) -> None:
    tokens = open_shards(folder).shards[1].tokens
    np.save(folder / "shard-00001.documents.npy", np.array([0, tokens + 1, tokens]))
    with pytest.raises(ValueError, match=rf"offsets must increase, but document 1 goes from {tokens + 1} to {tokens}"):
        open_shards(folder)
    # Each difference is positive in 64 bits.
    np.save(folder / "shard-00001.documents.npy", np.array([0, 2**62, 1 - 2**63, -(2**62), tokens]))
    edit = json.loads((folder / "index.json").read_text())
    edit["documents"] += 4 - edit["shards"][1]["documents"]
    edit["shards"][1]["documents"] = 4
    (folder / "index.json").write_text(json.dumps(edit))
    with pytest.raises(ValueError, match=rf"offsets must increase, but document 1 goes from {2**62} to {1 - 2**63}"):
        open_shards(folder)


def test_the_fingerprint_is_that_of_the_ids(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "tokenizer.json")
    assert fingerprint(tok) == fingerprint(Tokenizer.from_file(tmp_path / "tokenizer.json"))
    assert fingerprint(tok) == fingerprint(pickle.loads(pickle.dumps(tok)))
    assert fingerprint(tok) != fingerprint(tok.with_tokens(["word"]))
