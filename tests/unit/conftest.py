"""A small tokenizer that most unit tests share, trained once a session on real text; a full disk; and code blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import data
from bpe_llama import Tokenizer
from tests.block_runner import BlockRunner

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Return a few hundred kilobytes of Python's own sources, with some text beyond ASCII."""
    sources = [p for p in data.stdlib_corpus() if p.name in {"argparse.py", "typing.py", "turtle.py", "_pydecimal.py"}]
    assert sources, "the standard library lacks argparse.py"
    other = "Ünïcödé, 日本語のテキスト, русский текст, हिन्दी, emoji 👩‍👩‍👧‍👦 and 1234567890. " * 20
    return [*(path.read_text("utf-8") for path in sources), other]


@pytest.fixture(scope="session")
def tok(corpus: list[str]) -> Tokenizer:
    """Return a tokenizer of 1,000 tokens with a beginning-of-text and an end-of-text token."""
    return Tokenizer.train_from_iterator(corpus, vocab_size=1000, special_tokens=[BOS, EOS])


@pytest.fixture(scope="session")
def bytes_only() -> Tokenizer:
    """Return a tokenizer that knows the 256 bytes and nothing else."""
    return Tokenizer.from_ranks({bytes([b]): b for b in range(256)}, pattern="cl100k")


@pytest.fixture(scope="session")
def runner() -> Iterator[BlockRunner]:
    """Yield what runs code blocks and `bpe-llama` of shell scripts, without importing torch for each."""
    with tempfile.TemporaryDirectory() as folder:
        found = BlockRunner(Path(folder))
        yield found
        found.close()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; needs root on Linux."""
    mount = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, check=False
        )
        if sys.platform == "linux" and os.geteuid() == 0
        else None
    )
    if mount is None or mount.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)
