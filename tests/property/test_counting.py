"""Counts, truncation and chunks against their definitions, which encode each part of a text alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from bpe_llama import Tokenizer, _core
from bpe_llama._encoding import seams as seams_module
from bpe_llama._encoding.seams import has_seams, seams
from bpe_llama.training import SUPERWORD_PATTERN

NAMES = ["r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", "smollm_digits"]
CORPUS = ["the tether, don't  123456 THE'S été.\n\n\tかナ中日、 中日 (the) 😀😀 <s> a_b == c;"] * 3
LETTERS = (
    "abtheDON's'S12345²Ⅷé\u0301ßǅʰ中日かナ、。，！!?.,;:()[]{}<>=+*/\"_-&  \t\n\r\u00a0\u2003\u30fc\u0e33😀\u200d\x00"
)
TEXTS = st.one_of(
    st.text(LETTERS, max_size=24),
    st.lists(
        st.sampled_from(
            ["the", " ", "  ", "\n", "é", "'s", "12345", ".", "<s>", "、", "😀", "e\u0301", "\u0338", "=", "\u212b"]
        ),
        max_size=12,
    ).map("".join),
    st.text(max_size=12),
    st.lists(st.sampled_from(["\ud83d", "\ude00", "a", " "]), max_size=6).map("".join),
)


def trained(pattern: str) -> Tokenizer:
    return Tokenizer.train_from_iterator(CORPUS, 295, pattern=pattern, special_tokens=["<s>"], progress=False)


def of_tokenizers(folder: Any, normalizer: Any, *, prefix: bool = False, added: bool = False) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json with an added token, and a normalizer or a prefix."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.normalizer = normalizer
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator(CORPUS, trainer)
    theirs.add_tokens([AddedToken("e t", lstrip=True)] if added else [])
    path = folder / f"{prefix}{added}.json"
    theirs.save(str(path))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def toks(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """Return tokenizers with seams, then some without."""
    folder = tmp_path_factory.mktemp("described")
    return [
        *map(trained, NAMES),
        of_tokenizers(folder, normalizers.NFC()),
        trained(r"\s+|\S+"),
        trained(SUPERWORD_PATTERN),
        trained("cl100k").with_tokens(["e t", "."]),
        of_tokenizers(folder, None, prefix=True),
        of_tokenizers(folder, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), added=True),
    ]


INDEX = st.integers(0, len(NAMES) + 5)


def test_published_patterns_have_seams(toks: list[Tokenizer]) -> None:
    assert [has_seams(tok) for tok in toks] == [True] * (len(NAMES) + 1) + [False] * 5


@pytest.mark.parametrize("pattern", NAMES)
def test_every_character_makes_the_seams_that_it_seems_to(pattern: str) -> None:
    characters = [chr(code) for code in range(0x110000) if chr(code).isalnum() or code < 128]
    for follows in [" ", ".", "\n", "\uff0c"]:
        text = follows.join(characters)
        ends, at = set(), 0
        for piece in _core.split_pieces(pattern, text):
            at += len(piece)
            ends.add(at)
        assert ends.issuperset(seams(text))


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 3), st.integers(1, 5))
def test_seams_do_not_depend_on_how_far_is_searched_at_once(text: str, start: int, window: int) -> None:
    expected = list(seams(text, start))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seams_module, "_WINDOW", window)
        assert list(seams(text, start)) == expected


@settings(max_examples=300, deadline=None)
@given(INDEX, TEXTS)
def test_intervals_and_prefixes_count_each_part_alone(toks: list[Tokenizer], index: int, text: str) -> None:
    tok = toks[index]
    counts = tok.count_intervals(text)
    assert len(counts) == counts.count() == tok.count(text)
    for start in range(len(text) + 1):
        for stop in range(start, len(text) + 1):
            assert counts.count(start, stop) == tok.count(text[start:stop]), (start, stop)
    prefixes = tok.count_prefixes(text)
    assert prefixes.dtype == "int64"
    assert prefixes.tolist() == [tok.count(text[:stop]) for stop in range(len(text) + 1)]


def test_an_interval_is_that_of_a_slice(toks: list[Tokenizer]) -> None:
    text = "the tether, the end"
    counts = toks[0].count_intervals(text)
    assert counts.count(-7) == toks[0].count(text[-7:])
    assert counts.count(4, -3) == toks[0].count(text[4:-3])
    assert counts.count(9, 4) == 0 and counts.count(2, 999) == toks[0].count(text[2:])


@settings(max_examples=300, deadline=None)
@given(INDEX, st.lists(st.one_of(TEXTS, st.integers(0, 3)), max_size=12))
def test_an_appender_counts_the_whole_text(toks: list[Tokenizer], index: int, steps: list[str | int]) -> None:
    tok, texts = toks[index], []
    appender = tok.appender()
    for step in steps:
        if isinstance(step, str):
            texts.append(step)
            assert appender.push(step) == tok.count("".join(texts))
        elif step <= len(texts):
            appender.pop(step)
            del texts[len(texts) - step :]
        else:
            with pytest.raises(IndexError, match=f"cannot take back {step} pushes: there were {len(texts)}"):
                appender.pop(step)
        assert len(appender) == tok.count("".join(texts))


def cuts(tok: Tokenizer, text: str) -> dict[int, int]:
    """Return the places between two tokens and two characters, and how many tokens are before each."""
    found, end = {0: 0}, 0
    offsets = tok.encode_with_offsets(text)[1]
    for index, (start, stop) in enumerate(offsets):
        if start >= end:
            found[end] = index
        end = max(end, stop)
    return found | {len(text): len(offsets)}


@settings(max_examples=300, deadline=None)
@given(INDEX, TEXTS, st.integers(0, 12))
@example(1, "the tether", 0)
def test_the_left_side_loses_what_the_last_tokens_leave(
    toks: list[Tokenizer], index: int, text: str, max_tokens: int
) -> None:
    tok = toks[index]
    kept = tok.truncate(text, max_tokens, side="left")
    places = cuts(tok, text)
    total = places[len(text)]
    fitting = [at for at in places if total - places[at] <= max_tokens and tok.count(text[at:]) <= max_tokens]
    assert kept == (text if total <= max_tokens else text[min(fitting) :])
    assert text.startswith(tok.truncate(text, max_tokens))
    assert tok.count(kept) <= max_tokens


LEVELS: dict[str, Callable[[Tokenizer, str, int], bool]] = {
    "line": lambda tok, text, at: text[at - 1] == "\n",
    "word": lambda tok, text, at: text[at - 1].isspace() or text[at].isspace(),
    "token": lambda tok, text, at: at in cuts(tok, text),
    "character": lambda tok, text, at: not ("\ud800" <= text[at - 1] < "\udc00" <= text[at] < "\ue000"),  # one of two
}


def token_starts(tok: Tokenizer, text: str) -> list[int]:
    starts, end = [], 0
    for first, stop in tok.encode_with_offsets(text)[1]:
        starts.append(end if first >= end else max(first, starts[-1]))
        end = max(end, stop)
    return starts


def naive_end(tok: Tokenizer, text: str, start: int, max_tokens: int, boundary: str) -> int | None:
    """Return the last boundary within the next tokens up to which the text alone has few enough tokens."""
    later = [at for at in token_starts(tok, text) if at >= start]
    limit = later[max_tokens] if len(later) > max_tokens else len(text)
    levels = list(LEVELS)
    for level in levels[levels.index(boundary) :]:
        for at in range(limit, start, -1):
            if (at == len(text) or LEVELS[level](tok, text, at)) and tok.count(text[start:at]) <= max_tokens:
                return at
    return None


def naive_chunks(tok: Tokenizer, text: str, max_tokens: int, overlap: int, boundary: str) -> list[str] | None:
    """Return the chunks: of the places where the next may begin, the first from which it goes further."""
    chunks, start, stop = [], 0, 0
    while stop < len(text):
        first = stop
        if overlap and stop:
            first = ([0] * overlap + [at for at in token_starts(tok, text) if at < stop])[-overlap]
        for at in range(max(first, start + 1) if stop else 0, stop + 1):
            is_boundary = at == stop or LEVELS[boundary](tok, text, at)
            if is_boundary and (at == stop or tok.count(text[at:stop]) <= overlap):
                end = naive_end(tok, text, at, max_tokens, boundary)
                if end is not None and end > stop:
                    break
        else:
            return None  # a character that alone has more tokens
        chunks.append(text[at:end])
        start, stop = at, end
    return chunks


@settings(max_examples=600, deadline=None)
@given(
    INDEX,
    TEXTS.flatmap(lambda text: st.sampled_from([text, text * 3])),
    st.integers(4, 9),
    st.one_of(st.just(0), st.integers(0, 8)),
    st.sampled_from(list(LEVELS)),
)
def test_chunks_are_those_of_the_definition(
    toks: list[Tokenizer], index: int, text: str, max_tokens: int, overlap: int, boundary: str
) -> None:
    tok, overlap = toks[index], min(overlap, max_tokens - 1)
    expected = naive_chunks(tok, text, max_tokens, overlap, boundary)
    if expected is None:
        with pytest.raises(ValueError, match=f"max_tokens is {max_tokens}, but the character"):
            tok.split_by_tokens(text, max_tokens, overlap, boundary=boundary)
        return
    chunks = tok.split_by_tokens(text, max_tokens, overlap, boundary=boundary)
    assert chunks == expected
    assert all(tok.count(chunk) <= max_tokens for chunk in chunks)
    assert overlap or "".join(chunks) == text


def test_overlap_repeats_as_much_as_it_may() -> None:
    tok = Tokenizer.train_from_iterator(["the the the"], 259, pattern="cl100k", progress=False)
    text = "the the the the the the the the"
    assert tok.tokenize(text) == [b"the", *[b" the"] * 7]
    assert tok.split_by_tokens(text, 4, 2) == ["the the the the", " the the the the", " the the the the"]
    lines = "a\nb\nthe the the\n"
    assert tok.split_by_tokens(lines, 6, 2, boundary="line") == ["a\nb\n", "b\nthe the the\n"]


def test_bad_arguments_are_named(toks: list[Tokenizer]) -> None:
    tok = toks[1]
    with pytest.raises(ValueError, match="max_tokens is 0; it must be at least 1"):
        tok.split_by_tokens("a", 0)
    with pytest.raises(ValueError, match="overlap is 3; it must be at least 0 and less than max_tokens, 3"):
        tok.split_by_tokens("a", 3, 3)
    with pytest.raises(ValueError, match="boundary is 'page'; expected one of 'line', 'word', 'token', 'character'"):
        tok.split_by_tokens("a", 3, boundary="page")
    with pytest.raises(ValueError, match="max_tokens is 1, but the character '\U00010348' at 2 alone has 4 tokens"):
        tok.split_by_tokens("a \U00010348", 1)
    with pytest.raises(ValueError, match="side is 'top'; expected 'left' or 'right'"):
        tok.truncate("a", 1, side="top")
    with pytest.raises(ValueError, match="max_tokens must be at least 0, got -1"):
        tok.truncate("a", -1, side="left")
    with pytest.raises(TypeError, match=r"max_tokens must be an int, got 2\.5"):
        tok.split_by_tokens("a", 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text must be a str, got b'a'"):
        tok.appender().push(b"a")  # type: ignore[arg-type]
    assert tok.split_by_tokens("", 1) == []


def test_special_tokens_count_once_where_they_are_allowed(toks: list[Tokenizer]) -> None:
    tok = toks[1]
    assert tok.truncate("the<s>the", 2, side="left", allowed_special={"<s>"}) == "<s>the"
    assert tok.truncate("the<s>the", 2, side="left") != "<s>the"
