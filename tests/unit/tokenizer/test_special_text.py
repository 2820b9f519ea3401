"""No way into the tokenizer turns text into a special token unless the caller allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpe_llama import Tokenizer

SPECIAL = ("<|im_end|>", "§", "<|im_end|>§")
TEXTS = ["a<|im_end|>b", "<|im_end|>", "§", "§§<|im_end|>§", "<|im_<|im_end|>end|>"]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    text = ["system user im end im_end"] * 9
    return Tokenizer.train_from_iterator(text, 270, special_tokens=list(SPECIAL), progress=False)


def in_a_file(
    write: Callable[[Tokenizer, Path, Path], Iterable[int]],
) -> Callable[[Tokenizer, str, Path], Iterable[int]]:
    def encode(tok: Tokenizer, text: str, folder: Path) -> Iterable[int]:
        (folder / "text.txt").write_text(text, encoding="utf-8")
        return write(tok, folder / "text.txt", folder / "out")

    return encode


def encode_files(tok: Tokenizer, path: Path, out: Path) -> Iterable[int]:
    tok.encode_files(path, out.with_suffix(".npy"), progress=False)
    return np.load(out.with_suffix(".npy")).tolist()


def encode_corpus(tok: Tokenizer, path: Path, out: Path) -> Iterable[int]:
    tok.encode_corpus(path, out, progress=False)
    return np.load(out / "shard-00000.npy").tolist()


DOORS: dict[str, Callable[[Tokenizer, str, Path], Any]] = {
    "call": lambda tok, text, _: tok(text)["input_ids"],
    "call of a batch": lambda tok, text, _: tok([text, text])["input_ids"][1],
    "call of pairs": lambda tok, text, _: tok("a", text)["input_ids"][1:],
    "encode": lambda tok, text, _: tok.encode(text),
    "encode_batch": lambda tok, text, _: tok.encode_batch(["a", text])[1],
    "encode_batch_to_numpy": lambda tok, text, _: tok.encode_batch_to_numpy([text])[0],
    "encode_bytes": lambda tok, text, _: tok.encode_bytes(text.encode()),
    "encode_corpus": in_a_file(encode_corpus),
    "encode_files": in_a_file(encode_files),
    "encode_following": lambda tok, text, _: tok.encode_following(text, None),
    "encode_ordinary": lambda tok, text, _: tok.encode_ordinary(text),
    "encode_to_numpy": lambda tok, text, _: tok.encode_to_numpy(text),
    "encode_with_dropout": lambda tok, text, _: tok.encode_with_dropout(text, dropout=0.0, seed=0),
    "encode_with_offsets": lambda tok, text, _: tok.encode_with_offsets(text)[0],
    "tiktoken": lambda tok, text, _: tok.as_tiktoken().encode(text, disallowed_special=()),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("door", DOORS)
def test_text_of_a_special_token_stays_text(tok: Tokenizer, door: str, text: str, tmp_path: Path) -> None:
    ids = [int(token_id) for token_id in DOORS[door](tok, text, tmp_path)]
    assert not set(ids) & set(tok.special_tokens.values())
    assert tok.decode(ids) == text
    assert tok.count(text) == len(tok.encode(text))


@pytest.mark.parametrize("text", TEXTS)
def test_a_special_token_that_is_disallowed_raises(tok: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="disallowed"):
        tok.encode(text, disallowed_special="all")
    with pytest.raises(ValueError, match="disallowed"):
        tok.as_tiktoken().encode(text)
    assert set(tok.encode(text, allowed_special="all")) & set(tok.special_tokens.values())
