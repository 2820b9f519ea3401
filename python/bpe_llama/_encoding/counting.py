"""The part of `bpe_llama.Tokenizer` that counts tokens, and cuts text by their number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bpe_llama._arguments import integer, reusable, string, wrong
from bpe_llama._core import shown
from bpe_llama._encoding.corpora import CorpusTokenizer
from bpe_llama._encoding.counters import Appender, IntervalCounts, prefix_counts
from bpe_llama._encoding.splitting import Splitter, last_tokens


class CountingTokenizer(CorpusTokenizer):
    """A compiled tokenizer that counts tokens of parts of a text, and cuts text by their number.

    The number of tokens of a part is not a difference of two others, since a part that begins or ends inside a token
    has other tokens. All numbers here are those of `count` on the part alone.

    What is remembered of a text are its seams: places between a letter or number and white space or punctuation, where
    published patterns always end a pre-token. A tokenizer has no seams if it has another pattern, a normalizer other
    than NFC, SentencePiece's prefix, or added tokens that are always found. The results are as exact for it, at the
    cost that each method names.
    """

    def count_prefixes(self, text: str) -> NDArray[np.int64]:
        """Return the number of tokens of each prefix: `count(text[:i])` at `i`, shape (len(text) + 1,), int64.

        A longer prefix may have fewer tokens: ``lo`` has two where ``low`` is one.

        Cost: linear in the text, and quadratic in the longest stretch without a seam. For a tokenizer without seams
        that is the whole text.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["lower low"] * 3, vocab_size=258, progress=False)
            >>> tok.tokenize("low low"), tok.count_prefixes("low low").tolist()
            ([b'low', b' ', b'low'], [0, 1, 1, 1, 2, 3, 3, 3])
        """
        return prefix_counts(self, string("text", text))

    def count_intervals(self, text: str) -> IntervalCounts:
        """Return an object whose `count(start, stop)` is `tok.count(text[start:stop])`, for any interval.

        Cost: linear in the text. A query then encodes the part of a word at either end; for a tokenizer without seams,
        the interval.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["lower low"] * 3, vocab_size=258, progress=False)
            >>> counts = tok.count_intervals("low lower lowest")
            >>> len(counts), counts.count(4, 9), counts.count(1), tok.count("ow lower lowest")
            (10, 3, 11, 11)

        Source: the interval encoding of the crate ``bpe`` in GitHub's rust-gems.
        """
        return IntervalCounts(self, string("text", text))

    def appender(self) -> Appender:
        """Return a counter for a text that grows: `push` appends text, `pop` takes it back, `len` counts tokens."""
        return Appender(self)

    def truncate(self, text: str, max_tokens: int, *, side: str = "right", allowed_special: Iterable[str] = ()) -> str:
        """Return what is left of a text of which tokens are cut off at one side: at most `max_tokens` ids.

        The text is cut between tokens and between characters. Where the rest alone has more ids than it had as part of
        the text, more is cut off.

        Args:
            text: Any `str`.
            max_tokens: The number of ids that `encode` returns for the result, at most.
            side: The side that loses text: `"right"` keeps the start of the text, `"left"` its end.
            allowed_special: Special tokens that stand for themselves.

        Raises:
            ValueError: If `max_tokens` is negative or `side` unknown; and as `encode_with_offsets`.

        Cost: linear in the text.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low lower"] * 3, vocab_size=258, progress=False)
            >>> tok.truncate("low low low", 3), tok.truncate("low low low", 3, side="left")
            ('low low', 'low low')
        """
        if string("side", side) == "right":
            return super().truncate(text, max_tokens, allowed_special=allowed_special)
        if side != "left":
            raise ValueError(f"side is {shown(side)}; expected 'left' or 'right'")
        if integer("max_tokens", max_tokens) < 0:
            raise ValueError(wrong("max_tokens", max_tokens, "at least 0"))
        return last_tokens(self, text, max_tokens, reusable("allowed_special", allowed_special))

    def split_by_tokens(self, text: str, max_tokens: int, overlap: int = 0, *, boundary: str = "token") -> list[str]:
        """Return chunks of a text, in order, each of which alone has at most `max_tokens` ids.

        No character is cut. Without overlap the chunks together are the text. A chunk ends at the last boundary within
        the next `max_tokens` tokens of the text, or at an earlier one where the chunk alone has more ids. If there is
        none, the next finer boundary is taken: the end of a line, of a word, of a token, of a character.

        Args:
            text: Any `str`.
            max_tokens: The number of ids of a chunk, at most.
            overlap: How many ids of the chunk before are repeated, at most. The repeated text begins at a boundary.
            boundary: Where chunks begin and end: after a `"line"`; at a `"word"`, beside white space; between two
                `"token"` of the text; or at any `"character"`.

        Raises:
            ValueError: If `max_tokens` is less than 1, or than the ids of one character; if `overlap` is negative or
                not less than `max_tokens`; if the boundary is unknown; and as `encode_with_offsets`.

        Cost: linear in the text for each chunk that overlaps a place in it, for every tokenizer.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low lower"] * 3, vocab_size=258, progress=False)
            >>> tok.split_by_tokens("low low low low", 4, boundary="word")
            ['low low ', 'low low']
            >>> tok.split_by_tokens("low low low low", 4, overlap=2)
            ['low low ', 'low low ', 'low low']
        """
        max_tokens, overlap = integer("max_tokens", max_tokens), integer("overlap", overlap)
        return Splitter(self, text, max_tokens, overlap, boundary).chunks()
