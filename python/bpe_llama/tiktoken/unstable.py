"""The ways in which the ids of an unfinished text can go on.

More text can change the last ids: ``"hello fanta"`` may become ``"hello fantastic"``, which has no token ``" fanta"``.
Stable are the ids before the last piece, since no merge crosses its start. The bytes of the last piece and what follows
them can be:

- one token that begins with these bytes;
- a token that straddles their end: for each suffix of the bytes and each token that begins with it, the rest before and
  the token are encoded together, and the ids up to the end of the bytes are kept;
- for white space at the end, the last character apart: patterns leave the last space before a word to the word.

Source: ``encode_with_unstable`` of tiktoken 0.14, which defines the result.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from itertools import takewhile

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import split_pieces
from bpe_llama.tiktoken.arguments import Specials

# Unicode's White_Space. `str.isspace` also has the separators U+001C to U+001F.
_WHITE_SPACE = frozenset(
    map(chr, (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)


def encode_with_unstable(
    core: CoreTokenizer,
    ranks: dict[bytes, int],
    sorted_tokens: list[bytes],
    text: str,
    ids: list[int],
    specials: Specials,
) -> tuple[list[int], list[list[int]]]:
    """Return the stable ids of a text, and the ways to go on, sorted.

    Args:
        core: The tokenizer.
        ranks: Its tokens to id, without special tokens.
        sorted_tokens: The same tokens, sorted.
        text: The text.
        ids: Its ids.
        specials: The special tokens that it may contain.
    """
    count = _unstable_count(core, _after_specials(core, text, specials), ids)
    if count == 0:
        return ids, []
    stable, unstable = ids[: len(ids) - count], core.decode_bytes(ids[len(ids) - count :])
    ways: set[tuple[int, ...]] = {(ranks[token],) for token in _beginning_with(sorted_tokens, unstable)}
    ways.update(_straddling(core, sorted_tokens, unstable))
    last = unstable.decode()[-1]
    before = unstable[: -len(last.encode())]
    if before and last in _WHITE_SPACE:
        ways.add((*core.encode_piece(before, merged=True), *core.encode_piece(last.encode(), merged=True)))
    return stable, [list(way) for way in sorted(ways)]


def _after_specials(core: CoreTokenizer, text: str, specials: Specials) -> str:
    """Return the text after its last special token."""
    allowed = specials["allowed_special"]
    names = core.special_tokens if allowed == "all" else allowed
    if not names:
        return text
    longest_first = sorted(names, key=len, reverse=True)
    end = 0
    for found in re.finditer("|".join(map(re.escape, longest_first)), text):
        end = found.end()
    return text[end:]


def _unstable_count(core: CoreTokenizer, text: str, ids: list[int]) -> int:
    """Return how many of the last ids may change: those of the last piece, and of white space before white space."""
    pieces = split_pieces(core.pattern, text)
    if not pieces:
        return 0
    count = len(core.encode_piece(pieces[-1].encode()))
    special = set(core.special_tokens.values())

    def is_white_space(token: int) -> bool:
        return token not in special and not core.id_to_bytes(token).strip(b" \n\t")

    if is_white_space(ids[-count]):
        count += sum(1 for _ in takewhile(is_white_space, reversed(ids[:-count])))
    return count


def _beginning_with(sorted_tokens: list[bytes], prefix: bytes) -> Iterator[bytes]:
    for index in range(bisect_left(sorted_tokens, prefix), len(sorted_tokens)):
        if not sorted_tokens[index].startswith(prefix):
            return
        yield sorted_tokens[index]


def _straddling(core: CoreTokenizer, sorted_tokens: list[bytes], unstable: bytes) -> Iterator[tuple[int, ...]]:
    """Yield the ids up to the end of ``unstable`` for each token that may straddle it."""
    longest = max(map(len, sorted_tokens))
    continued = [
        unstable[:at] + token
        for at in range(max(1, len(unstable) - longest), len(unstable))
        for token in _beginning_with(sorted_tokens, unstable[at:])
    ]
    texts, rows = [], []
    for data in continued:
        try:
            texts.append(data.decode())
        except UnicodeDecodeError:  # a token that ends inside a character: no pattern can split it
            rows.append(core.encode_piece(data, merged=True))
    rows += core.encode_batch(texts, 1)
    for row in rows:
        kept = length = 0
        while kept < len(row) and length < len(unstable):
            length += len(core.id_to_bytes(row[kept]))
            kept += 1
        yield tuple(row[:kept])
