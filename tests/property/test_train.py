"""The trainer against its definition in a few lines of Python."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama import Tokenizer, WordCounts
from bpe_llama.training import SUPERWORD_PATTERN

pytestmark = pytest.mark.filterwarnings("ignore:the text has too few pairs")


def naive_merges(words: dict[bytes, int], byte_ids: dict[int, int], steps: int, min_frequency: int) -> list[bytes]:
    """Return the tokens of the merges, counting every pair anew for each."""
    sequences = [([byte_ids[byte] for byte in word], count) for word, count in words.items()]
    tokens = {index: bytes([byte]) for byte, index in byte_ids.items()}
    for new in range(256, 256 + steps):
        pairs: Counter[tuple[int, int]] = Counter()
        for ids, count in sequences:
            for pair in itertools.pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        count, pair = min((-count, pair) for pair, count in pairs.items())
        if -count < min_frequency:
            break
        tokens[new] = tokens[pair[0]] + tokens[pair[1]]
        for ids, _ in sequences:
            at = 0
            while at + 1 < len(ids):
                if (ids[at], ids[at + 1]) == pair:
                    ids[at : at + 2] = [new]
                at += 1
    return [tokens[index] for index in range(256, len(tokens))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab c'1é\n"), max_size=40), min_size=1, max_size=20).filter(any),
    st.integers(0, 30),
    st.integers(0, 4),
    st.sampled_from(["cl100k", "r50k", "llama3", "o200k", r"\s+|\S+"]),
    st.integers(1, 3),
)
def test_merges_follow_the_definition(texts, steps, min_frequency, pattern, num_threads):
    tok = Tokenizer.train_from_iterator(
        texts, 256 + steps, pattern=pattern, min_frequency=min_frequency, num_threads=num_threads, progress=False
    )
    counts = WordCounts.from_iterator(texts, pattern=pattern, progress=False)
    assert sum(len(word) * count for word, count in counts.most_common()) == len("".join(texts).encode())
    byte_ids = {tok.id_to_bytes(index)[0]: index for index in range(256)}
    expected = naive_merges(dict(counts.most_common()), byte_ids, steps, min_frequency)
    assert [tok.id_to_bytes(index) for index in range(256, tok.vocab_size)] == expected


TEXTS = st.lists(st.text(st.sampled_from("ab c'1é\n.,"), max_size=60), min_size=1, max_size=20).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    TEXTS,
    st.integers(0, 20),
    st.integers(1, 20),
    st.sampled_from(["cl100k", "o200k"]),
    st.sampled_from(["ids", "bytes"]),
)
def test_going_on_from_a_base_equals_one_go(texts, base_steps, steps, pattern, tie_order):
    options = {"tie_order": tie_order, "progress": False}
    base = Tokenizer.train_from_iterator(texts, 256 + base_steps, pattern=pattern, **options)
    whole = Tokenizer.train_from_iterator(texts, base.vocab_size + steps, pattern=pattern, **options)
    further = Tokenizer.train_from_iterator(texts, base.vocab_size + steps, base=base, **options)
    assert (further.merges, further.mergeable_ranks) == (whole.merges, whole.mergeable_ranks)
    assert further.pattern == whole.pattern


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.integers(0, 20), st.integers(1, 20))
def test_superwords_are_merges_of_longer_pieces_from_a_base(texts, others, words, steps):
    tok = Tokenizer.train_from_iterator(texts, 256 + words + steps, superword_from=256 + words, progress=False)
    base = Tokenizer.train_from_iterator(texts, 256 + words, progress=False)
    counts = WordCounts.from_iterator(texts, pattern=SUPERWORD_PATTERN, progress=False)
    second = Tokenizer.train_from_counts(counts, 256 + words + steps, base=base, progress=False)
    assert tok.mergeable_ranks == second.mergeable_ranks
    assert list(tok.mergeable_ranks.items())[: base.vocab_size] == list(base.mergeable_ranks.items())
    for text in [*texts, *others]:
        assert tok.decode(tok.encode(text)) == text
        assert tok.encode(text) == naive_encode(tok, text)


def naive_encode(tok: Tokenizer, text: str) -> list[int]:
    """Return the ids of doing each merge in turn throughout every piece."""
    ids = []
    for piece in pieces(text):
        tokens = [bytes([byte]) for byte in piece.encode()]
        for left, right in tok.merges:
            at = 0
            while at + 1 < len(tokens):
                if (tokens[at], tokens[at + 1]) == (left, right):
                    tokens[at : at + 2] = [left + right]
                at += 1
        ids += [tok.mergeable_ranks[token] for token in tokens]
    return ids


def pieces(text: str) -> list[str]:
    """Return the matches of the pattern and what lies between them."""
    ends = [0, *(end for match in regex.finditer(SUPERWORD_PATTERN, text) for end in match.span()), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends) if start < end]
