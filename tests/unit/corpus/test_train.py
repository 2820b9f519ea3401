"""Training: options, errors, inputs, progress, interruption."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import subprocess
import sys
import threading
from itertools import islice

import pytest

from bpe_llama import Tokenizer, WordCounts
from bpe_llama.training import Progress
from tests.ctrl_c import interrupted, let_run

TEXTS = ["low lower lowest newer newest", "wide wider widest <|end|> low low"] * 5


def train(texts=TEXTS, vocab_size=270, **options):
    return Tokenizer.train_from_iterator(texts, vocab_size, progress=False, **options)


def test_special_tokens_take_the_last_ids_and_bound_words():
    special = ["<|begin|>", "<|end|>"]
    tok = train(special_tokens=special)
    assert tok.vocab_size == 270
    assert tok.special_tokens == {"<|begin|>": 268, "<|end|>": 269}
    counts = WordCounts.from_iterator(TEXTS, special_tokens=special, progress=False)
    assert not any(b"end" in word for word, _ in counts.most_common())
    assert counts.special_tokens == special
    # the space before and after the special token are words of their own, as if the text were cut there
    assert dict(counts.most_common())[b" "] == 5


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_nothing(num_threads):
    texts = [f"{word} text number {i}" for i in range(20_000) for word in ("some", "other")]
    assert train(texts, 300, num_threads=num_threads).merges == train(texts, 300, num_threads=1).merges


def test_counts_add_up_to_the_whole(tmp_path):
    parts = [WordCounts.from_iterator(islice(TEXTS, i, None, 3), progress=False) for i in range(3)]
    total = parts[0] + parts[1]
    total += parts[2]
    whole = WordCounts.from_iterator(TEXTS, progress=False)
    assert total == whole
    assert (len(total), total.total) == (len(whole), sum(count for _, count in whole.most_common()))
    total.save(tmp_path / "counts")
    loaded = WordCounts.load(tmp_path / "counts")
    assert loaded == whole == pickle.loads(pickle.dumps(whole))
    assert os.listdir(tmp_path) == ["counts"]
    assert Tokenizer.train_from_counts(loaded, 270, progress=False).merges == train().merges
    with pytest.raises(ValueError, match="patterns"):
        whole.merge(WordCounts.from_iterator(TEXTS, pattern="r50k", progress=False))
    with pytest.raises(ValueError, match="special tokens"):
        _ = whole + WordCounts.from_iterator(TEXTS, special_tokens=["x"], progress=False)


def test_most_common_orders_ties_by_bytes():
    counts = WordCounts.from_iterator(["b a b a c"], pattern=r"\S|\s", progress=False)
    assert counts.most_common(2) == [(b" ", 4), (b"a", 2)]
    assert counts.most_common() == [(b" ", 4), (b"a", 2), (b"b", 2), (b"c", 1)]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_counts(tmp_path, damage):
    path = tmp_path / "counts"
    WordCounts.from_iterator(TEXTS, progress=False).save(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-7]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = b"" if damage == "empty" else b"something else"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"counts.*(damaged|no word counts)"):
        WordCounts.load(path)
    with pytest.raises(FileNotFoundError):
        WordCounts.load(tmp_path / "missing")


def test_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text(TEXTS[0], encoding="utf-8")
    (tmp_path / "sub" / "a.txt").write_text(TEXTS[1], encoding="utf-8")
    expected = train(TEXTS[:2]).merges
    both = str(tmp_path / "**" / "*.txt")
    for paths in (tmp_path, str(tmp_path), both, [both], [tmp_path / "b.txt", tmp_path / "sub"], [tmp_path, tmp_path]):
        assert Tokenizer.train(paths, 270, progress=False).merges == expected
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt", encoding="utf-8") as file:
        for text in TEXTS[:2]:
            print(json.dumps({"id": 1, "body": text}), file=file)
    assert Tokenizer.train(tmp_path / "lines.jsonl.gz", 270, field="body", progress=False).merges == expected
    (tmp_path / "joined").write_text("<|x|>".join(TEXTS[:2]), encoding="utf-8")
    assert Tokenizer.train(tmp_path / "joined", 270, separator="<|x|>", progress=False).merges == expected


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="reading .parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": TEXTS[:2], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "more.txt").write_text(TEXTS[2], encoding="utf-8")
    assert Tokenizer.train(tmp_path, 270, progress=False).merges == train(TEXTS[:3]).merges
    with pytest.raises(ValueError, match=r"rows\.parquet: no column 'body'"):
        Tokenizer.train(tmp_path / "rows.parquet", 270, field="body", progress=False)


def test_bad_files(tmp_path):
    none = str(tmp_path / "*.none")
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer.train(none, 270)
    assert str(caught.value) == str(FileNotFoundError(errno.ENOENT, "no file matches this pattern", none))
    for absent in (tmp_path, tmp_path / "no such corpus.txt"):
        with pytest.raises(FileNotFoundError, match=absent.name):
            Tokenizer.train(absent, 270)
    with pytest.raises(ValueError, match="no paths"):
        Tokenizer.train([], 270)
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"bad\.txt: invalid UTF-8 at byte 3"):
        Tokenizer.train(tmp_path / "bad.txt", 270)
    (tmp_path / "bad.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="no text"):
        Tokenizer.train(tmp_path / "bad.txt", 270)
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"t": "a"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: no field .text"):
        Tokenizer.train(tmp_path / "bad.jsonl", 270)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"vocab_size": 255}, "at least 256"),
        ({"vocab_size": 257, "special_tokens": ["a", "b"]}, "at least 258"),
        ({"special_tokens": ["a", "a"]}, "'a' is given twice"),
        ({"special_tokens": [""]}, "empty"),
        ({"min_frequency": -1}, "min_frequency is -1"),
        ({"max_token_length": 0}, "max_token_length is 0"),
        ({"num_threads": 0}, "num_threads must be at least 1, or None, got 0"),
        ({"tie_order": "size"}, "tie_order is 'size'"),
        ({"pattern": "(unclosed"}, "unclosed"),
        ({"texts": []}, "no text"),
        ({"texts": [""]}, "no text"),
        ({"texts": ["", ""]}, "no text"),
    ],
)
def test_bad_values(options, what):
    with pytest.raises(ValueError, match=what):
        train(**options)
    if what == "no text":
        with pytest.raises(ValueError, match=what):
            Tokenizer.train_from_counts(WordCounts.from_iterator(options["texts"], progress=False), 270, progress=False)


@pytest.mark.parametrize(
    "options", [{"texts": "letters"}, {"texts": ["a", 1]}, {"texts": 1}, {"special_tokens": "<s>"}]
)
def test_bad_types(options):
    with pytest.raises(TypeError):
        train(**options)


def test_too_few_pairs_warn():
    with pytest.warns(UserWarning, match="vocab_size 400: the vocabulary has 257 tokens") as caught:
        tok = train(["ab"], 400, special_tokens=[])
    assert tok.vocab_size == 257
    assert caught[0].filename == __file__
    counts = WordCounts.from_iterator(["ab"], progress=False)
    with pytest.warns(UserWarning, match="has 257") as caught:
        Tokenizer.train_from_counts(counts, 400, progress=False)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="has 258"):
        tok = train(["ab"], 400, special_tokens=["x"])
    assert (tok.special_tokens, tok.vocab_size, len(tok.encode("ab"))) == ({"x": 257}, 258, 1)


def test_binary_files(tmp_path):
    with open(sys.executable, "rb") as file:
        (tmp_path / "program").write_bytes(file.read(1 << 20))
    with pytest.raises(ValueError, match=r"program: invalid UTF-8 at byte \d+"):
        Tokenizer.train(tmp_path / "program", 270, progress=False)
    # Bytes that no one types are text as long as they are UTF-8.
    (tmp_path / "zeros").write_bytes(bytes(10_000) + b"\x01\x7f")
    with pytest.warns(UserWarning, match="too few pairs"):
        tok = Tokenizer.train(tmp_path / "zeros", 300, progress=False)
    assert tok.decode_bytes(tok.encode_bytes(bytes(100))) == bytes(100)
    assert len(tok.encode("\0" * 64)) < 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets no one shorten an open file")
def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"some words of text\n" * 5_000_000)

    def shorten(update):
        if path.stat().st_size > 1000:
            os.truncate(path, 1000)

    with pytest.raises(OSError, match=r"corpus\.txt: the file shrank while it was read: \d+ of 95000000 bytes"):
        Tokenizer.train(path, 270, num_threads=1, progress=shorten)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.tiktoken", "counts", "ids.npy"])
def test_a_full_disk_leaves_the_old_file(name, tmp_path):
    """The system refuses to write more than some bytes to a file, as a full disk does."""
    code = """
