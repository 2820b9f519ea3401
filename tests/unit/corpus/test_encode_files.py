"""Files of text to one file of ids: the ids of each document alone, whole or not at all, in bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer
from tests.ctrl_c import interrupted
from tests.unit.corpus.written import encoded, ids_of, jsonl, write_parquet, zstd

DOCUMENTS = ["one", "two words, 日本語 é\n", "", "  three\n\n\n", "12345 it's <|end|>"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt", bytes),
        ("a.md", bytes),
        ("a.txt.gz", gzip.compress),
        ("a.GZ", gzip.compress),
        ("a.txt.zst", zstd),
        ("two-streams.gz", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
        ("two-frames.zst", lambda data: zstd(data[:5]) + zstd(data[5:])),
    ],
)
def test_a_file_is_a_document_or_several(
    tok: Tokenizer, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack("<sep>".join(DOCUMENTS).encode()))
    assert encoded(tok, tmp_path / name, tmp_path) == ids_of(tok, ["<sep>".join(DOCUMENTS)])
    assert encoded(tok, tmp_path / name, tmp_path, separator="<sep>") == ids_of(tok, DOCUMENTS)
    assert encoded(tok, tmp_path / name, tmp_path, eos=False) == tok.encode("<sep>".join(DOCUMENTS))


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl", lambda data: data), ("a.jsonl.gz", gzip.compress), ("a.ndjson.zst", zstd)]
)
@pytest.mark.parametrize("field", ["text", "content"])
def test_a_json_line_is_a_document(
    tok: Tokenizer, tmp_path: Path, name: str, pack: Callable[[bytes], bytes], field: str
) -> None:
    (tmp_path / name).write_bytes(pack(jsonl(DOCUMENTS, field) + b"\n"))
    assert encoded(tok, tmp_path / name, tmp_path, field=field) == ids_of(tok, DOCUMENTS)


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_parquet_row_is_a_document(tok: Tokenizer, tmp_path: Path, kind: str) -> None:
    write_parquet(tmp_path / "a.parquet", DOCUMENTS, "body", kind)
    assert encoded(tok, tmp_path / "a.parquet", tmp_path, field="body") == ids_of(tok, DOCUMENTS)


def test_files_of_all_kinds_come_in_the_order_given(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"plain")
    write_parquet(tmp_path / "b.parquet", ["row 1", "row 2"])
    (tmp_path / "c.jsonl").write_bytes(jsonl(["line 1", "line 2"]))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    write_parquet(tmp_path / "e.parquet", ["row 3"])
    names = ["c.jsonl", "b.parquet", "d.txt.gz", "a.txt", "e.parquet"]
    expected = ids_of(tok, ["line 1", "line 2", "row 1", "row 2", "packed", "plain", "row 3"])
    assert encoded(tok, [tmp_path / name for name in names], tmp_path) == expected
    assert encoded(tok, f"{tmp_path}/*.parquet", tmp_path) == ids_of(tok, ["row 1", "row 2", "row 3"])
    # A set has no order of its own: its paths are sorted.
    expected = ids_of(tok, ["plain", "row 1", "row 2", "line 1", "line 2", "packed", "row 3"])
    assert encoded(tok, {tmp_path / name for name in names}, tmp_path) == expected


def test_many_and_long_documents_on_any_number_of_threads(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    long = (corpus[0] * (2_000_000 // len(corpus[0]) + 1))[:2_000_000]
    (tmp_path / "a.txt").write_bytes(long.encode())
    short = [text[i : i + 300] for text in corpus for i in range(0, min(len(text), 60_000), 300)]
    (tmp_path / "b.jsonl").write_bytes(jsonl(short))
    write_parquet(tmp_path / "c.parquet", [*short[:500], long[:100_000]])
    expected = ids_of(tok, [long, *short, *short[:500], long[:100_000]])
    for num_threads in (1, 2, 5, None):
        paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.parquet")]
        assert encoded(tok, paths, tmp_path, num_threads=num_threads) == expected


def test_a_custom_pattern_reads_whole_documents(tmp_path: Path) -> None:
    tok = Tokenizer.from_ranks(
        {**{bytes([b]): b for b in range(256)}, b"a b": 256, b"b a": 257},
        pattern=r"[a-z]+ [a-z]+|\s+",
        special_tokens={},
    )
    text = "a b a b " * 100_000
    (tmp_path / "a.txt").write_text(text)
    assert encoded(tok, tmp_path / "a.txt", tmp_path) == tok.encode(text)


def test_added_tokens_are_not_parted_from_their_neighbours(tok: Tokenizer, tmp_path: Path) -> None:
    """They may ask for white space, or for no word character, beside them: no cut of a long file comes between."""
    tok.save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    flags = {"special": False, "normalized": False, "single_word": True, "lstrip": False, "rstrip": True}
    saved["added_tokens"].append({"id": tok.vocab_size, "content": "tok", **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    strict = Tokenizer.from_file(tmp_path / "tokenizer.json")
    for unit in ("tok ", "tok_", "tok  \n", "word.tok "):
        text = unit * (700_000 // len(unit))
        (tmp_path / "a.txt").write_text(text)
        assert encoded(strict, tmp_path / "a.txt", tmp_path, eos=False) == strict.encode(text), unit


def test_special_tokens_are_found_where_they_are_allowed(tok: Tokenizer, tmp_path: Path) -> None:
    """Wherever a long file is divided, in lines and rows; `encode_corpus` writes the same ids."""
    eos = tok.id_to_token(tok.eos_id)
    documents = [f"{eos} one{eos}two\n {eos[:-1]}" * 60_000, eos, "none"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(documents))
    write_parquet(tmp_path / "b.parquet", documents[1:])
    paths, rows = [tmp_path / "a.jsonl", tmp_path / "b.parquet"], [*documents, *documents[1:]]
    for number, (allowed, count) in enumerate([("all", 120_007), ({eos}, 120_007), ([], 5)]):
        expected = [i for text in rows for i in tok.encode(text, eos=True, allowed_special=allowed)]
        assert expected.count(tok.eos_id) == count
        assert encoded(tok, paths, tmp_path, allowed_special=allowed) == expected
        shards = tok.encode_corpus(paths, tmp_path / f"{number}", allowed_special=iter(allowed) if number else allowed)
        assert shards.read(0, len(shards)).tolist() == expected
    for wrong, error, message in [
        (eos, ValueError, f'allowed_special must be "all" or a collection of special tokens, got {eos!r}'),
        ([eos[:-1]], ValueError, "which is no special token of this tokenizer"),
        (1, TypeError, 'allowed_special must be "all" or a collection of special tokens, got 1'),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            encoded(tok, paths, tmp_path, allowed_special=wrong)
    with pytest.raises(ValueError, match="allowed_special"):  # not as in the folder's first run
        tok.encode_corpus(paths, tmp_path / "0")


def test_ids_take_two_bytes_where_they_fit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab")
    ranks = {bytes([b]): b for b in range(256)}
    for vocab_size, dtype in [(65_536, np.uint16), (65_537, np.uint32)]:
        tok = Tokenizer.from_ranks(ranks, pattern="cl100k", special_tokens={"</s>": vocab_size - 1})
        assert encoded(tok, tmp_path / "a.txt", tmp_path) == [97, 98, vocab_size - 1]
        assert np.load(tmp_path / "ids.npy", mmap_mode="r").dtype == dtype


def test_no_text_makes_an_empty_file(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.jsonl").write_bytes(b"\n\n")
    write_parquet(tmp_path / "c.parquet", [])
    assert encoded(tok, tmp_path / "a.txt", tmp_path) == [tok.eos_id]
    assert encoded(tok, [tmp_path / "b.jsonl", tmp_path / "c.parquet"], tmp_path) == []


DAMAGED = {
    "cut.txt.gz": (gzip.compress(b"text " * 1000)[:-20], r"cut\.txt\.gz.*damaged compressed data"),
    "cut.txt.zst": (zstd(os.urandom(5000).hex().encode())[:-20], r"cut\.txt\.zst.*damaged compressed data"),
    "no.gz": (b"plain text", r"no\.gz.*damaged compressed data"),
    "latin.txt": ("é".encode("latin-1") * 9, r"latin\.txt: invalid UTF-8 at byte 0"),
    "late.txt": (b"word " * 200_000 + b"\xff", r"late\.txt: invalid UTF-8 at byte 1000000"),
    "packed.gz": (gzip.compress(b"ab\xff"), r"packed\.gz: invalid UTF-8 at byte 2"),
    "field.jsonl": (jsonl(["a", "b"]) + b'{"body": ""}\n', r"field\.jsonl, line 3: no field \"text\""),
    "kind.jsonl": (b'{"text": 5}\n', r"kind\.jsonl, line 1: .*`5`.* at column 10.*field \"text\""),
    "cut.jsonl": (b'{"text": "a"}\n\n{"text": "b', r"cut\.jsonl, line 3: "),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', r"latin\.jsonl, line 2: "),
    "no.parquet": (b"plain text, long enough to hold a footer", r"no\.parquet: "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_leaves_what_was_there(tok: Tokenizer, tmp_path: Path, name: str) -> None:
    content, complaint = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "ids.npy").write_bytes(b"older")
    (tmp_path / "fine.txt").write_text("fine")
    with pytest.raises(ValueError, match=complaint):
        tok.encode_files([tmp_path / "fine.txt", tmp_path / name], out=tmp_path / "ids.npy")
    assert (tmp_path / "ids.npy").read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["fine.txt", "ids.npy", name])


def test_a_parquet_file_without_the_column_or_with_another_kind_is_named(tok: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ["text"], field="body")
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'text'; it has \['n', 'body'\]"):
        tok.encode_files(path, out=tmp_path / "ids.npy")
    with pytest.raises(ValueError, match=r"a\.parquet, row 0: column 'n' holds int 0, where text was expected"):
        tok.encode_files(path, out=tmp_path / "ids.npy", field="n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_what_cannot_be_written_is_named(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"must end in \.npy, got .*ids\.bin"):
        tok.encode_files(tmp_path / "a.txt", out=tmp_path / "ids.bin")
    with pytest.raises(OSError, match=r"missing.*ids\.npy"):
        tok.encode_files(tmp_path / "a.txt", out=tmp_path / "missing" / "ids.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(OSError, match=r"folder\.npy"):
        tok.encode_files(tmp_path / "a.txt", out=tmp_path / "folder.npy")
    with pytest.raises(OSError, match=r"missing\.txt"):
        tok.encode_files([tmp_path / "a.txt", tmp_path / "missing.txt"], out=tmp_path / "ids.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder.npy"]


def test_progress_counts_all_files_and_what_it_raises_comes_out(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words " * 2_000_000)
    write_parquet(tmp_path / "b.parquet", ["row"])
    (tmp_path / "c.txt").write_bytes(b"words " * 100)
    paths = [tmp_path / name for name in ("a.txt", "b.parquet", "c.txt")]
    total = sum(path.stat().st_size for path in paths)
    seen: list[tuple[str, int, int | None]] = []
    tok.encode_files(paths, out=tmp_path / "ids.npy", progress=lambda progress: seen.append(tuple(progress)))
    assert {(stage, of) for stage, _, of in seen} == {("encode", total)}
    done = [done for _, done, _ in seen]
    assert done == sorted(done) and done[-1] == total and len(done) > 4

    def stop(_progress: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        tok.encode_files(paths, out=tmp_path / "new.npy", progress=stop)
    assert not (tmp_path / "new.npy").exists()


def test_progress_is_silent_where_no_terminal_is(
    tok: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(b"words " * 1_000_000)
    tok.encode_files(tmp_path / "a.txt", out=tmp_path / "ids.npy")
    assert capfd.readouterr() == ("", "")
    tok.encode_files(tmp_path / "a.txt", out=tmp_path / "ids.npy", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "encoding" in err


_CHILD = """
import pathlib, re, sys
from bpe_llama import Tokenizer
tok = Tokenizer.from_ranks({**{bytes([b]): b for b in range(256)}, b" w": 256}, pattern=%r)
print("ready", flush=True)
try:
    tok.encode_files([sys.argv[1]] * int(sys.argv[3]), out=sys.argv[2], num_threads=1)
