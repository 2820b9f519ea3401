"""Corpora of compressed files, JSON lines and Parquet rows, and the ids that their documents have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer

pyarrow = pytest.importorskip("pyarrow")  # in the dev extra: absent only where no wheel of it exists
parquet = pytest.importorskip("pyarrow.parquet")


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def line(text: str, field: str = "text") -> bytes:
    return json.dumps({"n": [1], field: text, "last": None}).encode()


def jsonl(documents: Iterable[str], field: str = "text") -> bytes:
    return b"".join(line(text, field) + b"\n" for text in documents)


def write_parquet(path: Path, documents: list[str | None], field: str = "text", kind: str = "string") -> None:
    """Write rows, 2 a group; ``kind`` is Arrow's type, or ``dictionary``."""
    column = pyarrow.array(documents, pyarrow.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    parquet.write_table(pyarrow.table({"n": list(range(len(documents))), field: column}), path, row_group_size=2)


def write_parquet_bytes(path: Path, documents: list[bytes]) -> None:
    """Write what other writers put into a string column without checking it."""
    parquet.write_table(pyarrow.table({"text": pyarrow.array(documents).view("string")}), path)


def ids_of(tok: Tokenizer, documents: Iterable[str]) -> list[int]:
    return [i for text in documents for i in tok.encode(text, eos=True)]


def encoded(tok: Tokenizer, paths: object, folder: Path, **options: object) -> list[int]:
    """Return the ids of `encode_files`, which wrote ``ids.npy``."""
    count = tok.encode_files(paths, out=folder / "ids.npy", **({"progress": False} | options))  # type: ignore[arg-type]
    ids = np.load(folder / "ids.npy")
    assert (ids.ndim, len(ids)) == (1, count)
    return ids.tolist()
