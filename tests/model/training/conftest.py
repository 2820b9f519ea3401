"""Data that the tests of training share; gradients are on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.model import training
from tests.model.training.helpers import TEMPLATE, write_talks


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums of small steps: easy to learn."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, (np.cumsum(np.random.default_rng(0).integers(0, 3, 4000)) % 64).astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def uneven() -> list[training.Example]:
    """Texts of different lengths, of which very different numbers of tokens are learned."""
    random = np.random.default_rng(0)
    sizes = ((40, 1), (12, 3), (60, 50), (33, 30), (5, 4), (40, 2), (21, 20), (60, 1))

    def example(length: int, learned: int) -> training.Example:
        ids = random.integers(3, 60, length)
        return training.Example(ids, np.where(np.arange(length) >= length - learned, ids, -100))

    return [example(*size) for size in sizes]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    tok = Tokenizer.train_from_iterator(
        ["what is up, and why is it so"] * 3, vocab_size=270, special_tokens=special, progress=False
    )
    tok.chat_template = TEMPLATE
    return tok


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_talks(
        tmp_path / "talks.jsonl",
        [[("user", f"what is {n}"), ("assistant", "up"), ("user", "is"), ("assistant", "up is")] for n in range(9)],
    )
