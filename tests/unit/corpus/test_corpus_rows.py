"""Rows of a corpus that hold no text: an error that names the place, or skipped and counted, on every road."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer, WordCounts
from bpe_llama import report as reporting
from tests.unit.corpus.written import encoded, ids_of, line, write_parquet, write_parquet_bytes, zstd

MARK = b"\xef\xbb\xbf"

# Lines without text, and what is said of each.
BAD_LINES = [
    (b"null", "null"),
    (b'{"text": null}', 'field "text" is null'),
    (b'{"t": "a"}', 'no field "text"'),
    (b'{"text": 3}', "integer `3`"),
    (b'{"text": "a', "EOF while parsing a string"),
    (b"plain words", "expected value at column 1"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b'{"text": "half \\udc00 alone"}', "lone surrogate"),
    (b'{"text": "caf\xe9"}', "invalid UTF-8 at byte 13 of the line"),
    (MARK + b'{"text": "a"}', "expected value at column 1"),
]


@pytest.mark.parametrize(("bad", "what"), BAD_LINES)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_text_is_named_or_skipped(
    tok: Tokenizer, tmp_path: Path, bad: bytes, what: str, end: bytes
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([line("low lower 😀"), b" ", line("lowest"), bad]) + end)

    def encode(on_error: str) -> list[int]:  # in this file, which its warning has to name
        tok.encode_files(path, tmp_path / "ids.npy", on_error=on_error, progress=False)
        return np.load(tmp_path / "ids.npy").tolist()

    roads: list[Callable[[str], object]] = [
        encode,
        lambda on_error: WordCounts.from_files(path, on_error=on_error, progress=False),
        lambda on_error: Tokenizer.train(path, 258, on_error=on_error, progress=False).merges,
        lambda on_error: reporting.report(tok, path, on_error=on_error, progress=False).rows[-1].num_tokens,
    ]
    found = []
    for road in roads:
        with pytest.raises(ValueError) as error:
            road("raise")
        assert f"{path}, line 4: " in str(error.value) and what in str(error.value)
        with pytest.warns(UserWarning) as warned:
            found.append(road("skip"))
        assert [str(warning.message) for warning in warned] == [f"skipped 1 row without text; the first: {error.value}"]
        assert warned[0].filename == __file__
    texts = ["low lower 😀", "lowest"]
    assert found[0] == ids_of(tok, texts)
    assert found[1] == WordCounts.from_iterator(texts, progress=False)
    assert found[2] == Tokenizer.train_from_iterator(texts, 258, progress=False).merges
    assert found[3] == len(ids_of(tok, texts)) - 2


def test_raise_is_the_default(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"null\n")
    (tmp_path / "ids.npy").write_bytes(b"as it was")
    for road in (tok.encode_files, WordCounts.from_files, Tokenizer.train):
        second = {tok.encode_files: [tmp_path / "ids.npy"], Tokenizer.train: [300]}.get(road, [])
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: .*null"):
            road(tmp_path / "rows.jsonl", *second)
        for word in ("ignore", ""):
            with pytest.raises(ValueError, match=rf"on_error is {word!r}; expected 'raise' or 'skip'"):
                road(tmp_path / "rows.jsonl", *second, on_error=word)
        with pytest.raises(TypeError, match="on_error must be a str, got None"):
            road(tmp_path / "rows.jsonl", *second, on_error=None)
    with pytest.raises(ValueError, match="on_error is 'no'"):
        reporting.report(tok, tmp_path / "rows.jsonl", on_error="no")
    assert (tmp_path / "ids.npy").read_bytes() == b"as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "ids.npy"}


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.ndjson.zst", zstd)])
def test_a_long_file_loses_its_bad_lines_and_no_other(
    tok: Tokenizer, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """A mark at the start, bad lines among the others and more of them in a row than are read at a time."""
    lines, kept = [], []
    for index in range(40_000):
        if index % 5 == 2 or 10_000 <= index < 30_000:
            lines.append(BAD_LINES[index % len(BAD_LINES)][0])
        else:
            kept.append(f"line {index}, 日本語")
            lines.append(line(kept[-1]))
    data = MARK + b"\n".join(lines)
    assert len(data) > 3 << 18
    (tmp_path / name).write_bytes(pack(data))
    expected, counts = ids_of(tok, kept), WordCounts.from_iterator(kept, progress=False)
    message = rf"skipped {40_000 - len(kept):,} rows without text; the first: .*{name}, line 3: no field"
    for num_threads in (1, 2, 5):
        with pytest.warns(UserWarning, match=message):
            assert encoded(tok, tmp_path / name, tmp_path, on_error="skip", num_threads=num_threads) == expected
        with pytest.warns(UserWarning, match=message):
            found = WordCounts.from_files(tmp_path / name, on_error="skip", num_threads=num_threads, progress=False)
        assert found == counts


def test_a_mark_at_the_start_of_a_file_is_no_text(tok: Tokenizer, tmp_path: Path) -> None:
    """As Python's utf-8-sig reads it; anywhere else it is text. pyarrow reads such JSON lines so too."""
    import pyarrow.json

    for text in ("words", "\ufeff", "\ufeffwords", "words \ufeff words\n\ufeff", "", "\ufeff\ufeffwords"):
        data = text.encode()
        for name, packed in (("a.txt", data), ("a.txt.gz", gzip.compress(data)), ("a.zst", zstd(data))):
            (tmp_path / name).write_bytes(packed)
            for on_error in ("raise", "skip"):
                found = encoded(tok, tmp_path / name, tmp_path, on_error=on_error)
                assert found == ids_of(tok, [data.decode("utf-8-sig")])
    (tmp_path / "a.jsonl").write_bytes(MARK + line("one") + b"\n" + line("\ufefftwo"))
    rows = pyarrow.json.read_json(tmp_path / "a.jsonl").column("text").to_pylist()
    assert rows == ["one", "\ufefftwo"]
    assert encoded(tok, tmp_path / "a.jsonl", tmp_path) == ids_of(tok, rows)


