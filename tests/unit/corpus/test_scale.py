"""Ray Data against one machine: the same counts, the same ids, workers lost or not."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from bpe_llama import Tokenizer, WordCounts

ray = pytest.importorskip("ray", reason="bpe_llama.scale needs Ray: pip install 'bpe_llama[scale]'")
# Ray's own warnings, about itself and its environment, are not ours to fix.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# By default Ray's workers get what CPU time others leave, and the tests beside these leave none.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

TEXTS = [f"document number {i} says low lower lowest <|end|> " * (1 + i % 7) for i in range(200)] + [
    "",
    "日本語 émoji 😀",
]


@pytest.fixture(scope="module")
def dataset():
    import ray.data

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data.from_items([{"text": text, "n": i} for i, text in enumerate(TEXTS)], override_num_blocks=7)
    ray.shutdown()


def test_counts_equal_one_machine(dataset):
    from bpe_llama import scale

    counts = scale.count_words(dataset, special_tokens=["<|end|>"])
    assert counts == WordCounts.from_iterator(TEXTS, special_tokens=["<|end|>"], progress=False)
    with pytest.raises(ValueError, match="no column 'body'"):
        scale.count_words(dataset, "body")
    with pytest.raises(ValueError, match="given twice"):
        scale.count_words(dataset, special_tokens=["a", "a"])


def test_files_equal_one_machine(dataset, tmp_path):
    """From Python, and from the command line, which joins the cluster from a process of its own."""
    from bpe_llama import scale

    for index, text in enumerate(TEXTS[::20]):
        (tmp_path / f"{index}.txt").write_text(text + "\n" + text, encoding="utf-8")
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    counts = scale.count_files(tmp_path, special_tokens=["<|end|>"])
    assert counts == WordCounts.from_files(tmp_path, special_tokens=["<|end|>"], progress=False)

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "bpe_llama.cli", "train-tokenizer", str(tmp_path), "--ray", address]
    options = ["--vocab-size", "300", "--special", "<|end|>", "--out", "ray.json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ray.json: 300 tokens" in done.stdout and "bytes a token" not in done.stdout
    tok = Tokenizer.from_file(tmp_path / "ray.json")
    (tmp_path / "ray.json").unlink()
    alone = Tokenizer.train(tmp_path, 300, pattern="cl100k", special_tokens=["<|end|>"], progress=False)
    assert (tok.merges, tok.special_tokens) == (alone.merges, alone.special_tokens)


def test_an_address_where_nothing_listens_is_one_clear_line(tmp_path):
    (tmp_path / "text.txt").write_text("low lower lowest")
    command = [sys.executable, "-m", "bpe_llama.cli", "train-tokenizer", str(tmp_path), "--vocab-size", "300"]
    for address in ("127.0.0.1:1", "127.0.0.1:99999"):
        done = subprocess.run([*command, "--ray", address], capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 2
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and f"no Ray cluster answers at '{address}'" in lines[0], done.stderr


def test_errors_of_workers_are_what_they_are_on_one_machine(dataset, tmp_path):
    """From Python by class and words; from the command line as one line, without Ray's log or a traceback."""
    from bpe_llama import scale

    bad_line = tmp_path / "bad.jsonl"
    bad_line.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(ValueError) as alone:
        WordCounts.from_files(bad_line, progress=False)
    with pytest.raises(ValueError) as on_ray:
        scale.count_files(bad_line)
    assert str(on_ray.value) == str(alone.value) and str(bad_line) in str(on_ray.value)

    command = [sys.executable, "-m", "bpe_llama.cli", "train-tokenizer", str(bad_line), "--vocab-size", "300"]
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run([*command, "--ray", address], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "Traceback" in line or "bad.jsonl" in line]
    assert len(lines) == 1 and lines[0].startswith("bpe-llama: ") and "line 2" in lines[0], done.stderr


def test_errors_come_back_from_the_text_of_a_traceback(tmp_path):
    """What Ray hands on is text, lines of source among it, with the mark somewhere in it."""
    from bpe_llama._corpus.worker_errors import WorkerError, raised_by_workers, raised_for_driver

    names = tmp_path / 'a name: with\nmany: \u00e9 \U0001f600 "quotes".txt'
    for error in (
        FileNotFoundError(2, "No such file or directory", str(names)),
        ValueError(f"{names}: line 3"),
        OSError("full"),
    ):
        with pytest.raises(WorkerError) as marked, raised_for_driver():
            raise error
        with pytest.raises(type(error)) as back, raised_by_workers():
            raise RuntimeError("\x1b[36mray::f()\n" + "".join(traceback.format_exception(marked.value)) + "\nThe above")
        assert type(back.value) is type(error) and str(back.value) == str(error) and back.value.args == error.args
    with pytest.raises(KeyError), raised_by_workers(), raised_for_driver():
        raise KeyError("an error of our own")


def test_a_killed_worker_changes_nothing(dataset, tmp_path):
    from bpe_llama import scale

    marker = str(tmp_path / "killed")

    def die_once(block):
        # The first worker to come here is gone for good; Ray runs its block again elsewhere.
        if not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        return block

    counts = scale.count_words(dataset.map_batches(die_once, batch_format="pyarrow"))
    assert Path(marker).exists()
    assert counts == WordCounts.from_iterator(TEXTS, progress=False)


