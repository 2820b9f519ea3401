"""Count the pre-tokens of a text: the input of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from bpe_llama._arguments import instance, integer, strings
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import WordCounts as CoreWordCounts
from bpe_llama._core import shown
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files, is_parquet, read_parquet, reading_of
from bpe_llama._files import PathLike, write_bytes
from bpe_llama._progress import ProgressOption, reporting

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DEFAULT_PATTERN", "WordCounts"]

DEFAULT_PATTERN = "llama3"


class WordCounts:
    """The number of occurrences of each distinct pre-token, called word here: the input of training.

    Counts with the same pattern and special tokens can be added, saved and loaded. So a corpus can be counted in parts,
    on several machines, and trained on any number of times. Counts are immutable.

    Examples:
        >>> counts = WordCounts.from_iterator(["low lower"], progress=False) + WordCounts.from_iterator(["low"])
        >>> counts.most_common(1), len(counts), counts.total
        ([(b'low', 2)], 2, 3)
    """

    __slots__ = ("_counts",)
    _counts: CoreWordCounts

    def __init__(self, counts: CoreWordCounts) -> None:
        """Wrap compiled counts; users call the class methods instead."""
        expected = "compiled counts; WordCounts.from_files, from_iterator and load return WordCounts"
        self._counts = instance("counts", counts, CoreWordCounts, expected)

    @classmethod
    def from_files(
        cls,
        paths: PathLike | Iterable[PathLike],
        *,
        pattern: str = DEFAULT_PATTERN,
        special_tokens: Sequence[str] = (),
        separator: str | None = None,
        field: str = "text",
        on_error: str = "raise",
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> Self:
        """Return the counts of the words in files, read in bounded memory.

        Refused are: text that nothing divides for 16 MiB; with a regex of your own, documents of more than 256 MiB;
        lines of more than 256 MiB.

        Args:
            paths: A file, a folder, a glob pattern, or several of these. ``.gz`` and ``.zst`` are decompressed; a line
                of ``.jsonl`` and a row of ``.parquet`` is a document; any other file is one. A UTF-8 byte-order mark at
                the start of a file is no part of its text.
            pattern: A known pattern's name or a regex.
            special_tokens: They end words in the text and are not counted.
            separator: Text that ends a document within a file.
            field: The field or column of ``.jsonl`` and ``.parquet`` files that holds the text.
            on_error: ``"raise"`` an error that names the first row without text, or ``"skip"`` and count such rows,
                which reads text files twice. A row without text is: a line or ``.parquet`` row that is not UTF-8, not
                JSON, has no such field, another value than text, or a lone surrogate in it; or a whole document of
                another file that is not UTF-8. A missing column or a damaged file is always an error.
            num_threads: ``None`` for all processors.
            progress: See ``bpe_llama.training.Progress``; ``None`` shows a bar on a terminal.

        Warns:
            UserWarning: The number of skipped rows and the place of the first.

        Raises:
            FileNotFoundError: If nothing matches one of the paths.
            ValueError: If a row holds no text, a file is not of its format, or text is longer than the limits above,
                naming file and place; if the pattern is
                unknown, special tokens repeat, or ``on_error`` is neither.

        Examples:
            >>> WordCounts.from_files(__file__, progress=False).pattern == WordCounts.from_iterator([]).pattern
            True
        """
        bad_rows = BadRows(on_error)
        splitting = splitting_of(pattern, special_tokens, num_threads)
        counts = count_files(find_files(paths), splitting, separator, field, bad_rows, progress)
        bad_rows.warn(stacklevel=2)
        return cls(counts)

    @classmethod
    def from_iterator(
        cls,
        texts: Iterable[str],
        *,
        pattern: str = DEFAULT_PATTERN,
        special_tokens: Sequence[str] = (),
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> Self:
        """Return the counts of the words in texts, each of which is one document.

        Args:
            texts: Read once, on the calling thread, a few at a time. Its exceptions propagate.
            pattern: See :meth:`from_files`, as for the other arguments.
            special_tokens: Likewise.
            num_threads: Likewise.
            progress: Likewise.

        Raises:
            TypeError: If an item is no ``str``.
            ValueError: If the pattern is unknown, or special tokens repeat.
        """
        splitting = splitting_of(pattern, special_tokens, num_threads)
        with reporting(progress) as report:
            return cls(CoreWordCounts.from_iterator(texts, splitting, report))

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Return the counts that :meth:`save` wrote.

        Raises:
            ValueError: If the file is damaged or does not hold counts.
        """
        return cls(CoreWordCounts.load(checked_path("path", path)))

    def save(self, path: PathLike) -> None:
        """Write the counts to a file, atomically. Equal counts give equal files."""
        write_bytes(checked_path("path", path), self._counts.to_bytes())

    def merge(self, other: WordCounts) -> Self:
        """Return the sum, as ``+`` does.

        Raises:
            ValueError: If the patterns or special tokens differ.
        """
        return type(self)(self._counts + instance("other", other, WordCounts, "WordCounts")._counts)

    def __add__(self, other: object) -> Self:
        """Return the counts of both texts together."""
        return self.merge(other) if isinstance(other, WordCounts) else NotImplemented

    def __len__(self) -> int:
        """Return the number of distinct words."""
        return len(self._counts)

    def __eq__(self, other: object) -> bool:
        """Return whether words, counts, pattern and special tokens are the same."""
        return self._counts.to_bytes() == other._counts.to_bytes() if isinstance(other, WordCounts) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equality costs a pass over all words

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the bytes of the file format."""
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        """Return a summary."""
        return f"WordCounts({len(self)} distinct words, {self.total} in all)"

    @property
    def total(self) -> int:
        """The number of words in the text."""
        return self._counts.total

    @property
    def pattern(self) -> str:
        """The regex that split the text."""
        return self._counts.pattern

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens that end words."""
        return self._counts.special_tokens

    def split(self, parts: int) -> list[Self]:
        """Return at most ``parts`` counts that sum to these; the hash of a word selects its part.

        Examples:
            >>> counts = WordCounts.from_iterator(["low lower lowest"], progress=False)
            >>> sum(map(len, counts.split(4))) == len(counts)
            True
        """
        return [type(self)(counts) for counts in self._counts.split(integer("parts", parts, 1))]

    def pruned(self, min_count: int) -> Self:
        """Return the counts of the words that occur ``min_count`` times or more.

        Rarer words are missing from training, so the count of a pair falls by less than ``min_count`` for each of its
        occurrences in a distinct pruned word. Prune the sum, not its parts: a word that is rare in each part may be
        frequent in the sum.

        Raises:
            ValueError: If ``min_count`` is less than 1.

        Examples:
            >>> WordCounts.from_iterator(["low low lower"], progress=False).pruned(2).most_common()
            []
            >>> WordCounts.from_iterator(["low low low"], progress=False).pruned(2).most_common()
            [(b' low', 2)]
        """
        return type(self)(self._counts.pruned(integer("min_count", min_count, 1)))

    def to_bytes(self) -> bytes:
        """Return what :meth:`save` writes."""
        return self._counts.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the counts that :meth:`to_bytes` returned.

        Raises:
            ValueError: If the bytes are damaged or do not hold counts.
        """
        return cls(CoreWordCounts.from_bytes(data))

    def most_common(self, n: int | None = None) -> list[tuple[bytes, int]]:
        """Return the ``n`` most frequent words, or all, with their counts; ties by bytes."""
        return self._counts.most_common(n)


def count_files(
    files: Sequence[Path],
    splitting: dict[str, object],
    separator: str | None,
    field: str,
    bad_rows: BadRows,
    progress: ProgressOption,
) -> CoreWordCounts:
    """Return the counts of the words in files; see :meth:`WordCounts.from_files`."""
    parts = []
    with reporting(progress) as report:
        texts = [file for file in files if not is_parquet(file)]
        if texts or not files:
            reading = reading_of(separator, field, bad_rows)
            counts, skipped = CoreWordCounts.from_files(texts, splitting, reading, report)
            bad_rows.add(*skipped)
            parts.append(counts)
        if len(texts) < len(files):
            rows = read_parquet(filter(is_parquet, files), field, bad_rows)
            parts.append(CoreWordCounts.from_iterator(rows, splitting, report))
    return reduce(add, parts)


def splitting_of(pattern: str, special_tokens: Sequence[str], num_threads: int | None) -> dict[str, object]:
    """Return the options that split a text into words, as the core takes them.

    Raises:
        TypeError: If a special token is no ``str``.
        ValueError: If a special token is empty or repeated.
    """
    return {"pattern": pattern, "special_tokens": check_special_tokens(special_tokens), "num_threads": num_threads}


def check_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    """Return the special tokens as a list, checked."""
    tokens = strings("special_tokens", special_tokens, "a list of str, which get the last ids", in_order=True)
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise ValueError(f"special_tokens: {shown(token)} is given twice; expected each once")
        seen.add(token)
    return tokens
