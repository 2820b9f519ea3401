"""The report at the end of training, against what encoding says."""

from __future__ import annotations

import gzip
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from bpe_llama import Tokenizer
from bpe_llama.report import peak_memory, report, report_tables


def test_a_report_equals_encoding(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    """25 files: 20 have a row, one of them compressed, 5 share one."""
    texts = [corpus[i % len(corpus)][: 200 + 100 * i] + "日本" * i for i in range(25)]
    for index, text in enumerate(texts):
        (tmp_path / f"{index:02}.txt").write_bytes(text.encode())
    (tmp_path / "24.txt").unlink()
    with gzip.open(tmp_path / "24.txt.gz", "wb", compresslevel=0) as file:
        file.write(texts[24].encode())
    found = report(tok, tmp_path, num_threads=2, progress=False)

    encoded = [tok.encode_ordinary(text) for text in texts]
    *largest, a, b, c, d, e = sorted(range(25), key=lambda i: -len(texts[i].encode()))
    expected = {(f"{i:02}.txt" if i < 24 else "24.txt.gz"): (len(texts[i].encode()), len(encoded[i])) for i in largest}
    smallest = (a, b, c, d, e)
    expected["5 more"] = (sum(len(texts[i].encode()) for i in smallest), sum(len(encoded[i]) for i in smallest))
    expected["total"] = (sum(len(text.encode()) for text in texts), sum(map(len, encoded)))
    assert {row.name: (row.num_bytes, row.num_tokens) for row in found.rows} == expected
    assert found.rows[0].name.endswith("24.txt.gz") and found.rows[-1].name == "total"
    assert found.rows[-1].bytes_per_token == pytest.approx(expected["total"][0] / expected["total"][1])

    counts = Counter(tok.id_to_bytes(token_id) for ids in encoded for token_id in ids)
    merged = [token for token in tok.mergeable_ranks if len(token) > 1]
    rarest = sorted((counts[token], tok.mergeable_ranks[token], token) for token in merged if token in counts)[:10]
    assert found.rarest == [(token, count) for count, _, token in rarest]
    assert found.unused == len(set(merged) - set(counts)) > 0
    assert list(map(len, found.longest)) == sorted(map(len, tok.mergeable_ranks), reverse=True)[:10]
    cuts = {token for token in tok.mergeable_ranks if token.decode("utf-8", "replace").encode() != token}
    assert found.cut == sum(len(token) > 1 for token in cuts) > 0
    assert found.cut_share == pytest.approx(sum(counts[token] for token in cuts) / counts.total())
    assert 0 < found.cut_share < 1


def test_bytes_are_those_of_the_text_and_not_of_its_tokens(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(["ab"], tokenizers.trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet))
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("ab")
    found = report(Tokenizer.from_file(tmp_path / "tokenizer.json"), tmp_path / "a.txt", progress=False)
    assert (found.rows[0].num_bytes, found.rows[0].num_tokens) == (2, 3)


def test_no_text(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    found = report(tok, tmp_path / "empty.txt", progress=False)
    assert [(row.num_bytes, row.num_tokens, row.bytes_per_token) for row in found.rows] == [(0, 0, 0.0)] * 2
    assert (found.rarest, found.cut_share) == ([], 0.0)
    with pytest.raises(FileNotFoundError):
        report(tok, tmp_path / "missing.txt")


def test_progress_counts_all_files(tok: Tokenizer, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("some text " * 100, encoding="utf-8")
    seen = []
    report(tok, tmp_path, progress=seen.append)
    assert {update.total for update in seen} == {2000}
    assert seen[-1].done == 2000
    assert [update.done for update in seen] == sorted(update.done for update in seen)


def test_tables_are_text_where_no_terminal_is(
    tok: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "[b]é.txt").write_text("Ünïcödé [bold] def " * 50, encoding="utf-8")
    Console(soft_wrap=True).print(report_tables(report(tok, tmp_path, progress=False)))
    out = capsys.readouterr().out
    assert "[b]é.txt" in out and "1,150" in out and "cut characters" in out and "\x1b" not in out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_memory_is_in_bytes() -> None:
    peak = peak_memory()
    assert peak is not None and 10e6 < peak < 1e12
