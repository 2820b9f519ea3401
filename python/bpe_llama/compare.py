"""Compare two tokenizers: bytes a token on texts, and the tokens that only one of them has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bpe_llama.display import visible
from bpe_llama.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextRow:
    """The size of one text and the number of its tokens under two tokenizers."""

    name: str
    num_bytes: int
    tokens_a: int
    tokens_b: int

    @property
    def bytes_per_token(self) -> tuple[float, float]:
        """Bytes a token under each tokenizer; 0 for an empty text."""
        return tuple(self.num_bytes / tokens if tokens else 0.0 for tokens in (self.tokens_a, self.tokens_b))  # type: ignore[return-value]


@dataclass(frozen=True)
class Comparison:
    """One row for each text, the total last; and the tokens that only one tokenizer has, longest first."""

    rows: list[TextRow]
    shared: int
    only_a: list[bytes]
    only_b: list[bytes]


def compare(a: Tokenizer, b: Tokenizer, texts: Iterable[tuple[str, str]]) -> Comparison:
    """Return the comparison of two tokenizers on named texts.

    Args:
        a: One tokenizer.
        b: The other.
        texts: Pairs of a name and a text.

    Raises:
        ValueError: If there is no text.

    Examples:
        >>> ranks = {bytes([byte]): byte for byte in range(256)}
        >>> a, b = Tokenizer.from_ranks(ranks), Tokenizer.from_ranks(ranks | {b"ab": 256})
        >>> compare(a, b, [("all", "abab")]).rows[-1].bytes_per_token
        (1.0, 2.0)
    """
    rows = [TextRow(name, len(text.encode("utf-8", "replace")), a.count(text), b.count(text)) for name, text in texts]
    if not rows:
        raise ValueError("there is no text to compare on")
    total = TextRow(
        "total", *(sum(column) for column in zip(*((r.num_bytes, r.tokens_a, r.tokens_b) for r in rows), strict=True))
    )
    tokens_a, tokens_b = set(a.mergeable_ranks), set(b.mergeable_ranks)
    only_a, only_b = (
        sorted(tokens, key=lambda token: (-len(token), token)) for tokens in (tokens_a - tokens_b, tokens_b - tokens_a)
    )
    return Comparison([*rows, total], len(tokens_a & tokens_b), only_a, only_b)


def comparison_table(comparison: Comparison, name_a: str, name_b: str, longest: int = 8) -> Table:
    """Return a table for a terminal: one row a text, then the tokens of only one vocabulary."""
    table = Table("text", "bytes", f"{name_a}: bytes a token", f"{name_b}: bytes a token", "fewer tokens", box=None)
    for row in comparison.rows:
        rate_a, rate_b = row.bytes_per_token
        share = 1 - row.tokens_b / row.tokens_a if row.tokens_a else 0.0
        winner = "equal" if row.tokens_a == row.tokens_b else f"{name_b if share > 0 else name_a}, {abs(share):.1%}"
        style = "bold" if row.name == "total" else ""
        table.add_row(Text(row.name), f"{row.num_bytes:,}", f"{rate_a:.3f}", f"{rate_b:.3f}", winner, style=style)
    table.add_row()
    for name, tokens in ((name_a, comparison.only_a), (name_b, comparison.only_b)):
        examples = " ".join(repr(visible(token)) for token in tokens[:longest])
        table.add_row(f"only {name}", f"{len(tokens):,}", Text(examples))
    table.add_row("in both", f"{comparison.shared:,}")
    return table


def save_plot(comparison: Comparison, name_a: str, name_b: str, path: Path) -> None:
    """Write a bar chart of bytes a token, one pair of bars a text.

    Raises:
        ValueError: If matplotlib, which comes with ``bpe-llama[model]``, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("a plot needs matplotlib: pip install 'bpe-llama[model]'") from error
    rows = comparison.rows
    figure = Figure(figsize=(8, 1.5 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    for shift, name, side in ((-0.2, name_a, 0), (0.2, name_b, 1)):
        bars = axes.barh(
            [place + shift for place in places], [row.bytes_per_token[side] for row in rows], 0.38, label=name
        )
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("bytes a token (more is better)")
    axes.legend()
    figure.savefig(path)
