"""A corpus to token shards: the ids of `encode_files`, whole or resumable, the same bytes after any interruption."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer, cli
from bpe_llama._corpus.shards import fingerprint
from tests.hub_server import serving
from tests.unit.corpus.encoded_corpus import DOCUMENTS, check, files_of, pyarrow, write_corpus


@pytest.mark.parametrize(("shard_tokens", "num_threads"), [(6, 2), (30, 1), (30, 2), (10**8, None)])
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
    with pytest.warns(UserWarning, match="none: the corpus holds no text"):
        check(tok.encode_corpus(tmp_path / "a.jsonl", tmp_path / "none"), [], 1)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": ""}\n' * 3)
    with pytest.warns(UserWarning, match="empty: the corpus holds no text"):
        shards = tok.encode_corpus(tmp_path / "b.jsonl", tmp_path / "empty", eos=False)
    check(shards, [[], [], []], 1)
    assert len(shards.shards) == 1


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
    from bpe_llama._files import locked

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


@pytest.mark.parametrize("options", [{"split": "dev"}, {"config": "small"}])
def test_a_split_needs_a_data_set(tok: Tokenizer, tmp_path: Path, options: dict[str, str]) -> None:
    (tmp_path / "a.txt").write_text("ab")
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}', and there is no dataset"):
        tok.encode_corpus(tmp_path / "a.txt", tmp_path / "shards", **options)


def test_a_data_set_by_name(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="data sets of the Hub need bpe_llama[hub]")
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
    assert "pip install 'bpe_llama[hub]'" in capsys.readouterr().err


SCRIPT = """
import sys
from bpe_llama import Tokenizer
tok, out = Tokenizer.from_pretrained("org/tok"), sys.argv[1]
shards = tok.encode_corpus([], out, dataset="org/data@v1", eos=False, progress=False)
print(tok.decode(shards.read(0, len(shards)).tolist()))
for name in ("org/none", "org/data@v2"):
    try:
        tok.encode_corpus([], out + "-none", dataset=name)
    except FileNotFoundError as error:
        print(error)
"""


def test_a_data_set_of_a_server(tok: Tokenizer, tmp_path: Path) -> None:
    """A process of its own, since `datasets` reads HF_ENDPOINT when it is imported."""
    tok.save(tmp_path / "tok")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    rows = {year: json.dumps({"text": f"in {year}"}).encode() for year in (2025, 2026)}
    with serving() as hub:
        hub.add("org/tok", files_of(tmp_path / "tok"))
        repo = hub.add("datasets/org/data", {"data/train.jsonl": rows[2026]})
        repo.commit({"data/train.jsonl": rows[2025]}, "v1")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "out")],
            env=clean | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "in 2025",
        "data set 'org/none': Dataset 'org/none' doesn't exist on the Hub or cannot be accessed.",
        "data set 'org/data@v2': Revision 'v2' doesn't exist for dataset 'org/data' on the Hub.",
    ]