def test_ids_equal_one_machine(dataset):
    from bpe_llama import scale

    tok = Tokenizer.train_from_iterator(TEXTS, 300, progress=False)
    rows = scale.encode_dataset(dataset, tok).sort("n").take_all()
    assert [list(row["input_ids"]) for row in rows] == tok.encode_batch(TEXTS)
    with pytest.raises(ValueError, match="the dataset has a column 'n', which encode_dataset writes"):
        scale.encode_dataset(dataset, tok, output="n")


def test_rows_without_text_are_named_or_skipped(dataset, tmp_path):
    """The same counts and the same number of skipped rows as on one machine; a dataset's rows have no file."""
    import ray.data

    from bpe_llama import scale

    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "low lower"}\nnull\n{"text": "\\ud800"}\n')
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"[abc]\.(jsonl, line 2|txt: invalid UTF-8)"):
        scale.count_files(tmp_path)
    with pytest.warns(UserWarning, match=r"skipped 5 rows without text; the first: .*a\.jsonl, line 2: "):
        counts = scale.count_files(tmp_path, on_error="skip")
    assert counts == WordCounts.from_iterator(["low lower"] * 2, progress=False)

    tok = Tokenizer.train_from_iterator(TEXTS, 300, progress=False)
    rows = [{"text": None if n % 3 == 1 else f"row {n}", "n": n} for n in range(30)]
    holes = ray.data.from_items(rows, override_num_blocks=4)
    kept = [row for row in rows if row["text"] is not None]
    with pytest.raises(ValueError, match=r"row [012] of a block: column 'text' is null, where text was expected"):
        scale.count_words(holes)
    with pytest.warns(UserWarning, match="skipped 10 rows without text"):
        assert scale.count_words(holes, on_error="skip") == WordCounts.from_iterator(row["text"] for row in kept)
    with pytest.raises(Exception, match=r"row [012] of a block: column 'text' is null"):
        scale.encode_dataset(holes, tok).take_all()
    found = scale.encode_dataset(holes, tok, on_error="skip").sort("n").take_all()
    assert [(row["n"], list(row["input_ids"])) for row in found] == [
        (row["n"], tok.encode(row["text"])) for row in kept
    ]
    for call in (
        lambda: scale.count_words(holes, on_error="no"),
        lambda: scale.encode_dataset(holes, tok, on_error=""),
    ):
        with pytest.raises(ValueError, match="on_error is"):
            call()


def test_token_shards_are_those_of_one_machine(dataset, tmp_path):
    """The same ids and documents in order; a part that is done is not encoded again; errors of workers by name."""
    import numpy as np

    from bpe_llama import scale
    from bpe_llama._corpus.shards import open_shards

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, text in enumerate(TEXTS[::60]):
        (corpus / f"{index}.txt").write_text("|".join([text] * 30), encoding="utf-8")
    with gzip.open(corpus / "lines.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (corpus / "special.txt").write_text("a</s>b")
    tok = Tokenizer.train_from_iterator(TEXTS, 300, special_tokens=["</s>"], progress=False)
    options = {"separator": "|", "shard_tokens": 400, "allowed_special": "all"}
    alone = tok.encode_corpus(corpus, tmp_path / "alone", progress=False, **options)
    assert alone.read(0, alone.tokens).tolist().count(tok.eos_id) == alone.documents + 1
    seen = []
    shards = scale.encode_corpus(
        corpus, tok, corpus / "ray", progress=lambda progress: seen.append(progress), **options
    )
    assert (shards.tokens, shards.documents, shards.bytes) == (alone.tokens, alone.documents, alone.bytes)
    assert np.array_equal(shards.read(0, shards.tokens), alone.read(0, alone.tokens))
    documents = range(0, alone.documents, 7)
    assert all(np.array_equal(shards.document(number), alone.document(number)) for number in documents)
    assert len({shard.file[:11] for shard in shards.shards}) > 2, "several workers"
    assert seen[-1].done == seen[-1].total == sum(path.stat().st_size for path in corpus.glob("*.*"))

    # Its folder, which lies in the corpus, is no part of that. A run that lost the index,
    # one part and the end of another goes on; the command line is another process.
    out = corpus / "ray"
    parts = sorted({shard.file[:11] for shard in shards.shards})
    (out / "index.json").unlink()
    for part in parts:
        lines = [
            json.dumps({"shard": vars(shard), "place": [0, 0]}) + "\n"
            for shard in shards.shards
            if shard.file.startswith(part)
        ]
        (out / f"{part}.progress").write_text("".join(lines) + '{"complete": true}\n')
    (out / f"{parts[-1]}.progress").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.npy")}
    tok.save(tmp_path / "tokenizer.json")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "bpe_llama.cli", "encode-corpus", str(corpus), "--ray", address]
    command += ["--separator", "|", "--shard-tokens", "400", "--allow-special", "-t", str(tmp_path / "tokenizer.json")]
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{shards.tokens:,} tokens in" in done.stdout
    assert open_shards(out) == shards
    again = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert again and all(path.name.startswith(parts[-1]) for path in again)
    with pytest.raises(ValueError, match="on_ray is False, but was True"):
        tok.encode_corpus(corpus, out, **options)

    (corpus / "bad.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: .* at column"):
        scale.encode_corpus(corpus / "bad.jsonl", tok, tmp_path / "bad", separator="|", shard_tokens=400)
