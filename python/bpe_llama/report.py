"""Report on a vocabulary and a corpus: bytes a token, and tokens that are long, rare, unused or split characters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bpe_llama._core import DocumentEncoder
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.encode_documents import Place, encode_documents
from bpe_llama._corpus.files import find_files, reading_of
from bpe_llama._files import PathLike
from bpe_llama._progress import ProgressOption, reporting
from bpe_llama._rich import Group, Table, Text
from bpe_llama.display import visible
from bpe_llama.tokenizer import Tokenizer

# The number of files with a row of their own; all others share one.
_FILES_SHOWN = 20


@dataclass(frozen=True)
class FileRow:
    """The size of one or several files: bytes of UTF-8 after decompression, and tokens.

    Names are relative to the common folder of all files.
    """

    name: str
    num_bytes: int
    num_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes a token; 0 for no text."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True)
class Report:
    """Statistics of files encoded with a vocabulary.

    Attributes:
        rows: The 20 largest files, largest first; one row for all others, if any; the total.
        longest: The tokens with the most bytes, longest first.
        rarest: The merged tokens with the fewest occurrences, but at least one, with their counts.
        unused: The number of merged tokens that do not occur.
        cut: The number of merged tokens with an incomplete UTF-8 character.
        cut_share: The share of the text's tokens with an incomplete UTF-8 character, single bytes included.
    """

    rows: list[FileRow]
    longest: list[bytes]
    rarest: list[tuple[bytes, int]]
    unused: int
    cut: int
    cut_share: float

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics for JSON; tokens are printable text, as `display.visible` writes them."""
        tokens = {
            "longest": [visible(token) for token in self.longest],
            "rarest": [{"token": visible(token), "occurrences": count} for token, count in self.rarest],
        }
        return asdict(self) | tokens


def report(
    tokenizer: Tokenizer,
    paths: PathLike | Iterable[PathLike],
    *,
    separator: str | None = None,
    field: str = "text",
    on_error: str = "raise",
    num_threads: int | None = None,
    progress: ProgressOption = None,
    examples: int = 10,
) -> Report:
    """Return statistics of files encoded with a vocabulary.

    Args:
        tokenizer: The vocabulary. Special tokens in the text are ordinary text.
        paths: As for :meth:`Tokenizer.encode_files`, like all arguments but the last.
        separator: Likewise.
        field: Likewise.
        on_error: Likewise.
        num_threads: Likewise.
        progress: Likewise.
        examples: The number of longest and of rarest tokens.

    Warns:
        UserWarning: The number of skipped rows and the place of the first in the largest file with one.

    Raises:
        FileNotFoundError: If nothing matches one of the paths.
        ValueError: If a row holds no text or a file is not of its format.

    Cost:
        All text is encoded, in bounded memory.

    Examples:
        >>> tok = Tokenizer.train(__file__, vocab_size=300, progress=False)
        >>> report(tok, __file__, progress=False).rows[-1].num_bytes == Path(__file__).stat().st_size
        True
    """
    bad_rows = BadRows(on_error)
    sizes = {path: path.stat().st_size for path in find_files(paths)}
    files = sorted(sizes, key=lambda path: -sizes[path])
    groups = [(name, [path]) for name, path in zip(_names(files), files[:_FILES_SHOWN], strict=False)]
    if others := files[_FILES_SHOWN:]:
        groups.append((f"{len(others):,} more", others))
    encoder = partial(
        DocumentEncoder,
        tokenizer,
        reading=reading_of(separator, field, bad_rows),
        begins=[],
        ends=[],
        num_threads=num_threads,
        allowed_special=(),
    )
    rows: list[FileRow] = []
    total = np.zeros(tokenizer.vocab_size, np.int64)
    done = 0
    with reporting(progress) as show:

        def show_more(stage: str, more: int, _total: int | None) -> None:
            if show:
                show(stage, done + more, sum(sizes.values()))

        for name, group in groups:
            num_bytes = num_tokens = 0
            for batch in encode_documents(encoder, group, range(len(group)), Place(), field, bad_rows, show_more):
                total += np.bincount(batch.ids, minlength=len(total))
                num_bytes += int(batch.bytes.sum())
                num_tokens += len(batch.ids)
            rows.append(FileRow(name, num_bytes, num_tokens))
            done += sum(sizes[path] for path in group)
    rows.append(FileRow("total", sum(row.num_bytes for row in rows), sum(row.num_tokens for row in rows)))

    bad_rows.warn(stacklevel=2)

    ranks = tokenizer.mergeable_ranks
    cut = {token: token_id for token, token_id in ranks.items() if _splits_a_character(token)}
    merged = [(int(total[token_id]), token_id, token) for token, token_id in ranks.items() if len(token) > 1]
    rarest = sorted(entry for entry in merged if entry[0])
    return Report(
        rows=rows,
        longest=sorted(ranks, key=lambda token: (-len(token), token))[:examples],
        rarest=[(token, count) for count, _, token in rarest[:examples]],
        unused=len(merged) - len(rarest),
        cut=sum(len(token) > 1 for token in cut),
        cut_share=float(total[list(cut.values())].sum() / max(total.sum(), 1)),
    )


def _names(files: list[Path]) -> list[str]:
    """Return the names of the files, relative to their common folder."""
    try:
        folder = os.path.commonpath([path.absolute().parent for path in files])
        return [os.path.relpath(path, folder) for path in files]
    except ValueError:  # Windows: files on several drives
        return [str(path) for path in files]


def _splits_a_character(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return True
    return False


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, or `None` if the system does not report it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report_tables(report: Report) -> Group:
    """Return tables for a terminal: one row a file, then the statistics of tokens."""
    files = Table("text", "bytes", "tokens", "bytes a token", box=None)
    for row in report.rows:
        style = "bold" if row.name == "total" else ""
        rate = f"{row.bytes_per_token:.3f}"
        files.add_row(Text(row.name), f"{row.num_bytes:,}", f"{row.num_tokens:,}", rate, style=style)
    tokens = Table(box=None, show_header=False)
    tokens.add_column(style="bold", no_wrap=True)
    tokens.add_column(overflow="fold")
    tokens.add_row("longest", Text(" ".join(repr(visible(token)) for token in report.longest)))
    tokens.add_row("rarest", Text(" ".join(f"{visible(token)!r} {count:,}x" for token, count in report.rarest)))
    tokens.add_row("unused", f"{report.unused:,} merged tokens, which the text has only within longer ones")
    share = f"{report.cut_share:.2%} of the text's tokens hold part of one"
    tokens.add_row("cut characters", f"{report.cut:,} merged tokens; {share}")
    return Group(files, Text(), tokens)
