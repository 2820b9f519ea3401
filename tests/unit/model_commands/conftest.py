"""A tokenizer, a token file and a small trained model, made by the commands themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from tests.unit.model_commands.helpers import TEXT, pretrain


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json, tokens.npy and a trained run."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = Tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|endoftext|>"], progress=False)
    tokenizer.save(folder / "tokenizer.json")
    np.save(folder / "tokens.npy", np.array(tokenizer.encode(TEXT), dtype=np.uint16))
    assert main(pretrain(folder, folder / "run")) == 0
    return folder
