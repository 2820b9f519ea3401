r"""Byte-pair encoding in plain Python, to read and to watch.

`EducationalTokenizer` learns the same merges and gives the same ids as `bpe_llama.Tokenizer`, one merge after the other
and thousands of times slower. With a stream as ``show``, each merge is drawn there: on a terminal, neighbouring tokens
have different backgrounds; elsewhere a ``|`` stands between them.

>>> import sys
>>> tok = EducationalTokenizer.train(["low lower lowest"], vocab_size=259, show=sys.stdout)
256 = l + o, which stood together 3 times: lo|w, ·|lo|w|e|r, ·|lo|w|e|s|t
257 = lo + w, which stood together 3 times: low, ·|low|e|r, ·|low|e|s|t
258 = · + low, which stood together 2 times: ·low|e|r, ·low|e|s|t
>>> tok.encode(" lows", show=sys.stdout)
·|l|o|w|s
·|lo|w|s
·|low|s
·low|s
[258, 82]

The module needs the package ``regex``, since Python's ``re`` lacks classes such as ``\p{L}``. A recent ``regex`` knows
letters of Unicode versions after 16.0, which `bpe_llama` does not; around them, pre-tokens may differ.

Source: Sennrich et al. 2016, arXiv:1508.07909, with the bytes of UTF-8 as the first tokens, as in GPT-2.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

from bpe_llama._arguments import instance, integer, iterator, string, strings, wrong
from bpe_llama._core import pattern_regex, shown
from bpe_llama._rich import Console, Text
from bpe_llama.counts import DEFAULT_PATTERN, check_special_tokens
from bpe_llama.display import coloured_tokens, visible
from bpe_llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import regex
except ImportError as error:
    raise ImportError("bpe_llama.educational needs regex: pip install regex") from error

Pair = tuple[bytes, bytes]

# The ids of the bytes are those of GPT-2: first the bytes that Latin-1 prints, then the others.
_PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_BYTES = [bytes([byte]) for byte in (*_PRINTED, *(byte for byte in range(256) if byte not in _PRINTED))]

_SHOWN = 8  # The examples that are drawn for a learned merge.


class EducationalTokenizer:
    """A byte-level BPE tokenizer in plain Python.

    Attributes:
        ids: Each token, ``bytes``, and its id.
        merges: The pairs of tokens that merge, best first, and the place of each in that order.
        pattern: The regex whose matches are the pre-tokens.
        special_tokens: The text of each special token, and its id.
    """

    def __init__(
        self,
        ids: dict[bytes, int],
        merges: Sequence[Pair],
        pattern: str = DEFAULT_PATTERN,
        special_tokens: dict[str, int] | None = None,
    ) -> None:
        """Take a vocabulary; `train` learns one, and `from_tokenizer` takes that of another tokenizer."""
        self.ids = ids
        self.merges = {pair: rank for rank, pair in enumerate(merges)}
        self.pattern = pattern_regex(pattern)
        self.special_tokens = special_tokens or {}
        # Tokens that no merges lead to, as in some published vocabularies, are found as whole pre-tokens only.
        self._whole: dict[bytes, int] = {}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str = DEFAULT_PATTERN,
        special_tokens: Sequence[str] = (),
        show: TextIO | None = None,
    ) -> Self:
        """Return the tokenizer that is learned from texts, as `bpe_llama.Tokenizer.train_from_iterator` does.

        Args:
            texts: The texts.
            vocab_size: The number of ids: 256 bytes, merges and special tokens. There are fewer if no pair is left.
            pattern: The name of a published pattern, or a regex.
            special_tokens: They have the last ids. In the texts they are not learned from.
            show: Where each merge is drawn, with the most frequent pre-tokens that it changed.

        Raises:
            ValueError: If `vocab_size` has no room for the bytes and special tokens, or there is no text.
        """
        special = dict.fromkeys(check_special_tokens(special_tokens))
        num_merges = integer("vocab_size", vocab_size) - 256 - len(special)
        if num_merges < 0:
            least = 256 + len(special)
            raise ValueError(f"vocab_size is {vocab_size}; it must be at least {least}: 256 bytes and special tokens")
        tok = cls({byte: index for index, byte in enumerate(_BYTES)}, [], pattern)

        # A pre-token that occurs often is kept once, with its count.
        words = Counter(
            piece.encode()
            for text in iterator("texts", texts, "an iterable of str, such as a list of one")
            for part in _parts(string("a text", text), special, special)[::2]
            for piece in tok.split(part)
        )
        if not words:
            raise ValueError("there is no text to train on: the texts are empty")
        counted = [([bytes([byte]) for byte in word], count) for word, count in words.most_common()]

        for _ in range(num_merges):
            # Count the pairs of neighbours.
            pairs: Counter[Pair] = Counter()
            for tokens, count in counted:
                for pair in pairwise(tokens):
                    pairs[pair] += count
            if not pairs:
                break
            # The most frequent pair merges; of several, the one with the smaller ids.
            best = min(pairs, key=lambda pair: (-pairs[pair], tok.ids[pair[0]], tok.ids[pair[1]]))
            tok.merges[best] = len(tok.merges)
            tok.ids[best[0] + best[1]] = len(tok.ids)

            changed = [tokens for tokens, _ in counted if best in pairwise(tokens)]
            for tokens in changed:
                _merge(tokens, best, tok.merges)
            if show is not None:
                _draw_merge(show, len(tok.ids) - 1, best, pairs[best], changed[:_SHOWN])

        tok.special_tokens = {token: len(tok.ids) + index for index, token in enumerate(special)}
        return tok

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> Self:
        """Return the twin of a tokenizer, for example of a published one.

        Raises:
            ValueError: If it does more than split text and merge bytes: normalizers, SentencePiece, added tokens that
                are always found.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["low lower"], vocab_size=258, progress=False)
            >>> EducationalTokenizer.from_tokenizer(tok).encode("slow") == tok.encode("slow")
            True
        """
        file = json.loads(instance("tokenizer", tokenizer, Tokenizer).to_own_json())
        flags = [token[flag] for token in file["added_tokens"] for flag in ("single_word", "lstrip", "rstrip")]
        more = {
            f"the pipeline is general because of {tokenizer.general_because}": tokenizer.pipeline != "fast",
            "it has a normalizer": file.get("normalizer") is not None,
            "it puts a space before the text": '"add_prefix_space": true' in json.dumps(file.get("pre_tokenizer")),
            "it is SentencePiece's": file["model"]["byte_fallback"] or tokenizer.sentencepiece_model() is not None,
            "its special tokens take white space or stand alone": any(flags),
            "it has added tokens": tokenizer.added_tokens.keys() != tokenizer.special_tokens.keys(),
        }
        for reason, is_so in more.items():
            if is_so:
                raise ValueError(f"this tokenizer does more than split text and merge bytes: {reason}")
        pattern = tokenizer.pattern_name or tokenizer.pattern
        tok = cls(tokenizer.mergeable_ranks, tokenizer.merges, pattern, tokenizer.special_tokens)
        if file["model"]["ignore_merges"]:
            tok._whole = tok.ids
        return tok

    def split(self, text: str) -> list[str]:
        """Return the pre-tokens of a text: the matches of the pattern, and the text between them."""
        pieces, end = [], 0
        for match in regex.finditer(self.pattern, string("text", text)):
            pieces += [text[end : match.start()], match.group()]
            end = match.end()
        return [piece for piece in [*pieces, text[end:]] if piece]

    def encode(self, text: str, *, allowed_special: Iterable[str] = (), show: TextIO | None = None) -> list[int]:
        """Return the ids of a text, as `bpe_llama.Tokenizer.encode` does.

        Args:
            text: Any ``str``.
            allowed_special: Special tokens that stand for themselves, or ``"all"``.
            show: Where each pre-token is drawn, again after each merge.

        Raises:
            ValueError: If `allowed_special` names an unknown token.
        """
        is_all = isinstance(allowed_special, str) and allowed_special == "all"
        allowed = self.special_tokens if is_all else strings("allowed_special", allowed_special)
        for token in allowed:
            if token not in self.special_tokens:
                raise ValueError(f"allowed_special names {token!r}, which is no special token of this tokenizer")
        ids = []
        for place, part in enumerate(_parts(string("text", text), self.special_tokens, allowed)):
            if place % 2:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode_pieces([piece.encode() for piece in self.split(part)], show)
        return ids

    def encode_bytes(self, data: bytes, *, show: TextIO | None = None) -> list[int]:
        """Return the ids of any bytes: those after the last valid UTF-8 belong to the last pre-token before them."""
        try:
            text, rest = instance("data", data, bytes).decode(), b""
        except UnicodeDecodeError as error:
            text, rest = data[: error.start].decode(), data[error.start :]
        pieces = [piece.encode() for piece in self.split(text)]
        if rest:
            pieces.append((pieces.pop() if pieces else b"") + rest)
        return self._encode_pieces(pieces, show)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids; ``KeyError`` for an id that no token has."""
        tokens = {index: token for token, index in self.ids.items()}
        tokens |= {index: token.encode() for token, index in self.special_tokens.items()}
        found = []
        for given in iterator("ids", ids, "an iterable of ids"):
            index = integer("an id of ids", given)
            if index not in tokens:
                raise KeyError(f"no token has the id {shown(index)}")
            found.append(tokens[index])
        return b"".join(found)

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of ids; `errors` says what becomes of bytes that are no UTF-8, as in ``bytes.decode``."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def _encode_pieces(self, pieces: list[bytes], show: TextIO | None) -> list[int]:
        return [self.ids[token] for piece in pieces for token in self._encode_piece(piece, show)]

    def _encode_piece(self, piece: bytes, show: TextIO | None) -> list[bytes]:
        """Return the tokens of one pre-token, and draw them after each merge."""
        tokens: list[bytes] = []
        for tokens in self.merge_steps(piece):
            if show is not None:
                _draw(show, tokens)
        return tokens

    def merge_steps(self, piece: bytes) -> Iterator[list[bytes]]:
        """Yield the tokens of one pre-token: its bytes, then what each merge makes of them.

        The best pair of neighbours merges until none is left. One step merges it from left to right wherever it stands,
        up to a place where a better pair has come of it.

        Examples:
            >>> tok = EducationalTokenizer.train(["low lower lowest"], vocab_size=258)
            >>> [b"|".join(tokens) for tokens in tok.merge_steps(b"lows")]
            [b'l|o|w|s', b'lo|w|s', b'low|s']
        """
        tokens = [piece] if piece in self._whole else [bytes([byte]) for byte in piece]
        yield list(tokens)
        while known := [pair for pair in pairwise(tokens) if pair in self.merges]:
            _merge(tokens, min(known, key=self.merges.__getitem__), self.merges)
            yield list(tokens)


