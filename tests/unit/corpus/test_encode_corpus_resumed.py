"""`encode_corpus` after any end of a run: the same bytes, no finished shard encoded again, other inputs refused."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpe_llama import Tokenizer
from bpe_llama._corpus.shards import open_shards
from tests.ctrl_c import interrupted
from tests.unit.corpus.encoded_corpus import check, files_of, pyarrow, write_corpus

_CHILD = """
import os, signal, sys
from bpe_llama import Tokenizer
kill_at, fsync = int(sys.argv[4]), os.fsync
def counted(fd):
    global kill_at
    kill_at -= 1
    if kill_at == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)
os.fsync = counted
tok = Tokenizer.from_file(sys.argv[1])
print("ready", flush=True)
tok.encode_corpus(sys.argv[2], sys.argv[3], separator="<sep>", shard_tokens=int(sys.argv[5]), num_threads=2)
print("done", flush=True)
"""


ABANDONED = ".shard-00004.npy.0123456789abcdef.tmp"
"""The folder in which a killed run wrote a shard."""


def child(tokenizer: Path, corpus: Path, out: Path, kill_at: int, shard_tokens: int) -> subprocess.Popen[str]:
    arguments = [str(tokenizer), str(corpus), str(out), str(kill_at), str(shard_tokens)]
    process = subprocess.Popen([sys.executable, "-c", _CHILD, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_between_any_two_writes(tok: Tokenizer, tmp_path: Path) -> None:
    """The child kills itself before the n-th flush to the disk: n = 1 is the first write, and so on."""
    corpus, _ = write_corpus(tmp_path / "corpus")
    tok.save(tmp_path / "tokenizer.json")
    whole = tmp_path / "whole"
    options = {"separator": "<sep>", "shard_tokens": 100}
    shards = len(tok.encode_corpus(corpus, whole, **options).shards)  # type: ignore[arg-type]
    # Flushes: sources.json; the offsets, ids and line of each shard; the line that all are done; index.json.
    for kill_at in (1, 3, 4, 6, 3 * shards + 2, 3 * shards + 3):
        out = tmp_path / f"killed{kill_at}"
        with child(tmp_path / "tokenizer.json", corpus, out, kill_at, 100) as process:
            assert process.communicate(timeout=300)[0] == "" and process.returncode == -signal.SIGKILL
        finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-?????.npy")}
        assert len(finished) == min(shards, (kill_at - 1) // 3)
        with pytest.raises(FileNotFoundError, match="no index of token shards"):
            open_shards(out)
        tok.encode_corpus(corpus, out, **options)  # type: ignore[arg-type]
        assert files_of(out) == files_of(whole)
        assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in finished.items()), "encoded again"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_random_moments_again_and_again(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    short = [text[i : i + 400] for text in corpus for i in range(0, len(text), 400)] * 5
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in short))
    (tmp_path / "b.txt").write_text("<sep>".join(short[:3000]))
    tok.save(tmp_path / "tokenizer.json")
    texts = tmp_path / "[ab].*"
    whole, out = tmp_path / "whole", tmp_path / "shards"
    tok.encode_corpus(texts, whole, separator="<sep>", shard_tokens=20_000)
    draw, kept = random.Random(28), {}
    for _kill in range(4):
        with child(tmp_path / "tokenizer.json", texts, out, 0, 20_000) as process:
            time.sleep(draw.uniform(0, 0.4))
            process.kill()
            process.communicate(timeout=300)
        log = out / "shard.progress"
        finished = log.read_text().count("shard-") if log.exists() else 0
        for number in range(finished):
            path = out / f"shard-{number:05}.npy"
            assert kept.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "encoded again"
    tok.encode_corpus(texts, out, separator="<sep>", shard_tokens=20_000)
    assert files_of(out) == files_of(whole)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_stops_within_a_second_and_keeps_finished_shards(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some words, 12345 and more.\n" * 3_000_000)
    for name in "bcdefghijkl":  # enough for the run not to end before Ctrl-C
        os.link(tmp_path / "a.txt", tmp_path / f"{name}.txt")
    tok.save(tmp_path / "tokenizer.json")
    script = "import sys; from bpe_llama.cli import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
    options = [
        "--separator",
        ".\n",
        "--shard-tokens",
        "300000",
        "--threads",
        "1",
        "-t",
        str(tmp_path / "tokenizer.json"),
    ]
    command = [
        sys.executable,
        "-c",
        script,
        "encode-corpus",
        str(tmp_path / "*.txt"),
        "-o",
        str(tmp_path / "out"),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "shard-00001.npy").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        err, took = interrupted(process, process.stderr)
    assert (process.returncode, err) == (130, "bpe-llama: interrupted\n")
    assert took < 3.0, f"{took:.1f} s; a second is promised, and a slow machine may take three"
    names = os.listdir(tmp_path / "out")
    assert "shard.progress" in names and not [name for name in names if name.startswith(".")]


def begun(tok: Tokenizer, corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch, finished: int = 1) -> None:
    """Encode `finished` shards and stop."""
    from bpe_llama._corpus import encode_corpus

    def stop(log: object, shard: object, place: object, add: object = encode_corpus._Log.add) -> None:
        add(log, shard, place)  # type: ignore[operator]
        if shard.file == f"shard-{finished - 1:05}.npy":  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encode_corpus._Log, "add", stop)
        tok.encode_corpus(corpus, out, separator="<sep>", shard_tokens=30)


def test_a_complete_folder_is_returned_as_it_is(tok: Tokenizer, tmp_path: Path) -> None:
    corpus, _ = write_corpus(tmp_path / "corpus")
    tok.encode_corpus(corpus, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert tok.encode_corpus(corpus, tmp_path / "out") == open_shards(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ValueError, match=r"shard_tokens is 7, but was 100000000: .*out was begun with other"):
        tok.encode_corpus(corpus, tmp_path / "out", shard_tokens=7)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"separator": "</sep>"}, "separator is '</sep>', but was '<sep>'"),
        ({"field": "body"}, "field is 'body', but was 'text'"),
        ({"eos": False}, r"ends is \[\], but was \[999\]"),
        ({"bos": True}, r"begins is \[998\], but was \[\]"),
        ({"on_error": "skip"}, "on_error is 'skip', but was 'raise'"),
        ({"shard_tokens": 31}, "shard_tokens is 31, but was 30"),
        ("change", r"c\.txt has changed"),
        ("add", r"z\.txt is new"),
        ("remove", r"c\.txt is no longer among the inputs"),
        ("tokenizer", "tokenizer is '[0-9a-f]{16}', but was"),
    ],
)
def test_other_options_or_inputs_are_refused_by_name(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object] | str, complaint: str
) -> None:
    corpus, _ = write_corpus(tmp_path / "corpus")
    begun(tok, corpus, tmp_path / "out", monkeypatch)
    before = files_of(tmp_path / "out")
    if options == "change":
        (corpus / "c.txt").write_text("other")
    elif options == "add":
        (corpus / "z.txt").write_text("more")
    elif options == "remove":
        (corpus / "c.txt").unlink()
    elif options == "tokenizer":
        tok = tok.with_special_tokens(["<more>"])
    changed = options if isinstance(options, dict) else {}
    with pytest.raises(ValueError, match=complaint):
        tok.encode_corpus(corpus, tmp_path / "out", **{"separator": "<sep>", "shard_tokens": 30} | changed)  # type: ignore[arg-type]
    assert files_of(tmp_path / "out") == before


def test_before_the_first_shard_is_finished_anything_may_change(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"body": ""}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: no field"):
        tok.encode_corpus(tmp_path / "a.jsonl", tmp_path / "out")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n')
    check(tok.encode_corpus(tmp_path / "a.jsonl", tmp_path / "out", eos=False), [tok.encode("fine")], 1)


@pytest.mark.parametrize("damage", ["short", "missing", "line", "line end"])
def test_a_finished_shard_that_is_damaged_is_encoded_again(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    corpus, documents = write_corpus(tmp_path / "corpus")
    out = tmp_path / "out"
    begun(tok, corpus, out, monkeypatch, finished=4)
    path = out / "shard-00002.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        os.truncate(path, path.stat().st_size - 1)
    else:
        os.truncate(out / "shard.progress", (out / "shard.progress").stat().st_size - (9 if damage == "line" else 1))
    (out / ABANDONED).mkdir()
    shards = tok.encode_corpus(corpus, out, separator="<sep>", shard_tokens=30)
    check(shards, [tok.encode(text, eos=True) for text in documents], 30)
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_a_run_killed_after_it_wrote_the_index_is_complete(tok: Tokenizer, tmp_path: Path) -> None:
    corpus, _ = write_corpus(tmp_path / "corpus")
    out = tmp_path / "out"
    tok.encode_corpus(corpus, out, separator="<sep>", shard_tokens=30)
    complete = sorted(os.listdir(out))
    (out / "shard.progress").write_text('{"complete": true}\n')
    (out / ABANDONED).mkdir()
    tok.encode_corpus(corpus, out, separator="<sep>", shard_tokens=30)
    assert sorted(os.listdir(out)) == complete


def test_rows_without_text_are_skipped_also_where_a_run_goes_on(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = b'{"text": "a b c"}\nnull\n{"text": null}\n' * 20
    (tmp_path / "a.jsonl").write_bytes(bad)
    rows = ["a b c", None] * 20
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "b.parquet")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    with pytest.warns(UserWarning, match=r"skipped 60 rows without text; the first: .*a\.jsonl, line 2"):
        whole = tok.encode_corpus(paths, tmp_path / "whole", shard_tokens=20, on_error="skip")
    check(whole, [tok.encode("a b c", eos=True)] * 40, 20)
    for finished in (1, 5, 7):
        out = tmp_path / f"out{finished}"
        out.mkdir()
        log = [
            {"shard": vars(shard), "place": [number // 5, 1]} for number, shard in enumerate(whole.shards[:finished])
        ]
        per_file = 20
        done = list(itertools.accumulate(shard.documents for shard in whole.shards))
        for number, entry in enumerate(log):
            file, documents = divmod(done[number] - 1, per_file)
            entry["place"] = [file, documents + 1]
            for suffix in (".npy", ".documents.npy"):
                name = f"shard-{number:05}{suffix}"
                (out / name).write_bytes((whole.folder / name).read_bytes())
        (out / "sources.json").write_bytes((whole.folder / "sources.json").read_bytes())
        (out / "shard.progress").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        with pytest.warns(UserWarning, match="skipped"):
            tok.encode_corpus(paths, out, shard_tokens=20, on_error="skip")
        assert files_of(out) == files_of(whole.folder)