except KeyboardInterrupt:
    print("stopped", flush=True)
if sys.platform == "linux":
    print(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1], flush=True)
"""


def _child(text: Path, out: Path, pattern: str = "cl100k", times: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD % pattern, str(text), str(out), str(times)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports a process's own peak, VmHWM")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for name, size in [("30.txt.gz", 30_000_000), ("90.txt.gz", 90_000_000)]:
        text = b"".join(b"some %d words, more or less \n" % i for i in range(1000))
        (tmp_path / name).write_bytes(gzip.compress(text * (size // len(text)), 1))
        with _child(tmp_path / name, tmp_path / "ids.npy") as child:
            peaks.append(int(child.communicate(timeout=300)[0]))
    assert peaks[1] - peaks[0] < 30_000, f"{peaks} KiB at peak for 30 and 90 MB"  # 60 MB more if it were held


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that takes part of a second to encode: a hundred times over, longer than any test waits."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_bytes(b"some words, 12345 and more.\n" * 4_000_000)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("pattern", ["cl100k", r"\w+|\W"])
@pytest.mark.parametrize("kind", ["interrupted", "killed"])
def test_an_interrupted_or_killed_run_leaves_the_older_file(
    tmp_path: Path, long_file: Path, kind: str, pattern: str
) -> None:
    out = tmp_path / "ids.npy"
    out.write_bytes(b"older")
    with _child(long_file, out, pattern, times=100) as child:
        assert child.stdout is not None
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*.tmp")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(tmp_path.glob("*.tmp")), "it has not begun to write"
        time.sleep(0.3)
        if kind == "interrupted":
            printed, took = interrupted(child, child.stdout)
        else:
            child.kill()
    assert out.stat().st_size == len(b"older"), "the whole file?"
    assert out.read_bytes() == b"older"
    if kind == "interrupted":
        assert printed.startswith("stopped\n")
        assert not list(tmp_path.glob("*.tmp"))
        assert took < 3.0, f"{took:.1f} s; a second is promised, and a slow machine may take three"


def with_post_processor(before: list[str], after: list[str], size: int, folder: Path) -> tuple[Tokenizer, object]:
    """Return a vocabulary of that many tokens with these tokens around a text, as ours and as `tokenizers` has it."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<s>", "</s>", "<doc>"]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=260, special_tokens=names, initial_alphabet=alphabet)
    theirs.train_from_iterator(["ab"], trainer)
    theirs.add_tokens([f"<extra{number}>" for number in range(size - theirs.get_vocab_size())])
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[(name, theirs.token_to_id(name)) for name in names]
    )
    theirs.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return Tokenizer.from_file(folder), theirs


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [
        (["<s>"], [], 300),
        (["<s>"], ["</s>"], 300),
        ([], ["</s>"], 300),
        (["<s>", "<doc>"], ["<doc>", "</s>"], 300),
        (["<s>"], ["</s>"], 1 << 16),  # no uint16 is left that no text has
        (["<s>"], [], (1 << 16) + 1),
    ],
)
def test_documents_begin_and_end_as_in_the_tokenizers_file(
    tmp_path: Path, before: list[str], after: list[str], size: int
) -> None:
    tok, theirs = with_post_processor(before, after, size, tmp_path)
    documents = ["ab", "", "b a\n", "<s>ab"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(documents))
    (tmp_path / "b.txt").write_text("abab")
    plain = [tok.encode_ordinary(text) for text in [*documents, "abab"]]
    end = [] if after else [1]
    around = theirs.encode("").ids  # type: ignore[attr-defined]
    begins, ends = around[: len(before)], around[len(before) :] + end
    paths = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    assert encoded(tok, paths, tmp_path) == [i for ids in plain for i in [*begins, *ids, *ends]]
    assert encoded(tok, paths, tmp_path, eos=False) == [i for ids in plain for i in [*begins, *ids]]
    assert encoded(tok, paths, tmp_path, bos=True) == [i for ids in plain for i in [0, *ids, *ends]]
    assert encoded(tok, paths, tmp_path, bos=False, eos=False) == [i for ids in plain for i in ids]
    found = [tok.encode(text, allowed_special="all") for text in [*documents, "abab"]]
    assert encoded(tok, paths, tmp_path, allowed_special="all") == [i for ids in found for i in [*begins, *ids, *ends]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.jsonl", "b.txt", "ids.npy", "tokenizer.json", "tokenizer_config.json")
    ]


