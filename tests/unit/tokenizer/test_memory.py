"""Memory: what hostile files and large batches take, and what happens where there is none left."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer, WordCounts
from bpe_llama._corpus.files import read_whole
from tests.unit.corpus.written import zstd

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit and the peak of a process's memory are Linux's")

READERS: dict[str, Callable[[Path, Tokenizer], Any]] = {
    "train": lambda path, _: Tokenizer.train(path, vocab_size=257, progress=False),
    "counts": lambda path, _: WordCounts.from_files(path, progress=False),
    "encode_files": lambda path, tok: tok.encode_files(path, path.with_suffix(".npy"), progress=False),
    "encode_corpus": lambda path, tok: tok.encode_corpus(path, path.with_suffix(".d"), progress=False),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three small files with 17 MiB of text, in which no place divides it."""
    folder = tmp_path_factory.mktemp("bombs")
    letters = b"a" * (17 << 20)
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"Some words. " + letters, 1))
    (folder / "a.txt.zst").write_bytes(zstd(letters))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + letters + b'"}', 1))
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_a_compressed_bomb_is_refused_with_the_file_and_the_place(reader: str, bombs: Path, tok: Tokenizer) -> None:
    places = {"a.txt.gz": "from byte 10", "a.txt.zst": "from byte 0", "a.jsonl.gz": "line 1, from byte 0 of its text"}
    for name, place in places.items():
        with pytest.raises(ValueError, match=rf"{name}, {place}: more than 16777216 bytes of text without a place"):
            READERS[reader](bombs / name, tok)


def test_a_file_read_as_a_whole_is_bounded(bombs: Path) -> None:
    assert len(read_whole(bombs / "a.txt.zst")) == 17 << 20
    with pytest.raises(ValueError, match=r"a.txt.zst: more than 1,000,000 bytes of text"):
        read_whole(bombs / "a.txt.zst", largest=1_000_000)


def test_a_counts_file_whose_words_share_long_prefixes_is_refused(tmp_path: Path) -> None:
    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value % 128 | 128]) + varint(value // 128)

    words = b"".join(varint(length) + b"\x01a\x01" for length in range(20_000))  # 200 MB of words in 110 kB
    body = b"BPEWORDS\x01\x02a+\x00" + varint(20_000) + words
    path = tmp_path / "counts"
    path.write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    with pytest.raises(ValueError, match=r"counts: damaged word counts: words of 200010000 bytes; expected at most"):
        WordCounts.load(path)


_CHILD = """
import gzip, re, resource, sys
from pathlib import Path
import numpy
from bpe_llama import Tokenizer, WordCounts

def status(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

tok = Tokenizer.from_ranks({bytes([b]): b for b in range(256)}, pattern="cl100k")
"""


@linux
def test_a_batch_of_short_texts_takes_little_memory() -> None:
    script = f"""{_CHILD}
texts = ["a"] * 1_000_000
tok.encode_batch_to_numpy(texts[:100_000], num_threads=1), tok.encode_batch(texts[:1000])
for encode in (tok.encode_batch_to_numpy, tok.encode_batch):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    encoded = encode(texts, num_threads=1)
    print((status("VmHWM") - before) // len(texts))
    del encoded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    arrays, lists = map(int, done.stdout.split())
    assert arrays < 90 and lists < 125, f"{arrays} and {lists} bytes a text; 72 of a list are Python's"


_TOO_MUCH = {
    "encode": "tok.encode_to_numpy(text)",
    "encode one piece": "tok.encode_to_numpy(letters)",
    "encode with offsets": "tok.encode_with_offsets(text)",
    "encode with offsets beyond ASCII": "tok.encode_with_offsets(chinese)",
    "encode a batch": "tok.encode_batch_to_numpy([text], num_threads=1)",
    "count words": "WordCounts.from_iterator(words(), num_threads=1, progress=False)",
    "count words on threads": "WordCounts.from_iterator(words(), num_threads=2, progress=False)",
}


@linux
def test_where_there_is_no_memory_a_call_ends_and_not_the_process() -> None:
    script = f"""{_CHILD}
text, letters, chinese = "a b " * 4_000_000, "a" * 16_000_000, "\u4e2d" * 5_000_000
words = lambda: (letters[i:] for i in range(9))
for name, call in {_TOO_MUCH!r}.items():
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (40 << 20), -1))
    try:
        eval(call)
    except MemoryError:
        print(name)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert tok.decode(tok.encode("and go on")) == "and go on"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == list(_TOO_MUCH), done.stderr


@linux
def test_short_texts_are_encoded_where_there_is_no_memory_for_a_larger_cache() -> None:
    """The cache stays as small as it is. A tokenizer that has none yet raises `MemoryError`."""
    script = f"""{_CHILD}
warm, cold = (Tokenizer.from_ranks({{bytes([byte]): byte for byte in range(256)}}) for _ in range(2))
warm.encode("go on")
blocks = [bytearray(60_000) for _ in range(200)]
del blocks[::2]  # what is left holds lists of ids, but no cache
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize"), -1))
for start in range(0, 200_000, 100):
    text = " ".join(f"{{word:x}}" for word in range(start, start + 100))
    assert len(warm.encode(text)) == len(text)
try:
    cold.encode("go on")
except MemoryError as error:
    assert "there is no memory for" in str(error)
else:
    raise AssertionError
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert cold.encode("go on") == list(b"go on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