import resource, signal, sys
from bpe_llama import Tokenizer, WordCounts
path, text = sys.argv[1], [f"word{i} " for i in range(100_000)]
counts = WordCounts.from_iterator(text, progress=False)
tok = Tokenizer.train_from_counts(counts, 600, progress=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    if path.endswith(".npy"):
        tok.encode_files("corpus.txt", path, progress=False)
    else:
        (counts if path.endswith("counts") else tok).save(path)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""
    (tmp_path / "corpus.txt").write_text("a word or two " * 10_000, encoding="utf-8")
    (tmp_path / name).write_bytes(b"what was there")
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert name in done.stderr and "too large" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / name).read_bytes() == b"what was there"
    assert sorted(os.listdir(tmp_path)) == sorted(["corpus.txt", name])


def test_a_special_token_in_the_text_is_never_merged_into():
    tok = train(["<|end|>"] * 1000 + ["x<|end|>y<|end|>low low"] * 10, 258, special_tokens=["<|end|>"])
    assert tok.merges == [(b"l", b"o")]
    with pytest.warns(UserWarning, match="too few pairs"):
        everything = train(["<|end|>"] * 1000 + ["x<|end|>y<|end|>low low"] * 10, 400, special_tokens=["<|end|>"])
    learned = [everything.id_to_bytes(i) for i in range(256, everything.special_tokens["<|end|>"])]
    assert learned == [b"lo", b"low", b" low"]


