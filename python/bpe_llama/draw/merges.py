"""The merges of byte-pair encoding, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from bpe_llama.display import visible
from bpe_llama.draw.figures import BLUE, GREY, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bpe_llama.educational import EducationalTokenizer
    from bpe_llama.tokenizer import Tokenizer


def draw_merges(tokenizer: Tokenizer | EducationalTokenizer, text: str) -> Figure:
    """Return a picture of how a text is encoded: a row for its bytes, then one for the tokens after each merge.

    Tokens that a merge has made have the colour orange in its row. A space is drawn as a dot, a byte of an incomplete
    character in hexadecimal. Pre-tokens are encoded one after the other; no merge crosses the gap between two.

    Args:
        tokenizer: Any that `bpe_llama.educational.EducationalTokenizer` can follow; it needs the package ``regex``.
        text: A word or a few.

    Raises:
        ValueError: If the text is empty, or the tokenizer does more than split text and merge bytes.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=258, progress=False)
        >>> [label.get_text() for label in draw_merges(tok, "lows").axes[0].get_yticklabels()]
        ['bytes', 'l + o', 'lo + w']
    """
    from bpe_llama.educational import EducationalTokenizer

    twin = tokenizer if isinstance(tokenizer, EducationalTokenizer) else EducationalTokenizer.from_tokenizer(tokenizer)
    pieces = [list(twin.merge_steps(piece.encode())) for piece in twin.split(text)]
    if not pieces:
        raise ValueError("there is nothing to draw: the text is empty")

    # Row by row: what each pre-token is at that time, and the token that the row's merge has made.
    rows: list[tuple[str, list[list[bytes]], int, bytes]] = [("bytes", [steps[0] for steps in pieces], -1, b"")]
    for which, steps in enumerate(pieces):
        for before, after in pairwise(steps):
            left, right = _merged(before, after)
            now = [*rows[-1][1]]
            now[which] = after
            rows.append((f"{_shown(left)} + {_shown(right)}", now, which, left + right))

    length = sum(_width(token) for piece in rows[0][1] for token in piece) + 0.5 * (len(pieces) - 1)
    figure = new_figure(max(3.2, 0.17 * length + 1.2), 0.3 * len(rows) + 0.3)
    axes = figure.add_subplot()
    for height, (_, row, which, made) in enumerate(rows):
        at = 0.0
        for index, piece in enumerate(row):
            for token in piece:
                width = _width(token)
                new = index == which and token == made
                axes.barh(height, width, 0.8, left=at, color=ORANGE if new else GREY, edgecolor="white", linewidth=1.5)
                axes.text(at + width / 2, height, _shown(token), ha="center", va="center", family="monospace")
                at += width
            at += 0.5
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows], family="monospace", color=BLUE)
    axes.set(xlim=(0, at - 0.5), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _merged(before: Sequence[bytes], after: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the pair of tokens that a merge has put together.

    >>> _merged([b"l", b"o", b"w"], [b"lo", b"w"])
    (b'l', b'o')
    """
    at = next(place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    return before[at], before[at + 1]


def _width(token: bytes) -> float:
    """Return the width of a token in characters of the row of bytes, so that a column keeps its bytes in all rows."""
    return float(sum(len(_shown(bytes([byte]))) for byte in token))


def _shown(token: bytes) -> str:
    return visible(token).replace(" ", "·").replace("\\x", "").replace("\n", "").replace("$", r"\$")
