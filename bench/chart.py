"""The picture of the README: our speed at four jobs beside the best of the other programs, from docs/benchmarks.md.

python -m bench.chart    # writes docs/images/speed.svg

The SVG is written by hand: the same figures give the same file, whatever matplotlib is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "speed.svg"


class Job(NamedTuple):
    """A group of two bars: a row of a table and what its figures mean."""

    title: str
    table: str  # how the table's first heading cell begins
    row: str
    unit: str
    rate: Callable[[float], float]  # of a figure of the table; more is better
    no_peers: tuple[str, ...] = ()  # columns that are not another program that does the job


JOBS = [
    Job("Encode prose", "20 MB, MB/s", "prose into NumPy", "MB per second", lambda figure: figure),
    Job(
        "Train a vocabulary",
        "less is better",
        "20 MB mix, 32k: CPU seconds",
        "MB per CPU second",
        lambda figure: 20 / figure,
    ),
    Job(
        "Sample from 128,256 logits",
        "less is better, µs",
        "128,256 logits, real",
        "ids per second",
        lambda figure: 1e6 / figure,
        no_peers=("torch.logsumexp",),
    ),
    Job(
        "Decode, a LLaMA of 135M in 4 bits",
        "tokens a second",
        "int4, head too",
        "tokens per second",
        lambda figure: figure,
        no_peers=("bpe_llama, of the roofline",),
    ),
]

WIDTH, LEFT, FULL, BAR, GROUP = 480, 12, 300, 20, 84
STYLE = """
  text { font: 15px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .page { fill: #ffffff }
  .ours { fill: #0072b2 }
  .peer { fill: #a6a6a6 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f3f6 }
    .page { fill: #0d1117 }
    .ours { fill: #56b4e9 }
    .peer { fill: #7d8590 }
  }
"""


def rows(text: str, table: str) -> list[dict[str, str]]:
    r"""Return the rows of all tables whose first heading is ``table``: a dict from heading to cell.

    >>> rows("| a | b |\n|---|---|\n| 1 | **2** |\n", "a")
    [{'a': '1', 'b': '2'}]
    """
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        heading, _, *lines = [[cell.strip(" *") for cell in line[1:-1].split("|")] for line in block.splitlines()]
        if heading[0] == table:
            found += [dict(zip(heading, line, strict=True)) for line in lines]
    return found


def bars(text: str, job: Job) -> list[tuple[str, float]]:
    """Return the names and rates of ours and of the best other program.

    Raises:
        ValueError: If the page has no such row, or more than one.
    """
    named = [row for row in rows(text, job.table) if row[job.table] == job.row]
    if len(named) != 1:
        raise ValueError(
            f"docs/benchmarks.md has {len(named)} rows {job.row!r} in tables of {job.table!r}, expected one"
        )
    rates = {
        name: job.rate(float(cell.replace(",", "")))
        for name, cell in named[0].items()
        if name not in (job.table, *job.no_peers) and cell
    }
    ours = rates.pop("bpe_llama")
    best = max(rates, key=lambda name: rates[name])
    return [("bpe_llama", ours), (best, rates[best])]


def number(rate: float) -> str:
    """Return a rate in three digits.

    >>> number(22727.3), number(482.4), number(44.44), number(99.5)
    ('22,700', '482', '44.4', '99.5')
    """
    return f"{round(rate, -2):,.0f}" if rate >= 1000 else f"{rate:.3g}"


def svg(text: str) -> str:
    """Return the picture for the text of docs/benchmarks.md."""
    height = GROUP * len(JOBS) + 4
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>Speed of bpe_llama and of the best other program at four jobs</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
    ]
    for place, job in enumerate(JOBS):
        top = GROUP * place + 22
        both = bars(text, job)
        longest = max(rate for _, rate in both)
        lines.append(f'<text class="title" x="{LEFT}" y="{top}">{job.title}: {job.unit}</text>')
        for line, (name, rate) in enumerate(both):
            y = top + 8 + line * (BAR + 4)
            length = max(2.0, FULL * rate / longest)
            kind, size = ("peer" if line else "ours"), f'width="{length:.1f}" height="{BAR}"'
            lines.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" {size} rx="2"/>')
            lines.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{number(rate)}, {name}</text>')
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(svg((ROOT / "docs" / "benchmarks.md").read_text("utf-8")), "utf-8")
