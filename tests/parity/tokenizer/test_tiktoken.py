"""Ids equal tiktoken's, for every published vocabulary, on real and on adversarial text."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import data
from bench.published import PUBLISHED, first_difference
from bpe_llama import Tokenizer


@dataclass
class Pair:
    """The same vocabulary, loaded by us and by tiktoken."""

    name: str
    ours: Tokenizer
    theirs: tiktoken.Encoding


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def pair(request: pytest.FixtureRequest, real: Callable[..., Any]) -> Pair:
    published = PUBLISHED[request.param]
    path = real(lambda: published.path)
    ours = Tokenizer.from_tiktoken(path, pattern=published.pattern, special_tokens=published.special_tokens)
    return Pair(request.param, ours, published.as_tiktoken())


@pytest.fixture(scope="module")
def cl100k(real: Callable[..., Any]) -> Pair:
    published = PUBLISHED["cl100k"]
    path = real(lambda: published.path)
    ours = Tokenizer.from_tiktoken(path, pattern="cl100k", special_tokens=published.special_tokens)
    return Pair("cl100k", ours, published.as_tiktoken())


def test_our_patterns_equal_tiktokens(real: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", str(real(data.tiktoken_cache)))
    for name in ("r50k", "p50k", "cl100k", "o200k"):
        official = tiktoken.get_encoding(f"{name}_base")
        assert official._pat_str == PUBLISHED[name].regex == Tokenizer.from_name(f"{name}_base").as_tiktoken()._pat_str
        assert official._special_tokens == PUBLISHED[name].special_tokens
        assert official._mergeable_ranks == PUBLISHED[name].ranks()


@pytest.mark.parametrize("kind", data.KINDS)
def test_real_text(pair: Pair, texts: dict[str, str], kind: str) -> None:
    text = texts[kind][:500_000]
    expected = pair.theirs.encode_ordinary(text)
    assert first_difference(pair.ours.encode_ordinary(text), expected) == "equal"
    array = pair.ours.encode_to_numpy(text)
    assert array.dtype == np.uint32
    assert np.array_equal(array, expected)
    assert pair.ours.count(text) == len(expected)
    assert pair.ours.decode(expected) == text


def test_real_text_line_by_line(pair: Pair, texts: dict[str, str]) -> None:
    """Short inputs take other paths than long ones."""
    lines = [line for text in texts.values() for line in text.splitlines()[::25]]
    assert pair.ours.encode_batch(lines) == pair.theirs.encode_ordinary_batch(lines, num_threads=2)


def test_adversarial_text(pair: Pair, adversarial: dict[str, str]) -> None:
    wrong = {}
    for name, text in adversarial.items():
        result = first_difference(pair.ours.encode_ordinary(text), pair.theirs.encode(text, disallowed_special=()))
        if result != "equal":
            wrong[name] = result
    assert wrong == {}


def test_adversarial_text_of_a_megabyte(cl100k: Pair) -> None:
    for name, text in data.adversarial().items():
        expected = cl100k.theirs.encode(text, disallowed_special=())
        assert (name, first_difference(cl100k.ours.encode_ordinary(text), expected)) == (name, "equal")


def test_lone_surrogates_encode_as_tiktokens_do(pair: Pair) -> None:
    for text in ("\ud800", "a\ud83d", "\ude00\ud83d", "\ud83d\ude00", "x\udfff y", "\ud834's \udc00"):
        assert pair.ours.encode(text) == pair.theirs.encode(text), ascii(text)


def test_bytes_that_are_no_utf8(pair: Pair) -> None:
    draw = random.Random(1)
    for size in (0, 1, 2, 3, 10, 1000):
        block = draw.randbytes(size)
        ids = pair.ours.encode_bytes(block)
        assert pair.ours.decode_bytes(ids) == block
        assert pair.theirs.decode_bytes(ids) == block


def test_bytes_that_end_in_no_utf8_encode_as_tiktokens_do(pair: Pair) -> None:
    draw = random.Random(2)
    kinds = [
        b"hello ",
        b" it's",
        b"  ",
        b"\n",
        b"\t \n",
        b"\0",
        b"123456",
        "中".encode(),
        b"\xe4\xb8",
        b"\xff",
        b"\xed\xa0\x80",
    ]
    for _ in range(300):
        block = b"".join(draw.choices(kinds, k=draw.randint(1, 8)))
        assert pair.ours.encode_bytes(block) == pair.theirs._encode_bytes(block), block


def test_bytes_that_are_utf8_encode_as_their_text(pair: Pair, texts: dict[str, str]) -> None:
    sample = texts["multilingual"][:100_000]
    assert pair.ours.encode_bytes(sample.encode()) == pair.theirs.encode_ordinary(sample)


def _with_specials(names: list[str], draw: random.Random, text: str) -> str:
    """Return the text with special tokens and near misses sprinkled through it."""
    near_misses = [name[:-1] for name in names] + [name.upper() for name in names] + ["<|", "|>", "<|unknown|>"]
    words = text.split(" ")
    for _ in range(len(words) // 10):
        words.insert(draw.randrange(len(words)), draw.choice(names + near_misses))
    return " ".join(words)


def test_special_tokens_allowed_and_disallowed(pair: Pair, texts: dict[str, str]) -> None:
    names = sorted(pair.theirs.special_tokens_set)
    text = _with_specials(names, random.Random(2), texts["prose"][:50_000]) + names[0] * 3 + names[-1]
    ours, theirs = pair.ours, pair.theirs
    assert ours.encode(text) == theirs.encode(text, disallowed_special=())
    assert ours.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")
    for some in (names[:1], names[-1:], names[::2]):
        expected = theirs.encode(text, allowed_special=set(some), disallowed_special=())
        assert ours.encode(text, allowed_special=set(some)) == expected
    with pytest.raises(ValueError, match="special") as caught:
        ours.encode("Hello " + names[-1], disallowed_special="all")
    assert names[-1] in str(caught.value)
    with pytest.raises(ValueError, match="special"):
        theirs.encode("Hello " + names[-1])
    # Allowed wins over "all": tiktoken subtracts the allowed from the disallowed.
    assert ours.encode(names[0], allowed_special={names[0]}, disallowed_special="all") == theirs.encode(
        names[0], allowed_special={names[0]}
    )
    assert ours.encode("no such token here", disallowed_special="all") == theirs.encode("no such token here")
    assert ours.decode(ours.encode(text, allowed_special="all")) == text


def test_decoding(pair: Pair, texts: dict[str, str]) -> None:
    draw = random.Random(3)
    known = [i for i in range(pair.theirs.n_vocab) if _is_known(pair.theirs, i)]
    ids = draw.choices(known, k=20_000)
    assert pair.ours.decode_bytes(ids) == pair.theirs.decode_bytes(ids)
    assert pair.ours.decode(ids, errors="replace") == pair.theirs.decode(ids, errors="replace")
    rows = [ids[i : i + 100] for i in range(0, len(ids), 100)]
    assert pair.ours.decode_batch(rows) == pair.theirs.decode_batch(rows)
    for token_id in known[:: max(1, len(known) // 5000)]:
        token = pair.theirs.decode_single_token_bytes(token_id)
        assert pair.ours.id_to_bytes(token_id) == token
        assert pair.ours.token_to_id(token) == token_id
    assert pair.ours.vocab_size == pair.theirs.n_vocab


def _is_known(encoding: tiktoken.Encoding, token_id: int) -> bool:
    try:
        encoding.decode_single_token_bytes(token_id)
    except KeyError:
        return False
    return True


def test_the_vocabulary_reads_back_as_it_was_published(pair: Pair) -> None:
    assert pair.ours.mergeable_ranks == PUBLISHED[pair.name].ranks()
    assert pair.ours.special_tokens == PUBLISHED[pair.name].special_tokens


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(codec=None, categories=None), max_size=60))
def test_any_string(cl100k: Pair, text: str) -> None:
    assert cl100k.ours.encode(text) == cl100k.theirs.encode(text, disallowed_special=())


@settings(max_examples=300, deadline=None)
@given(text=st.text(" \t\n\r\u00a0\u2003'sStTrevmlldD1²Ⅷa\u0301éſK中字😀.<|>_-/", max_size=40))
def test_strings_dense_in_what_the_patterns_distinguish(pair: Pair, text: str) -> None:
    assert pair.ours.encode(text) == pair.theirs.encode(text, disallowed_special=())


@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_a_vocabulary_by_name(name: str, real: Callable[..., Any], texts: dict[str, str]) -> None:
    """Qwen's own tokenizers put text into normal form C before tiktoken encodes it."""
    real(data.vocabulary, name)
    ours, theirs = Tokenizer.from_name(name), PUBLISHED[name].as_tiktoken()
    text = texts["multilingual"][:300_000] + " cafe\u0301 \u212b"
    expected = theirs.encode_ordinary(unicodedata.normalize("NFC", text) if name == "qwen2" else text)
    assert first_difference(ours.encode_ordinary(text), expected) == "equal"
    assert PUBLISHED[name].special_tokens.items() <= ours.special_tokens.items()


