"""A ``str`` of more than a million characters is read in parts: its ids are those of its bytes, and memory is saved."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest

from bpe_llama import Tokenizer

TEXT = "Été, 中文 and words\n\n it's 12345 <|begin_of_text|> " * 30_000  # 1.4 million characters
ASTRAL = TEXT + "\U0001f600" + TEXT
NO_BOUNDARY = "é" * 1_500_000
TEXTS = {"two bytes": TEXT, "four bytes": ASTRAL, "no boundary": NO_BOUNDARY, "at the limit": NO_BOUNDARY[: 1 << 20]}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_ids_of_the_bytes_at_each_call(tok: Tokenizer, text: str) -> None:
    expected = np.array(tok.encode_bytes(text.encode()))
    text = text[:1] + text[1:]  # a new object, which no call has seen
    for _ in range(3):
        assert np.array_equal(tok.encode_to_numpy(text), expected)
    assert tok.encode(text) == expected.tolist()
    assert np.array_equal(tok.encode_to_numpy(text[:1] + text[1:], bos=True)[1:], expected)


def test_special_tokens_are_found_in_all_parts(tok: Tokenizer) -> None:
    ids = tok.encode_to_numpy("é" + TEXT, allowed_special="all")
    assert (ids == tok.bos_id).sum() == 30_000
    with pytest.raises(ValueError, match=r"begin_of_text"):
        tok.encode("ü" + TEXT, disallowed_special="all")


def test_surrogates_become_what_they_are_in_a_short_text(tok: Tokenizer) -> None:
    pair, lone = "\ud83d\ude00", "\ud83d"
    for start in range(3):  # a part must not cut the pair
        text = "é" * ((1 << 20) - start) + pair + TEXT
        assert np.array_equal(tok.encode_to_numpy(text), tok.encode_to_numpy(text.replace(pair, "\U0001f600")))
    assert np.array_equal(tok.encode_to_numpy(TEXT + lone), tok.encode_to_numpy(TEXT + "\ufffd"))


def test_a_subclass_of_str_is_its_characters(tok: Tokenizer) -> None:
    class Shouting(str):
        __slots__ = ()

        def __getitem__(self, key: object) -> str:
            return "SHOUT"

    assert np.array_equal(tok.encode_to_numpy(Shouting(TEXT)), tok.encode_to_numpy(TEXT))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident memory that Linux reports")
def test_no_copy_of_the_text_is_made() -> None:
    script = """
import resource
from bpe_llama import Tokenizer
tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
tok.encode_to_numpy("low")
text = "é " * 30_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert tok.count("") == 0
ids = tok.encode_to_numpy(text)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, ids.nbytes // 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, ids = map(int, run.stdout.split())
    assert grown < ids + 40_000, f"{grown} kB for {ids} kB of ids and a text of 90 MB"


def test_a_list_that_checks_for_signals_is_whole(tok: Tokenizer) -> None:
    """Four million ids are put into a list between two checks; meanwhile the garbage collector cannot see it."""
    text = "a1 " * 2_500_000
    ids = tok.encode(text)
    assert len(ids) > 1 << 22 and ids == tok.encode_to_numpy(text).tolist()
    assert gc.is_tracked(ids)
