"""Show a comparison: a table for a terminal, and a bar chart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bpe_llama._files import atomic_write
from bpe_llama._rich import Group, Table, Text
from bpe_llama.compare.measure import Comparison, Figures
from bpe_llama.display import visible

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_SUFFIXES = (".png", ".svg", ".pdf")


def comparison_table(comparison: Comparison, longest: int = 8) -> Group:
    """Return tables for a terminal: for each text a row a tokenizer, then the tokens of only one vocabulary.

    The fewest tokens of each text are bold.

    Args:
        comparison: What `compare` returns.
        longest: Examples of the tokens of only one vocabulary.
    """
    has_unknown = any(each.unknown for row in comparison.figures for each in row)
    table = Table("text", box=None)
    table.add_column("bytes", justify="right")
    table.add_column("tokenizer", overflow="fold")
    numbers = ["tokens", "bytes a token", "tokens a word", "single bytes", *["unknown"] * has_unknown, "MB/s"]
    for name in numbers:
        table.add_column(name, justify="right")
    for row in comparison.figures:
        fewest = min(each.tokens for each in row)
        for place, each in enumerate(row):
            rate = each.num_bytes / each.seconds / 1e6 if each.seconds else 0.0
            figures = [f"{each.tokens:,}", f"{each.bytes_per_token:.3f}", f"{each.fertility:.3f}"]
            figures += [f"{each.single_byte_share:.1%}", *[f"{each.unknown:,}"] * has_unknown, f"{rate:.4g}"]
            title = (Text(each.text), f"{each.num_bytes:,}") if place == 0 else ("", "")
            style = "bold" if each.tokens == fewest and len(row) > 1 else ""
            table.add_row(*title, Text(each.tokenizer), *figures, style=style)
        if len(row) > 1:
            table.add_row()
    if comparison.only is None or len(comparison.only) < 2:
        return Group(table)
    lines = []
    for name, tokens in zip(comparison.tokenizers, comparison.only, strict=True):
        examples = "  ".join(_shortened(repr(visible(token))) for token in tokens[:longest])
        lines.append(Text(f"only {name}: {len(tokens):,} tokens  {examples}"))
    lines.append(Text(f"in {'all' if len(lines) > 2 else 'both'}: {comparison.shared:,} tokens"))
    return Group(table, *lines)


def _shortened(text: str, most: int = 20) -> str:
    """Return a text, or its beginning.

    Examples:
        >>> _shortened("abcdef", 4)
        'abc…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def check_plot(path: Path) -> None:
    """Raise for a plot that cannot be written, before there is anything to plot.

    Raises:
        ValueError: If the file's name does not end in .png, .svg or .pdf, or matplotlib, which comes with
            ``bpe_llama[plot]``, is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"{path}: a plot's file ends in {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("a plot needs matplotlib: pip install 'bpe_llama[plot]'") from error


def save_plot(comparison: Comparison, path: Path) -> None:
    """Write two bar charts, bytes a token and tokens a word, with one group of bars a text.

    Args:
        comparison: What `compare` returns.
        path: A file ending in .png, .svg or .pdf; replaced atomically.

    Raises:
        ValueError: As of `check_plot`.
        OSError: If the file cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    rows, count = comparison.figures, len(comparison.tokenizers)
    height = 0.8 / count
    charts: list[tuple[str, Callable[[Figures], float]]] = [
        ("bytes a token (more is better)", lambda each: each.bytes_per_token),
        ("tokens a word (fewer is better)", lambda each: each.fertility),
    ]
    figure = Figure(figsize=(9, 1.6 + (0.25 + 0.25 * count) * len(rows)), layout="constrained")
    for axes, (label, value) in zip(figure.subplots(1, 2, sharey=True), charts, strict=True):
        for index, name in enumerate(comparison.tokenizers):
            places = [place + (index - (count - 1) / 2) * height for place in range(len(rows))]
            colour = _COLOURS[index % len(_COLOURS)]
            bars = axes.barh(places, [value(row[index]) for row in rows], height, label=name, color=colour)
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.set_yticks(range(len(rows)), comparison.texts)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(count, 4))
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