@pytest.fixture(scope="module")
def llama4(real: Callable[..., Any]) -> tuple[Tokenizer, Any]:
    """Return Llama 4's tokenizer, loaded by us and by Meta's own class."""
    path = real(data.vocabulary, "llama4")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(real(data.llama_models)))
        module = importlib.import_module("llama_models.llama4.tokenizer")
    return Tokenizer.from_file(path), module.Tokenizer(path)


def test_llama4_equals_metas_tokenizer(
    llama4: tuple[Tokenizer, Any], texts: dict[str, str], adversarial: dict[str, str]
) -> None:
    ours, theirs = llama4
    assert ours.pattern_name == "o200k"
    assert ours.special_tokens == theirs.special_tokens
    assert ours.mergeable_ranks == theirs.model._mergeable_ranks
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (theirs.bos_id, theirs.eos_id, theirs.n_words)
    # Meta's class cuts longer runs apart, for the sake of tiktoken's stack.
    for name, text in {**texts, **{name: text[:20_000] for name, text in adversarial.items()}}.items():
        if name == "lone_surrogates":
            continue  # their class looks at each character of a text, tiktoken then at two of them
        text = text[:300_000]
        expected = theirs.encode(text, bos=True, eos=True)
        assert first_difference(ours.encode(text, bos=True, eos=True), expected) == "equal", name
        assert ours.decode(expected) == theirs.decode(expected)
    text = _with_specials(sorted(theirs.special_tokens)[::100], random.Random(4), texts["prose"][:50_000])
    expected = theirs.encode(text, bos=False, eos=False, allowed_special="all")
    assert ours.encode(text, allowed_special="all") == expected
    assert ours.encode(text) == theirs.encode(text, bos=False, eos=False)


