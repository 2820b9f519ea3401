"""Pickling, threads, forks and Ctrl-C."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bpe_llama import Tokenizer
from tests.ctrl_c import assert_ctrl_c_ends


def test_pickling_keeps_everything(tok: Tokenizer, corpus: list[str]) -> None:
    for again in (pickle.loads(pickle.dumps(tok)), copy.copy(tok), copy.deepcopy(tok)):
        assert again.encode(corpus[0]) == tok.encode(corpus[0])
        assert again.special_tokens == tok.special_tokens
        assert again.pattern == tok.pattern
        assert again.merges == tok.merges
        assert (again.bos_id, again.eos_id, again.vocab_size) == (tok.bos_id, tok.eos_id, tok.vocab_size)


def test_many_threads_share_one_tokenizer(tok: Tokenizer, corpus: list[str]) -> None:
    rows = [corpus[i % len(corpus)][i * 50 :][:2000] for i in range(200)]
    expected = [tok.encode(row) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tok.encode, rows)) == expected
        assert list(pool.map(lambda row: tok.encode_batch([row, row])[1], rows)) == expected
        assert list(pool.map(tok.count, rows)) == [len(ids) for ids in expected]


def test_encoding_lets_other_threads_run(tok: Tokenizer) -> None:
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    text = "some words to encode, " * 2_000_000
    ticker = threading.Thread(target=tick)
    ticker.start()
    most = 0
    for _ in range(20):  # a busy machine may not let the other thread run during the first call
        started = time.perf_counter()
        tok.count(text)
        finished = time.perf_counter()
        most = max(most, sum(started < t < finished for t in list(ticks)))
        if most >= 3:
            break
    stop.set()
    ticker.join()
    assert most >= 3


def _encode_in_child(tok: Tokenizer, text: str) -> list[list[int]]:
    return tok.encode_batch([text, text], num_threads=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_encodes_after_its_parent_used_threads(tok: Tokenizer, corpus: list[str]) -> None:
    text = corpus[0][:50_000]
    expected = tok.encode_batch([text] * 4, num_threads=2)[:2]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap_async(_encode_in_child, [(tok, text)] * 4).get(timeout=300)
    assert results == [expected] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_while_a_thread_encodes_can_encode(tok: Tokenizer, corpus: list[str]) -> None:
    text = corpus[0][:50_000]
    expected = tok.encode(text)
    stop = threading.Event()
    fresh = [copy.deepcopy(tok)]  # one that has encoded nothing, at every turn

    def work() -> None:
        while not stop.is_set():
            fresh[0].encode_batch([text] * 4, num_threads=2)
            fresh[0].encode_to_numpy(text)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for turn in range(20):
            fresh[0] = copy.deepcopy(tok)
            time.sleep(turn * 0.0003)
            child = os.fork()
            if child == 0:
                signal.alarm(120)  # a hang ends the child, and shows in its status
                ours = fresh[0]
                same = ours.encode(text) == expected and ours.encode_batch([text] * 3, num_threads=2) == [expected] * 3
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0, f"turn {turn}: it hung or gave other ids"
    finally:
        stop.set()
        for worker in workers:
            worker.join()


_LONG_CALLS = {
    "encode": "tok.encode_to_numpy('some words, ' * 30_000_000)",
    "encode a batch": "tok.encode_batch_to_numpy(['some words, ' * 100] * 300_000, num_threads=1)",
    "encode a batch on threads": "tok.encode_batch_to_numpy(['some words, ' * 100] * 300_000, num_threads=2)",
    "encode by a slow regex": "slow.encode_to_numpy('a' * 1_000_000)",
    "normalize and split by a tokenizer.json": "general.encode_to_numpy(text)",
    "the same on threads": "general.encode_batch_to_numpy([text, text], num_threads=2)",
    "merge a text that nothing splits": "whole.encode_to_numpy(text)",
    "truncate by a tokenizer.json": "general.truncate(text, 10**6)",
    "decode by a tokenizer.json": "general.decode(ids)",
    "offsets by a tokenizer.json": "general.encode_with_offsets(text)",
    "offsets as Python's": "tok.encode_with_offsets(text)",
    "offsets of a SentencePiece model": "pieces.encode_with_offsets(text)",
    "a quadratic search of a regex": "slow_search.encode('a' * 100_000 + 'cb')",
    "lone surrogates": "tok.encode('\\ud800' * 6_000_000)",
    "chunks of lone surrogates": "tok.truncate('\\ud800' * 6_000_000, 10**7, side='left')",
    "counts of a word without end": "tok.count_intervals('abcdefg' * 3_000_000)",
    "truncate by a SentencePiece model": "pieces.truncate(text, 10**7)",
    "a batch for a model": "general(text, truncation=True, max_length=10**6)",
    "train": "Tokenizer.train_from_iterator((('w%d ' % i) * 1000 for i in range(10**7)), vocab_size=50_000)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("call", list(_LONG_CALLS))
def test_ctrl_c_stops_a_long_call_within_a_second(call: str) -> None:
    script = f"""
