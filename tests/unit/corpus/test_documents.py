"""Documents as text: those that `encode_files` encodes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.documents import read_documents

pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = ["one\r\ntwo\n\n", "", "été 日本 \ufeff", "a|b|"]
LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS)
FILES = {
    "a.txt": "\ufeffone\r\ntwo\n",
    "empty.md": "",
    "parts.txt": "one|two||",
    "rows.jsonl": "\ufeff" + LINES + "\n \n",
    "rows.ndjson": LINES,
}


@pytest.mark.parametrize("name", [*FILES, "packed.txt.gz", "packed.jsonl.gz", "table.parquet"])
@pytest.mark.parametrize("separator", [None, "|"])
def test_documents_are_those_of_encode_files(name: str, separator: str | None, tmp_path: Path) -> None:
    path, out = tmp_path / name, tmp_path / "out.npy"
    if name in FILES:
        path.write_bytes(FILES[name].encode())
    elif name == "table.parquet":
        parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    else:
        path.write_bytes(gzip.compress((LINES if "jsonl" in name else "one|two").encode()))
    tok = Tokenizer.train_from_iterator(["one two"], vocab_size=258, special_tokens=["<e>"], progress=False)
    found = list(read_documents([path], separator=separator, bad_rows=BadRows("raise")))
    end = tok.special_tokens["<e>"]
    tok.encode_files(path, out, eos=False, separator=separator, progress=False)
    assert np.load(out).tolist() == [token for text in found for token in tok.encode(text)]
    core = Tokenizer.from_ranks(tok.mergeable_ranks, special_tokens={"<|endoftext|>": end})
    core.encode_files(path, out, eos=True, separator=separator, progress=False)
    assert np.load(out).tolist() == [token for text in found for token in [*core.encode(text), end]]


def test_bad_documents_are_named_or_skipped(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(
        b'{"text": "a"}\n{"no": 1}\n{"text": 3}\n["text"]\n{"text": "\\ud800"}\nnot json\n\xff\n{"text": "b"}\n'
    )
    bad_rows = BadRows("skip")
    assert list(read_documents([rows], bad_rows=bad_rows)) == ["a", "b"]
    assert (bad_rows.count, bad_rows.first) == (6, f"{rows}, line 2: no field 'text'")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: no field 'text'"):
        list(read_documents([rows], bad_rows=BadRows("raise")))
    text = tmp_path / "text.txt"
    text.write_bytes(b"one|\xff|two|")
    assert list(read_documents([text], separator="|", bad_rows=BadRows("skip"))) == ["one", "two"]
    with pytest.raises(ValueError, match=r"text\.txt, document 1: not UTF-8"):
        list(read_documents([text], separator="|", bad_rows=BadRows("raise")))
    with pytest.raises(ValueError, match="separator is an empty string"):
        list(read_documents([text], separator="", bad_rows=BadRows("raise")))