def _merge(tokens: list[bytes], pair: Pair, ranks: Mapping[Pair, int]) -> None:
    """Merge a pair wherever it stands, from left to right, until the token that it makes is in a better pair."""
    at, rank = 0, ranks[pair]
    while at + 1 < len(tokens):
        if (tokens[at], tokens[at + 1]) == pair:
            tokens[at : at + 2] = [pair[0] + pair[1]]
            if any(ranks.get(other, rank) < rank for other in pairwise(tokens[max(at - 1, 0) : at + 2])):
                return
        at += 1


def _parts(text: str, special: Iterable[str], allowed: Container[str]) -> list[str]:
    """Return ordinary text at even places, and between them the special tokens that are allowed.

    Special tokens are found from left to right, of several at one place the longest. One that is not allowed is
    ordinary text.
    """
    # As everywhere in the package, a surrogate without the other half is U+FFFD.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    longest_first = sorted(special, key=len, reverse=True)
    if not longest_first:
        return [text]
    parts = [""]
    for place, part in enumerate(regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)):
        if place % 2 and part in allowed:
            parts += [part, ""]
        else:
            parts[-1] += part
    return parts


def _text_of(tokens: Sequence[bytes], *, colour: bool) -> Text:
    """Return tokens on backgrounds, or between bars; a space is drawn as a dot."""
    visibly = [token.replace(b" ", "·".encode()).replace(b"\n", "↵".encode()) for token in tokens]
    return coloured_tokens(visibly) if colour else Text("|".join(map(visible, visibly)))


def _draw(stream: TextIO, tokens: Sequence[bytes]) -> None:
    console = _console(stream)
    console.print(_text_of(tokens, colour=console.is_terminal and not console.no_color))


def _draw_merge(stream: TextIO, index: int, pair: Pair, count: int, words: Sequence[list[bytes]]) -> None:
    console = _console(stream)
    colour = console.is_terminal and not console.no_color
    left, right = (_text_of([token], colour=colour) for token in pair)
    drawn = Text(", ").join(_text_of(word, colour=colour) for word in words)
    times = "once" if count == 1 else f"{count} times"
    console.print(Text.assemble(f"{index} = ", left, " + ", right, f", which stood together {times}: ", drawn))


def _console(stream: TextIO) -> Console:
    if not hasattr(stream, "write"):
        raise TypeError(wrong("show", stream, "a stream of text, or None"))
    # In a notebook, rich would show its own output and leave the stream empty.
    return Console(file=stream, soft_wrap=True, highlight=False, force_jupyter=False)
