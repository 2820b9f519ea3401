"""Ten thousand special tokens: encoding takes time linear in the text, whatever the caller allows or refuses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from bpe_llama import Tokenizer

COUNT = 20_000
NAMES = [f"<|{name:05d}|>" for name in range(COUNT)]
BYTES = {bytes([b]): b for b in range(256)}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.from_ranks(BYTES, special_tokens={name: 256 + i for i, name in enumerate(NAMES)})


@pytest.fixture(scope="module")
def text() -> str:
    return "".join(random.Random(1).choices(NAMES[COUNT // 2 :], k=COUNT))


def seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return best


def test_a_long_list_of_allowed_tokens(tok: Tokenizer, text: str) -> None:
    shuffled = random.Random(2).sample(NAMES, COUNT)
    ids = tok.encode(text, allowed_special="all")
    assert tok.encode(text, allowed_special=shuffled) == tok.encode(text, allowed_special=set(NAMES)) == ids
    assert seconds(lambda: tok.encode(text, allowed_special=shuffled)) < 0.3  # 1 s and more where each name is compared


def test_a_long_list_of_refused_tokens(tok: Tokenizer, text: str) -> None:
    refused, others = NAMES[: COUNT // 2], NAMES[COUNT // 2 :]
    plain = tok.encode(text)
    assert tok.encode(text, disallowed_special=refused) == plain
    assert tok.encode(text, allowed_special=others, disallowed_special="all") == tok.encode(text, allowed_special="all")
    assert seconds(lambda: tok.encode(text, disallowed_special=refused)) < 0.3  # 4 s where each token is compared
    with pytest.raises(ValueError, match=rf'"<\|00007\|>" at byte {len(text)};'):
        tok.encode(text + NAMES[7], disallowed_special=refused)