@pytest.mark.parametrize(("single", "times"), [(["<s>"], 0), (["$A", "<s>", "$A"], 2)])
def test_a_template_that_drops_or_repeats_the_text_is_refused(single: list[str], times: int, tmp_path: Path) -> None:
    tok, theirs = with_post_processor([], [], 300, tmp_path)
    names = [("<s>", theirs.token_to_id("<s>"))]
    theirs.post_processor = pytest.importorskip("tokenizers").processors.TemplateProcessing(single, None, names)
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("ab")
    tok = Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match=f"post_processor .* has a text {times} times; expected it once"):
        encoded(tok, tmp_path / "a.txt", tmp_path)
    assert tok(["ab"])["input_ids"] == [theirs.encode("ab").ids]
    assert not (tmp_path / "ids.npy").exists()


def test_no_documents_have_neither_begin_nor_end_and_a_missing_bos_raises(tmp_path: Path) -> None:
    tok, _ = with_post_processor(["<s>"], [], 300, tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert encoded(tok, tmp_path / "a.jsonl", tmp_path) == []
    bare = Tokenizer.train_from_iterator(["ab"], vocab_size=257, progress=False)
    with pytest.raises(ValueError, match="bos=True, but this tokenizer has no bos token"):
        bare.encode_files(tmp_path / "a.jsonl", tmp_path / "none.npy", bos=True)
    assert not (tmp_path / "none.npy").exists()
