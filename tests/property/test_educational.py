"""The plain Python tokenizer learns the merges and gives the ids of the fast one."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench import data
from bpe_llama import Tokenizer
from bpe_llama.educational import EducationalTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the text has too few pairs")

PATTERNS = ["r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", "smollm_digits"]
PATTERNS += [r"\s+|\S+", r"\p{L}+", r"(?=[A-Z])", "(?s:.+)", r"a|ab|\d{2}"]
SPECIAL = ["<s>", "<s>>", "é"]
LETTERS = st.sampled_from("ab c'sAé中12.\n\t<>")
TEXTS = st.one_of(
    st.text(LETTERS, max_size=40),
    st.lists(st.sampled_from(["aa", "ab", " b", "'s", "<s>", "<s>>", "é", "12"]), max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=8),
    st.lists(st.sampled_from(["\ud83d", "\ude00", "a"]), max_size=4).map("".join),
)
CORPORA = st.lists(TEXTS, min_size=1, max_size=12).filter(lambda texts: regex.sub("<s>>?|é", "", "".join(texts)))


@settings(max_examples=300, deadline=None)
@given(CORPORA, st.integers(0, 40), st.sampled_from(PATTERNS), st.lists(st.sampled_from(SPECIAL), unique=True), TEXTS)
def test_merges_and_ids_are_those_of_the_fast_one(
    texts: list[str], steps: int, pattern: str, special: list[str], other: str
) -> None:
    size = 256 + steps + len(special)
    fast = Tokenizer.train_from_iterator(texts, size, pattern=pattern, special_tokens=special, progress=False)
    slow = EducationalTokenizer.train(texts, size, pattern=pattern, special_tokens=special)
    assert list(slow.merges) == fast.merges
    assert slow.ids == fast.mergeable_ranks
    assert slow.special_tokens == fast.special_tokens
    twin = EducationalTokenizer.from_tokenizer(fast)
    for text in [*texts, other]:
        ids = fast.encode(text)
        assert slow.encode(text) == twin.encode(text) == ids
        assert slow.decode(ids) == fast.decode(ids)
        assert slow.encode(text, allowed_special="all") == fast.encode(text, allowed_special="all")
        assert slow.encode(text, allowed_special=special[:1]) == fast.encode(text, allowed_special=special[:1])


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=24),
        st.lists(st.sampled_from([b"ab", b" ", "é".encode(), b"\xc3", b"\xe4\xb8"])).map(b"".join),
    ),
    st.sampled_from(PATTERNS),
)
def test_any_bytes_are_those_of_the_fast_one(bytes_: bytes, pattern: str) -> None:
    texts = ["ab été ab  中 12", "a\xc3b Aé"]
    fast = Tokenizer.train_from_iterator(texts, 280, pattern=pattern, progress=False)
    slow = EducationalTokenizer.train(texts, 280, pattern=pattern)
    ids = slow.encode_bytes(bytes_)
    assert ids == fast.encode_bytes(bytes_)
    assert slow.decode_bytes(ids) == bytes_
    assert slow.decode(ids) == fast.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab", min_size=2, max_size=4), min_size=1, max_size=6, unique=True), st.text("ab", max_size=12))
@example(["aaa", "aa"], "aaaaa")
def test_ranks_in_any_order_give_the_ids_of_the_fast_one(tokens: list[str], text: str) -> None:
    """A token of three letters may come before its part of two: a merge then makes a better pair than itself."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    fast = Tokenizer.from_ranks(ranks | {token.encode(): 256 + i for i, token in enumerate(tokens)}, pattern="(?s:.+)")
    assert EducationalTokenizer.from_tokenizer(fast).encode(text) == fast.encode(text)


def test_a_special_token_given_twice_is_refused_as_by_the_fast_one() -> None:
    for train in (Tokenizer.train_from_iterator, EducationalTokenizer.train):
        with pytest.raises(ValueError, match="special_tokens: '<s>' is given twice; expected each once"):
            train(["ab"], 300, special_tokens=["<s>", "<s>"])


@pytest.mark.parametrize("name", ["cl100k", "llama3"])
def test_the_twin_of_a_published_tokenizer(real, name: str) -> None:
    fast = Tokenizer.from_file(real(data.vocabulary, name))
    twin = EducationalTokenizer.from_tokenizer(fast)
    text = "Don't count 1234567 tokens,\n\n  naïve 日本語 👩‍👩‍👧 == antidisestablishmentarianism!\t" + "x" * 40
    assert twin.encode(text) == fast.encode(text)
    whole = max(fast.mergeable_ranks, key=len).decode()
    assert twin.encode(whole) == fast.encode(whole)


def test_each_merge_is_drawn() -> None:
    out = io.StringIO()
    tok = EducationalTokenizer.train(["ab ab\nc"], 258, pattern="llama3", show=out)
    assert out.getvalue() == (
        "256 = a + b, which stood together 2 times: ab, ·|ab\n257 = · + ab, which stood together once: ·ab\n"
    )
    out = io.StringIO()
    assert tok.encode_bytes(b" ab\n\xff", show=out) == [257, tok.ids[b"\n"], tok.ids[b"\xff"]]
    assert out.getvalue() == "·|a|b\n·|ab\n·ab\n↵|\\xff\n"


def test_a_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    tok = EducationalTokenizer.train(["ab"], 257, show=out)
    tok.encode("ab", show=out)
    assert "\x1b[" in out.getvalue() and "|" not in out.getvalue()


def test_what_is_more_than_merging_is_refused() -> None:
    tok = Tokenizer.train_from_iterator(["abab"], 257, progress=False).with_tokens(["ba"])
    with pytest.raises(ValueError, match="does more than split text and merge bytes: it has added tokens"):
        EducationalTokenizer.from_tokenizer(tok)
    with pytest.raises(ValueError, match="vocab_size is 256; it must be at least 257"):
        EducationalTokenizer.train(["ab"], 256, special_tokens=["<s>"])
    with pytest.raises(ValueError, match="there is no text to train on"):
        EducationalTokenizer.train(["<s>"], 258, special_tokens=["<s>"])
    tok = EducationalTokenizer.train(["ab"], 257)
    with pytest.raises(ValueError, match="allowed_special names '<s>', which is no special token"):
        tok.encode("ab", allowed_special=["<s>"])
    with pytest.raises(KeyError, match="999"):
        tok.decode([999])


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['regex'] = None; import bpe_llama.educational"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: bpe_llama.educational needs regex: pip install regex" in done.stderr


def test_torch_is_not_imported() -> None:
    code = "import bpe_llama.educational, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