@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.zst", zstd)])
def test_a_document_that_is_not_utf8_is_left_out_whole(
    tok: Tokenizer, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """Where a separator cuts the file, one document; else the file. What was given out in parts is not half there."""
    long = "good words 日本語 " * 40_000
    parts = [b"one", long.encode() + b"\xff", b"caf\xe9", long.encode(), b"\xe6\x97", b"last"]
    (tmp_path / name).write_bytes(pack(b"<sep>".join(parts)))
    with pytest.raises(ValueError) as error:
        encoded(tok, tmp_path / name, tmp_path, separator="<sep>")
    assert str(error.value) == f"{tmp_path / name}: invalid UTF-8 at byte {8 + len(long.encode())}"
    for num_threads in (1, 3):
        with pytest.warns(UserWarning) as warned:
            options = {"on_error": "skip", "separator": "<sep>", "num_threads": num_threads}
            assert encoded(tok, tmp_path / name, tmp_path, **options) == ids_of(tok, ["one", long, "last"])
        assert str(warned[0].message) == f"skipped 3 rows without text; the first: {error.value}"
    (tmp_path / "fine.txt").write_text("fine")
    with pytest.warns(UserWarning, match=r"skipped 1 row .*: invalid UTF-8 at byte \d+$"):
        paths = [tmp_path / name, tmp_path / "fine.txt"]
        assert encoded(tok, paths, tmp_path, on_error="skip") == ids_of(tok, ["fine"])


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_parquet_row_without_text_is_named_or_skipped(tok: Tokenizer, tmp_path: Path, kind: str) -> None:
    texts = ["one", None, *(f"row {n}" for n in range(600)), None]
    path = tmp_path / "rows.parquet"
    write_parquet(path, texts, kind=kind)
    kept = [text for text in texts if text is not None]
    place = f"{path}, row 1: column 'text' is null, where text was expected"
    for road in (
        lambda **options: encoded(tok, path, tmp_path, **options),
        lambda **options: WordCounts.from_files(path, progress=False, **options),
        lambda **options: Tokenizer.train(path, 258, progress=False, superword_from=257, **options).merges,
    ):
        with pytest.raises(ValueError) as error:
            road()
        assert str(error.value) == place
    with pytest.warns(UserWarning) as warned:
        assert encoded(tok, path, tmp_path, on_error="skip") == ids_of(tok, kept)
        assert WordCounts.from_files(path, on_error="skip", progress=False) == WordCounts.from_iterator(kept)
        # Read twice, and counted once.
        trained = Tokenizer.train(path, 258, on_error="skip", superword_from=257, progress=False)
    assert {str(warning.message) for warning in warned} == {f"skipped 2 rows without text; the first: {place}"}
    assert trained.merges == Tokenizer.train_from_iterator(kept, 258, superword_from=257, progress=False).merges


def test_long_parquet_texts_without_white_space(tok: Tokenizer, tmp_path: Path) -> None:
    """They are refused as those of JSON lines are."""
    fine, long = "a" * (16 << 20) + " b", "a" * (17 << 20)
    write_parquet(tmp_path / "rows.parquet", ["one", fine, long])
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2: column 'text': more than 16777216 bytes of text"):
        encoded(tok, tmp_path / "rows.parquet", tmp_path)


def test_parquet_text_that_is_not_utf8(tok: Tokenizer, tmp_path: Path) -> None:
    write_parquet_bytes(tmp_path / "rows.parquet", [b"one", b"caf\xe9", b"two"])
    with pytest.raises(ValueError, match=r"rows\.parquet, row 1: column 'text': 'utf-8' codec can't decode"):
        encoded(tok, tmp_path / "rows.parquet", tmp_path)
    with pytest.warns(UserWarning, match=r"skipped 1 row .*row 1: column 'text': 'utf-8' codec can't decode"):
        assert encoded(tok, tmp_path / "rows.parquet", tmp_path, on_error="skip") == ids_of(tok, ["one", "two"])


def test_damaged_and_missing_files_raise_with_skip(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(line("one") * 1000)[:-20])
    (tmp_path / "plain.zst").write_bytes(b"not compressed")
    (tmp_path / "rows.parquet").write_bytes(b"no rows")
    for name in ("cut.jsonl.gz", "plain.zst", "rows.parquet"):
        with pytest.raises(ValueError, match=name):
            encoded(tok, tmp_path / name, tmp_path, on_error="skip")
    with pytest.raises(FileNotFoundError):
        encoded(tok, tmp_path / "absent.txt", tmp_path, on_error="skip")


def test_the_command_line_reports_the_number_of_skipped_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(MARK + line("low lower lowest") + b'\n{"text": null}\n' + line("low"))
    command = [sys.executable, "-m", "bpe_llama.cli", "train-tokenizer", "rows.jsonl", "--vocab-size", "258"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=300)

    stopped = run()
    assert stopped.returncode == 2 and stopped.stdout == ""
    assert stopped.stderr == 'bpe-llama: rows.jsonl, line 2: field "text" is null, where a string was expected\n'
    assert run("--on-error", "never").stderr == "bpe-llama: on_error is 'never'; expected 'raise' or 'skip'\n"
    done = run("--on-error", "skip", "--report")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped 1 row without text; the first: rows.jsonl, line 2: ") == 1
    assert "tokenizer.json: 258 tokens" in done.stdout and "bytes a token" in done.stdout
