"""Twenty thousand special tokens: a caller that allows or refuses half of them by name pays for no comparisons."""

from __future__ import annotations

import random

import pytest

from bpe_llama import Tokenizer
from tests.cost import LINEAR, costs, growth

COUNT = 20_000
NAMES = [f"<|{name:05d}|>" for name in range(COUNT)]
BYTES = {bytes([b]): b for b in range(256)}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.from_ranks(BYTES, special_tokens={name: 256 + i for i, name in enumerate(NAMES)})


@pytest.fixture(scope="module")
def text() -> str:
    return "".join(random.Random(1).choices(NAMES[COUNT // 2 :], k=COUNT))


def test_a_long_list_of_allowed_tokens(tok: Tokenizer, text: str) -> None:
    shuffled = random.Random(2).sample(NAMES, COUNT)
    ids = tok.encode(text, allowed_special="all")
    assert tok.encode(text, allowed_special=shuffled) == tok.encode(text, allowed_special=set(NAMES)) == ids
    listed, all_of_them = costs(
        lambda: tok.encode(text, allowed_special=shuffled), lambda: tok.encode(text, allowed_special="all")
    )
    assert listed < 30 * all_of_them  # 3; hundreds where each name is compared


def test_tokens_that_end_in_nearly_every_state() -> None:
    def build(count: int) -> Tokenizer:
        return Tokenizer.from_ranks(BYTES, special_tokens={f"q{i}": 256 + i for i in range(count)})

    assert growth(build, 6_000) < LINEAR  # 20; hundreds where the automaton's states are renumbered in long cycles
    assert build(5_000).encode("q4999q5000", allowed_special="all") == [5255, 756, ord("0")]


def test_a_long_list_of_refused_tokens(tok: Tokenizer, text: str) -> None:
    refused, others = NAMES[: COUNT // 2], NAMES[COUNT // 2 :]
    plain = tok.encode(text)
    assert tok.encode(text, disallowed_special=refused) == plain
    assert tok.encode(text, allowed_special=others, disallowed_special="all") == tok.encode(text, allowed_special="all")
    listed, none = costs(lambda: tok.encode(text, disallowed_special=refused), lambda: tok.encode(text))
    assert listed < 30 * none  # 6; thousands where each token is compared
    with pytest.raises(ValueError, match=rf'"<\|00007\|>" at byte {len(text)};'):
        tok.encode(text + NAMES[7], disallowed_special=refused)


def test_refused_names_that_are_no_special_tokens(tok: Tokenizer) -> None:
    names = ["foo", "foobar", "oba", "é"]
    for length in (0, 3_000):  # short texts are searched in another way
        space = " " * length
        for text, name, at in (("xfoobar", "foobar", 1), ("fobar é", "oba", 1), ("é foo", "é", 0)):
            with pytest.raises(
                ValueError, match=f'the text holds "{name}" at byte {length + at}, which is in disallow'
            ):
                tok.encode(space + text, disallowed_special=names)
        assert tok.encode(space + "fo", disallowed_special=names) == tok.encode(space + "fo")
    text = "a short text"
    named, known = costs(
        lambda: tok.encode(text, disallowed_special=names[:1]), lambda: tok.encode(text, disallowed_special=NAMES[:1])
    )
    assert named < 10 * known  # 1; 40 where an automaton is built for each text
