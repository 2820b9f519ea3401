"""Every hand-written splitter against its regex, matched by Python's `regex` and by Hugging Face's `tokenizers`.

The Rust tests compare with `fancy-regex`; here are two engines that share no code with it.
"""

from __future__ import annotations

import functools
import random

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from bpe_llama import _core

NAMES = ["r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", "smollm_digits"]
NAMES += [_core.SUPERWORD_PATTERN]
CODE_POINTS = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
# What published tokenizer.json files say, where it is not one Split by one regex.
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]


def split_by_regex(pattern: regex.Pattern[str], text: str) -> list[str]:
    """Return the matches of ``pattern`` and what lies between them."""
    pieces, start = [], 0
    for match in pattern.finditer(text):
        pieces += [text[start : match.start()], match.group()]
        start = match.end()
    return [piece for piece in [*pieces, text[start:]] if piece]


@functools.cache
def compiled(name: str) -> regex.Pattern[str]:
    return regex.compile(_core.pattern_regex(name))


@functools.cache
def huggingface(name: str) -> pre_tokenizers.PreTokenizer:
    def split(pattern: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    if name == "deepseek_v3":
        return pre_tokenizers.Sequence([split(step) for step in DEEPSEEK_V3])
    if name == "smollm":
        return pre_tokenizers.Sequence([split(r"\p{N}"), split(_core.pattern_regex("r50k"))])
    if name == "smollm_digits":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), split(_core.pattern_regex("r50k"))]
        )
    return split(_core.pattern_regex(name))


def split_by_huggingface(name: str, text: str) -> list[str]:
    return [piece for piece, _ in huggingface(name).pre_tokenize_str(text)]


@functools.cache
def newer_code_points() -> frozenset[str]:
    """The characters that `regex`, whose Unicode version moves with each release, classes otherwise than we do."""
    differing: set[str] = set()
    for members in [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\s", r"[\p{P}\p{S}]"]:
        # U+0000 is in none of the classes, so every second piece is a run of members.
        ours = {c for run in _core.split_pieces(f"{members}+", CODE_POINTS)[1::2] for c in run}
        differing |= ours ^ set(regex.findall(members, CODE_POINTS))
    return frozenset(differing)


@functools.cache
def no_characters() -> frozenset[str]:
    """The code points that are unassigned or for private use."""
    return frozenset(regex.findall(r"[\p{Cn}\p{Co}]", CODE_POINTS))


def check(name: str, text: str) -> None:
    pieces = _core.split_pieces(name, text)
    assert pieces == split_by_huggingface(name, text)
    if newer_code_points().isdisjoint(text):
        assert pieces == split_by_regex(compiled(name), text)


# Few letters, so that contractions and runs come up; then anything.
texts = st.lists(
    st.one_of(
        st.sampled_from(
            ["'s", "'LL", "'ſ", "'re", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "1", "123", "a", "B", "é", "中"]
        ),
        st.sampled_from(
            "aAsStlLrRvVdDmMeEéÉſǅªʼжЖשक中のア・゛한𝐀😀\u0301\u094d\u3099\u200d\ufe0f\u3040\x00\x1c\x85\u2028²٣Ⅷ𝟘'’!./\"(—，。"
        ),
        st.characters(exclude_categories=["Cs"]),
        st.text(max_size=8),
    )
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_pieces_are_those_of_the_regex(name: str, text: str) -> None:
    check(name, text)


@pytest.mark.parametrize("name", NAMES)
def test_every_code_point_in_the_usual_neighbourhoods(name: str) -> None:
    known = [c for c in CODE_POINTS if c not in newer_code_points()]
    # The Rust tests try nearly all; here every one of the scripts in daily use and a sample of the others. Code points
    # that are no characters are nine in ten of those and all of one class: a sample of one in a thousand.
    chosen = [c for c in known if ord(c) < 0x3100 or ord(c) % (997 if c in no_characters() else 97) < 2]
    for start in range(0, len(chosen), 4096):
        check(name, "".join(f"a{c}B {c}1{c}!{c}\n{c}{c}'s{c} " for c in chosen[start : start + 4096]))


@pytest.mark.parametrize(
    "pattern", ["(?=[A-Z])", r"\b", "(?:)", "x*", r"\s*", r"a??|b", r"(?<=\d)(?=[a-z])|\s+", r"\d+|(?!\d)"]
)
@given(text=st.text(st.sampled_from("aAbxB1 \n中é"), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_match_of_no_characters_cuts_as_in_tokenizers(pattern: str, text: str) -> None:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert _core.split_pieces(pattern, text) == [piece for piece, _ in split.pre_tokenize_str(text)]


random_letters = random.Random(0)
ADVERSARIAL = {
    "one letter": "a" * 100_000,
    "carets": "^" * 100_000,
    "spaces": " " * 100_000,
    "spaces, then a word": " " * 100_000 + "a",
    "mixed white space": "".join(random_letters.choices(" \t\n\r", k=50_000)),
    "line breaks and spaces": "\n " * 50_000,
    "random letters": "".join(
        random_letters.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", k=100_000)
    ),
    "random bytes as Latin-1": bytes(random_letters.choices(range(256), k=100_000)).decode("latin-1"),
    "base64": "".join(
        random_letters.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=100_000)
    ),
    "digits": "1234567890" * 10_000,
    "emoji joined": "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽" * 2_000,
    "stacked marks": ("e" + "\u0301\u0308\u0330" * 50) * 500,
    "special-looking": "<|endoftext|> <|im_start|>user\n<|eot_id|>" * 2_000,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_adversarial_texts(name: str, kind: str) -> None:
    text = ADVERSARIAL[kind]
    pieces = _core.split_pieces(name, text)
    assert "".join(pieces) == text
    # tokenizers is quadratic in long white space: compare on what it can take.
    assert _core.split_pieces(name, text[:5_000]) == split_by_huggingface(name, text[:5_000])
    assert _core.split_pieces(name, text[:5_000]) == split_by_regex(compiled(name), text[:5_000])


def test_unicode_version_is_stated() -> None:
    assert _core.UNICODE_VERSION == "16.0.0"


@pytest.mark.parametrize(("pattern", "expected"), [("cl100", "one of r50k, cl100k"), ("(", "not a valid regex")])
def test_bad_patterns_are_value_errors(pattern: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        _core.split_pieces(pattern, "text")


def test_a_regex_that_backtracks_without_end_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="gave up"):
        _core.split_pieces(r"(a|aa)+(?!a)\1b", "a" * 60)
