"""What the tests of `encode_corpus` share: a corpus with a file of each kind, and the check of a folder of shards."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bpe_llama._corpus.shards import TokenShards

pyarrow = pytest.importorskip("pyarrow")  # in the dev extra: absent only where no wheel of it exists
pyarrow.parquet = pytest.importorskip("pyarrow.parquet")

DOCUMENTS = ["one", "two words, 日本語 é\n", "", "  three\n\n\n", "12345 it's <|end|>"] * 3


def write_corpus(folder: Path) -> tuple[Path, list[str]]:
    """Write one file of each kind, and return the folder and its documents in the order of the files' names."""
    folder.mkdir()
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in DOCUMENTS)
    (folder / "a.jsonl").write_bytes(lines)
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), folder / "b.parquet", row_group_size=2)
    (folder / "c.txt").write_text("<sep>".join(DOCUMENTS), "utf-8")
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "e.ndjson.zst").write_bytes(pyarrow.compress(lines, codec="zstd", asbytes=True))
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), folder / "f.parquet")
    (folder / "g.md.gz").write_bytes(gzip.compress(b"last"))
    return folder, [*DOCUMENTS * 6, "last"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(shards: TokenShards, expected: list[list[int]], shard_tokens: int) -> None:
    """Check all that a folder says against the documents' ids."""
    assert (shards.documents, shards.tokens) == (len(expected), sum(map(len, expected)))
    assert shards.read(0, shards.tokens).tolist() == [i for ids in expected for i in ids]
    assert [shards.document(number).tolist() for number in range(shards.documents)] == expected
    for number, shard in enumerate(shards.shards):
        ids, offsets = shards.ids(number), shards.offsets(number)
        assert np.array_equal(np.load(shards.folder / shard.file), ids)
        if number < len(shards.shards) - 1:
            assert len(ids) >= shard_tokens > offsets[-2], "it ends with the document that reaches the size"