import json
from bpe_llama import Tokenizer, _core

def described(normalizer, pattern):
    steps = [] if pattern is None else [pattern]
    split = [{{"type": "Split", "pattern": {{"Regex": p}}, "behavior": "Isolated", "invert": False}} for p in steps]
    space = {{"type": "Replace", "pattern": {{"String": " "}}, "content": "_"}}
    spaces = {{"type": "Replace", "pattern": {{"Regex": "_+"}}, "content": " "}}
    vocab = {{c: i for i, c in enumerate(["so", *"sometihngwrd_,é"])}}
    file = {{
        "normalizer": {{"type": "Sequence", "normalizers": [space, {{"type": normalizer}}]}},
        "pre_tokenizer": {{"type": "Sequence", "pretokenizers": split}},
        "decoder": {{"type": "Sequence", "decoders": [spaces, {{"type": "Fuse"}}]}},
        "model": {{"type": "BPE", "vocab": vocab, "merges": [["s", "o"]]}},
    }}
    return Tokenizer(_core.Tokenizer.build_from_huggingface(json.dumps(file).encode()))

general = described("NFKC", r"\\w+|[^\\w]+")
whole = described("NFD", None)
slow_search = described("NFD", "a+b")
text = "some wörds, naïve " * 500_000
ids = [0, 1, 2, 3, 12] * 2_000_000
bytes_ = [(f"<0x{{b:02X}}>", 0.0, 6) for b in range(256)]
letters = [(c, -1.0, 1) for c in "abcdefghijklmnopqrstuvwxyz\u2581"]
pieces = [("<unk>", 0.0, 2), ("so", -1.0, 1), ("<user>", 0.0, 4), *letters, *bytes_]
pieces = Tokenizer(_core.Tokenizer.build_from_gguf_pieces(pieces, True, []))
ranks = {{bytes([b]): b for b in range(256)}}
tok = Tokenizer.from_ranks(ranks, pattern="cl100k")
slow = Tokenizer.from_ranks(ranks, pattern=r"(?:(?:a|aa){{1,14}}(?<!a))?a")
print("ready", flush=True)
try:
    while True:
        {_LONG_CALLS[call]}
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    assert_ctrl_c_ends(script, "stopped\n")


def test_the_memory_of_the_cache_can_be_set_and_changes_no_id(tok: Tokenizer) -> None:
    assert tok.cache_bytes == 60 << 20
    text = " ".join(f"{i}{'word' * (i % 9)}" for i in range(60_000))
    expected = tok.encode(text)
    again = copy.copy(tok)
    again.cache_bytes = 1 << 20
    assert again.cache_bytes == 1 << 20
    assert again.encode(text) == expected
    for wrong in (0, -1, (1 << 20) - 1):
        with pytest.raises(ValueError, match=f"at least {1 << 20}, got {wrong}"):
            again.cache_bytes = wrong