def test_one_repeated_byte():
    with pytest.warns(UserWarning, match="too few pairs"):
        tok = train(["a" * 1_000_000], 1000)
    assert tok.merges[:2] == [(b"a", b"a"), (b"aa", b"aa")]


def test_surrogates_become_the_replacement_character():
    counts = WordCounts.from_iterator(["a\ud800", "\ud83d\ude00"], progress=False)
    assert {"�".encode(), "😀".encode()} <= {word for word, _ in counts.most_common()}


def test_iterator_errors_come_through():
    def texts():
        yield from TEXTS
        raise OSError("the disk is on fire")

    for num_threads in (1, 2):
        with pytest.raises(OSError, match="on fire"):
            train(texts(), num_threads=num_threads)


def test_progress_is_reported():
    seen: list[Progress] = []
    Tokenizer.train_from_iterator(TEXTS, 270, progress=seen.append)
    assert [update.stage for update in seen][-1] == "merge"
    assert seen[-1] == ("merge", 14, 14)
    assert Progress("count", sum(map(len, TEXTS)), None) in seen

    def fail(update):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        Tokenizer.train_from_iterator(TEXTS, 270, progress=fail)


def test_bar_on_request(capfd):
    Tokenizer.train_from_iterator(TEXTS, 270, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert "merging pairs" in err


def test_bar_where_no_thread_can_be_started(capfd, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    Tokenizer.train_from_iterator(TEXTS, 270, progress=True)
    assert "merging pairs" in capfd.readouterr().err


def test_many_threads_train_at_once():
    results = []
    threads = [threading.Thread(target=lambda: results.append(train().merges)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [train().merges] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("stage", ["count", "lay out", "merge"])
def test_ctrl_c_stops_within_a_second(stage, tmp_path):
    code = """
import itertools, sys
from bpe_llama import Tokenizer
stage = sys.argv[1]
def texts():
    words = itertools.repeat("a word or two ") if stage == "count" else itertools.product("abcdefgh", repeat=7)
    for index, word in enumerate(words):
        if index == 1000 and stage == "count": print("ready", flush=True)
        yield "".join(word)
    if stage == "lay out": print("ready", flush=True)
def show(update):
    if stage == update.stage == "merge" and update.done: print("ready", flush=True)
try:
    Tokenizer.train_from_iterator(texts(), 500_000, progress=show)
except KeyboardInterrupt:
    sys.exit(3)
"""
    with subprocess.Popen([sys.executable, "-c", code, stage], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        let_run(process, 0.2)
        _, took = interrupted(process, process.stdout)
    assert process.returncode == 3
    assert took < 3.0, f"{took:.1f} s; a second is promised, and a slow machine may take three"


def test_pruned_counts_are_those_of_a_text_without_rare_words():
    texts = ["low lower lower lowest"]
    counts = WordCounts.from_iterator(texts, progress=False)
    pruned = counts.pruned(2)
    assert pruned.most_common() == [(b" lower", 2)]
    assert counts.pruned(1) == counts
    assert pruned == WordCounts.from_iterator([" lower", " lower"], progress=False)
    with pytest.raises(ValueError, match="min_count is 0; expected at least 1"):
        counts.pruned(0)
