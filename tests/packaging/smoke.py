"""Use each part of an installed wheel once: ``python -I tests/packaging/smoke.py``.

It needs the package with the extra ``cli``, and nothing of the repository, pytest or Rust. CI runs it with every wheel
on the wheel's own platform.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

import bpe_llama
from bpe_llama import Sampler, Tokenizer, WordCounts, tiktoken

SENTENCES = ["The cat sat on the mat.", "Die Katze saß auf der Matte.", "猫坐在垫子上。", "🐈" * 3]


def check_version() -> None:
    """The module, its metadata and the command say the same."""
    program = Path(sysconfig.get_path("scripts")) / "bpe-llama"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    assert bpe_llama.__version__ == importlib.metadata.version("bpe-llama") == said, said


def check_tokenizer(folder: Path) -> Tokenizer:
    """Train, encode, decode, save and load."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 50), encoding="utf-8")
    tok = Tokenizer.train(corpus, vocab_size=300, special_tokens=["<|end|>"])
    counted = Tokenizer.train_from_counts(WordCounts.from_files(corpus), vocab_size=300, special_tokens=["<|end|>"])
    tok.save(folder / "tokenizer.json")
    loaded = Tokenizer.from_file(folder / "tokenizer.json")
    rows = loaded.encode_batch(SENTENCES)
    assert rows == counted.encode_batch(SENTENCES) == [tok.encode_to_numpy(text).tolist() for text in SENTENCES]
    assert [loaded.decode(row) for row in rows] == SENTENCES
    assert len(rows[0]) < len(SENTENCES[0])
    assert tiktoken.list_encoding_names()
    return tok


def check_sampler(tok: Tokenizer) -> None:
    """Sample an id from logits, the same one for the same seed."""
    logits = np.random.default_rng(0).normal(size=tok.vocab_size).astype(np.float32)
    ids = [Sampler(temperature=0.8, top_p=0.95, seed=0).sample(logits) for _ in range(2)]
    assert ids[0] == ids[1] < tok.vocab_size
    assert Sampler(temperature=0.0).sample(logits) == int(logits.argmax())


def main() -> None:
    """Check all."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert not free_threaded or not sys._is_gil_enabled(), "the import has turned the GIL on"  # type: ignore[attr-defined]
    assert "torch" not in sys.modules
    assert Path(bpe_llama.__file__).with_name("model").joinpath("llama.py").exists()
    check_version()
    with tempfile.TemporaryDirectory() as folder:
        check_sampler(check_tokenizer(Path(folder)))
    python = f"Python {sys.version.split()[0]}{', free-threaded' if free_threaded else ''}"
    print(f"bpe-llama {bpe_llama.__version__} works: {python}, {sysconfig.get_platform()}")


if __name__ == "__main__":
    main()
