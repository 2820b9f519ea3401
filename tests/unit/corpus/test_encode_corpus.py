"""A corpus to token shards: the ids of `encode_files`, whole or resumable, the same bytes after any interruption."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer, cli
from bpe_llama._corpus.shards import TokenShards, fingerprint, open_shards

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


@pytest.mark.parametrize(("shard_tokens", "num_threads"), [(1, 2), (30, 1), (30, 2), (10**8, None)])
def test_files_of_all_kinds(tok: Tokenizer, tmp_path: Path, shard_tokens: int, num_threads: int | None) -> None:
    corpus, documents = write_corpus(tmp_path / "corpus")
    out = tmp_path / "shards"
    options = {"separator": "<sep>", "num_threads": num_threads}
    shards = tok.encode_corpus(corpus, out, shard_tokens=shard_tokens, **options)  # type: ignore[arg-type]
    check(shards, [tok.encode(text, eos=True) for text in documents], shard_tokens)
    assert shards.bytes == sum(len(text.encode()) for text in documents)
    assert tok.encode_files(corpus, tmp_path / "ids.npy", **options) == len(shards)  # type: ignore[arg-type]
    assert np.array_equal(np.load(tmp_path / "ids.npy"), shards.read(0, len(shards)))
    index = json.loads((out / "index.json").read_text())
    keys = "format version dtype vocab_size tokenizer begins ends tokens documents bytes shards"
    assert list(index) == keys.split() and index["format"] == "bpe_llama.token_shards" and index["version"] == 1
    assert index["tokenizer"] == fingerprint(tok) and index["ends"] == [tok.eos_id] and index["begins"] == []
    names = [shard["file"] for shard in index["shards"]]
    assert names == [f"shard-{number:05}.npy" for number in range(len(names))]
    documents_files = [name.replace(".npy", ".documents.npy") for name in names]
    assert set(os.listdir(out)) == {"index.json", "sources.json", *names, *documents_files}


def test_a_document_longer_than_a_batch_and_a_shard(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    long = (corpus[0] * (9_000_000 // len(corpus[0]) + 1))[:9_000_000]
    for name, text in [("a", "short"), ("b", long), ("c", "x"), ("d", long[:70_000])]:
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    shards = tok.encode_corpus(f"{tmp_path}/*.txt", tmp_path / "shards", shard_tokens=1000, num_threads=2)
    expected = [tok.encode(text, eos=True) for text in ("short", long, "x", long[:70_000])]
    check(shards, expected, 1000)
    assert [shard.documents for shard in shards.shards] == [2, 2]


def test_documents_begin_and_end_as_the_tokenizers_file_says(tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(["ab"], 259, special_tokens=["<s>", "</s>"], progress=False)
    tok.save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    special = {token: {"id": token, "ids": [tok.token_to_id(token)], "tokens": [token]} for token in ("<s>", "</s>")}
    parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": special}
    saved["post_processor"] = processor | {"pair": [*parts, {"Sequence": {"id": "B", "type_id": 0}}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    tok = Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("ab|b")
    bos, eos = tok.token_to_id("<s>"), tok.token_to_id("</s>")
    for number, (options, begins, ends) in enumerate(
        [({}, [bos], [eos]), ({"bos": False}, [], [eos]), ({"eos": False}, [bos], []), ({"bos": True}, [bos], [eos])]
    ):
        out = tmp_path / f"shards{number}"
        shards = tok.encode_corpus(tmp_path / "a.txt", out, separator="|", shard_tokens=1, **options)
        check(shards, [[*begins, *tok.encode(text), *ends] for text in ("ab", "b")], 1)
        assert (shards.begins, shards.ends) == (tuple(begins), tuple(ends))


def test_no_documents_and_documents_without_tokens(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    check(tok.encode_corpus(tmp_path / "a.jsonl", tmp_path / "none"), [], 1)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": ""}\n' * 3)
    shards = tok.encode_corpus(tmp_path / "b.jsonl", tmp_path / "empty", eos=False)
    check(shards, [[], [], []], 1)
    assert len(shards.shards) == 1


# -- resuming ----------------------------------------------------------------------------------------------------------

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
    # Flushes: sources.json; the ids, offsets and line of each shard; the line that all are done; index.json.
    for kill_at in (1, 3, 4, 6, 3 * shards + 2, 3 * shards + 3):
        out = tmp_path / f"killed{kill_at}"
        with child(tmp_path / "tokenizer.json", corpus, out, kill_at, 100) as process:
            assert process.communicate(timeout=60)[0] == "" and process.returncode == -signal.SIGKILL
        finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.npy")}
        assert len(finished) == 2 * min(shards, (kill_at - 1) // 3)
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
            process.communicate(timeout=60)
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
        str(tmp_path / "a.txt"),
        "-o",
        str(tmp_path / "out"),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "out" / "shard-00001.npy").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        sent = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        took = time.perf_counter() - sent
    assert (process.returncode, err) == (130, "bpe-llama: interrupted\n")
    assert took < 3.0, f"{took:.1f} s; a second is promised, the rest is this machine's other load"
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


@pytest.mark.parametrize("damage", ["short", "missing", "line"])
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
        os.truncate(out / "shard.progress", (out / "shard.progress").stat().st_size - 9)
    (out / ".shard-00004.1-1.npy").write_bytes(b"of a killed run")
    shards = tok.encode_corpus(corpus, out, separator="<sep>", shard_tokens=30)
    check(shards, [tok.encode(text, eos=True) for text in documents], 30)
    assert not [name for name in os.listdir(out) if name.startswith(".")]


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


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_named_before_anything_is_written(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    out = tmp_path / "out"
    for paths, options, complaint in [
        (tmp_path / "none.txt", {}, r"none\.txt"),
        ([], {}, "no paths were given"),
        ("hf://datasets/some/name", {}, "--dataset reads a data set"),
        (tmp_path / "a.txt", {"shard_tokens": 0}, "shard_tokens is 0; expected at least 1"),
        (tmp_path / "a.txt", {"separator": ""}, "separator is empty"),
        (tmp_path / "a.txt", {"on_error": "no"}, "on_error is 'no'"),
        (tmp_path / "a.txt", {"dataset": "name"}, "paths or a data set, not both"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            tok.encode_corpus(paths, out, **options)  # type: ignore[arg-type]
    assert not out.exists()


def test_a_folder_of_others_or_in_use_is_refused(tok: Tokenizer, tmp_path: Path) -> None:
    from bpe_llama._lock import locked

    (tmp_path / "a.txt").write_text("text")
    out = tmp_path / "out"
    with locked(out), pytest.raises(ValueError, match="another run is going on in this folder"):
        tok.encode_corpus(tmp_path / "a.txt", out)
    (out / "shard-00000.npy").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds 'shard-00000\.npy' of other token shards"):
        tok.encode_corpus(tmp_path / "a.txt", out)
    assert files_of(out) == {"shard-00000.npy": b"mine"}


def test_the_folder_may_lie_in_the_corpus(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for _run in range(2):
        assert tok.encode_corpus(tmp_path, tmp_path / "out").documents == 1
    with pytest.raises(ValueError, match="holds all files of the corpus"):
        tok.encode_corpus(tmp_path / "out", tmp_path / "out")


def test_progress_goes_up_to_the_size_of_the_files(tok: Tokenizer, tmp_path: Path) -> None:
    corpus, _ = write_corpus(tmp_path / "corpus")
    seen: list[tuple[str, int, int | None]] = []
    tok.encode_corpus(corpus, tmp_path / "out", progress=lambda progress: seen.append(tuple(progress)))
    total = sum(path.stat().st_size for path in corpus.iterdir())
    assert {(stage, of) for stage, _, of in seen} == {("encode", total)}
    done = [done for _, done, _ in seen]
    assert done == sorted(done) and done[-1] == total


# -- data sets of the Hub ----------------------------------------------------------------------------------------------


def test_a_data_set_by_name(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="data sets of the Hub need bpe-llama[hub]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for split, texts in [("train", DOCUMENTS * 100), ("test", [*DOCUMENTS[:2], None])]:
        table = pyarrow.table({"body": pyarrow.array(texts, pyarrow.string()), "n": range(len(texts))})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    name, out = str(tmp_path / "data"), tmp_path / "out"
    seen: list[tuple[object, ...]] = []
    whole = tok.encode_corpus(
        [], out, dataset=name, field="body", shard_tokens=500, progress=lambda progress: seen.append(tuple(progress))
    )
    check(whole, [tok.encode(text, eos=True) for text in DOCUMENTS * 100], 500)
    assert seen[-1] == ("encode rows", 1500, 1500)
    # A run that ended after three shards goes on there.
    again = tmp_path / "again"
    begun_files = files_of(out)
    again.mkdir()
    done = itertools.accumulate(shard.documents for shard in whole.shards[:3])
    log = [{"shard": vars(shard), "place": [0, end]} for shard, end in zip(whole.shards[:3], done, strict=True)]
    for name_of_file in [
        "sources.json",
        *(n for n in begun_files if n.startswith(("shard-00000", "shard-00001", "shard-00002"))),
    ]:
        (again / name_of_file).write_bytes(begun_files[name_of_file])
    (again / "shard.progress").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    tok.encode_corpus([], again, dataset=name, field="body", shard_tokens=500)
    assert files_of(again) == begun_files
    with pytest.raises(ValueError, match="split"):
        tok.encode_corpus([], tmp_path / "none", dataset=name, field="body", split="dev")
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['body', 'n'\]"):
        tok.encode_corpus([], tmp_path / "none", dataset=name)
    with pytest.raises(ValueError, match="row 2: column 'body' is null, where text was expected"):
        tok.encode_corpus([], tmp_path / "none", dataset=name, field="body", split="test")
    tok.save(tmp_path / "tokenizer.json")
    command = ["encode-corpus", "--dataset", name, "--split", "test", "--field", "body", "--on-error", "skip"]
    with pytest.warns(UserWarning, match="skipped 1 row without text; the first: data set .*, row 2: column 'body'"):
        assert cli.main([*command, "-o", str(tmp_path / "cli"), "-t", str(tmp_path / "tokenizer.json")]) == 0
    assert "2 documents in 1 shards" in capsys.readouterr().out


def test_a_data_set_needs_the_hub_extra(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    tok.save(tmp_path / "tokenizer.json")
    arguments = ["encode-corpus", "--dataset", "some/name", "-o", str(tmp_path / "out")]
    assert cli.main([*arguments, "-t", str(tmp_path / "tokenizer.json")]) == 2
    assert "pip install 'bpe-llama[hub]'" in capsys.readouterr().err