def test_two_names_for_one_id(tmp_path: Path) -> None:
    """Both stand for it in text; it is decoded to one of them, to us the first."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    special = {"<a>": 300, "<c>": 257, "<b>": 300}
    ours = Tokenizer.from_ranks(ranks, pattern=r"\w+|\W", special_tokens=special)
    theirs = tiktoken.Encoding("two", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens=special)
    text = "x<a><b><c> <b>y<a"
    assert ours.special_tokens == special
    assert ours.vocab_size == theirs.n_vocab == 301
    for name, token_id in special.items():
        assert ours.token_to_id(name) == theirs.encode_single_token(name) == token_id
    for allowed in ("all", {"<a>"}, {"<b>"}, {"<a>", "<c>"}, set()):
        expected = theirs.encode(text, allowed_special=allowed, disallowed_special=())
        assert ours.encode(text, allowed_special=allowed) == expected
        assert ours.encode_batch([text, "<b>"], allowed_special=allowed)[0] == expected
    for name in ("<a>", "<b>"):
        with pytest.raises(ValueError, match=name):
            ours.encode(f"x{name}", disallowed_special={name})
    for encode in (theirs.encode, theirs.encode_to_numpy, ours.encode, ours.encode_to_numpy):
        with pytest.raises(ValueError, match=r"<\|im_start\|>"):  # another model's
            encode("a <|im_start|>", disallowed_special={"<|im_start|>", "<a>"})
    with pytest.raises(ValueError, match=r"<\|im_start\|>"):
        ours.encode_batch(["a", "a <|im_start|>"], disallowed_special={"<|im_start|>"})
    assert ours.decode([300]) == "<a>"  # theirs is the one that a hash table happens to hold last
    assert theirs.decode([300]) in special
    assert ours.decode([300], skip_special_tokens=True) == ""
    ours.save(tmp_path / "two.tiktoken")
    assert Tokenizer.from_file(tmp_path / "two.tiktoken").special_tokens == special
    assert pickle.loads(pickle.dumps(ours)).encode(text, allowed_special="all") == ours.encode(
        text, allowed_special="all"
    )


def test_harmony_has_two_names_for_one_id(
    real: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]
) -> None:
    monkeypatch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", str(real(data.tiktoken_cache)))
    theirs = tiktoken.get_encoding("o200k_harmony")
    special = dict(theirs._special_tokens)
    assert len(set(special.values())) == len(special) - 1
    ours = Tokenizer.from_tiktoken(real(data.vocabulary, "o200k"), pattern="o200k", special_tokens=special)
    assert ours.special_tokens == special
    assert ours.vocab_size == theirs.n_vocab
    text = _with_specials(sorted(special)[::50], random.Random(5), texts["prose"][:50_000])
    text += "<|endofprompt|><|reserved_200018|><|start|>user<|message|>Hi<|end|>"
    expected = theirs.encode(text, allowed_special="all")
    assert ours.encode(text, allowed_special="all") == expected
    assert ours.decode(expected) == theirs.decode(expected)
    for token_id in sorted(set(special.values())):
        assert ours.id_to_bytes(token_id) == theirs.decode_single_token_bytes(token_id)
