"""Train a vocabulary: count the pre-tokens of a text, then merge the most frequent pairs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from bpe_llama._arguments import check_keywords, instance, integer, keywords_of, string
from bpe_llama._core import SUPERWORD_PATTERN as _SUPERWORD_PATTERN
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown, train_from_files, train_merges
from bpe_llama._core import train_from_iterator as train_from_texts
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files, is_parquet, reading_of
from bpe_llama._files import PathLike
from bpe_llama._progress import Progress, ProgressOption, reporting
from bpe_llama.counts import (
    DEFAULT_PATTERN,
    WordCounts,
    check_special_tokens,
    count_files,
    splitting_of,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "DEFAULT_PATTERN",
    "SUPERWORD_PATTERN",
    "FileOptions",
    "MergeOptions",
    "Progress",
    "TextOptions",
    "WordCounts",
    "train",
    "train_from_counts",
    "train_from_iterator",
]

SUPERWORD_PATTERN = _SUPERWORD_PATTERN
"""The regex that ends superwords (SuperBPE, arXiv:2503.13423): pre-tokens are its matches and the text between them.

As in the second stage of the authors' published tokenizers, digits form groups of three, and runs of punctuation and of
white space are separate from words. There are two differences. A line break ends a pre-token, so pre-tokens stay short.
Combining marks count as letters.
"""


class MergeOptions(TypedDict, total=False):
    """How merges are learned: the options of :func:`train_from_counts`.

    Attributes:
        base: A tokenizer to extend. Its merges come first and all its ids stay, special tokens included. New tokens
            follow its last id, then new special tokens. Without special tokens in the base, the result is that of one
            training run on the same text. The text is counted without the normalizer of the base.
        min_frequency: Pairs that occur fewer times are not merged. Default 0.
        max_token_length: Tokens of three bytes and more are shorter than this, as in ``tokenizers``. ``None``, the
            default, sets no limit.
        tie_order: Which of two equally frequent pairs merges first: the one with the smaller ``"ids"``, the default, as
            in ``tokenizers``; or ``"bytes"``, as in ``rustbpe``: likewise, but single bytes compare by byte value.
        progress: ``None``, the default, shows a bar on a terminal and ``False`` nothing; a function gets
            :class:`Progress`.
    """

    base: CoreTokenizer | None
    min_frequency: int
    max_token_length: int | None
    tie_order: str
    progress: ProgressOption


class TextOptions(MergeOptions, total=False):
    """How text is split, and how merges are learned: the options of :func:`train_from_iterator`.

    Attributes:
        pattern: Splits text into pre-tokens, which no token crosses; stored with the vocabulary. ``None``, the default,
            is ``"llama3"`` or the pattern of ``base``. A base accepts no other pattern but :data:`SUPERWORD_PATTERN`.
        special_tokens: They have the last ids, in this order. In the text they end a pre-token and are not counted.
        superword_from: From this many ids on, tokens may cross word ends, as in SuperBPE, but not the matches of
            :data:`SUPERWORD_PATTERN`, such as line ends; the tokenizer then splits text by that pattern. The text is
            read twice. Lines hardly repeat, so memory grows with the text, by about five bytes a byte.
        num_threads: ``None``, the default, for all processors. The result does not depend on it.
    """

    pattern: str | None
    special_tokens: Sequence[str]
    superword_from: int | None
    num_threads: int | None


class FileOptions(TextOptions, total=False):
    """How files are read, text is split and merges are learned: the options of :func:`train`.

    Attributes:
        separator: Text that ends a document within a file.
        field: The field or column of ``.jsonl`` and ``.parquet`` files that holds the text. Default ``"text"``.
        on_error: ``"raise"``, the default, or ``"skip"`` rows without text and warn of their number; see
            :meth:`WordCounts.from_files`.
    """

    separator: str | None
    field: str
    on_error: str


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The options of one training run with their defaults, checked before any text is read."""

    vocab_size: int
    special_tokens: Sequence[str] = ()
    base: CoreTokenizer | None = None
    pattern: str | None = None
    superword_from: int | None = None
    min_frequency: int = 0
    max_token_length: int | None = None
    tie_order: str = "ids"
    num_threads: int | None = None
    progress: ProgressOption = None
    separator: str | None = None
    field: str = "text"
    on_error: str = "raise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_tokens", check_special_tokens(self.special_tokens))
        if self.base is not None:
            instance("base", self.base, CoreTokenizer, "a Tokenizer, or None")
        integer("vocab_size", self.vocab_size)
        integer("min_frequency", self.min_frequency, 0)
        for name in ("max_token_length", "superword_from"):
            if (value := getattr(self, name)) is not None:
                integer(name, value, 1)
        new = len(self.new_special_tokens)
        if self.base is not None:
            size = self.base.vocab_size
            least = size + new + 1
            parts = f"the base has {size} ids, and {new} special tokens are new"
        else:
            least = 256 + new
            parts = f"256 bytes and {new} special tokens"
        if self.vocab_size < least:
            raise ValueError(f"vocab_size is {shown(self.vocab_size)}; it must be at least {least}: {parts}")
        if string("tie_order", self.tie_order) not in ("ids", "bytes"):
            raise ValueError(f"tie_order is {shown(self.tie_order)}; expected 'ids' or 'bytes'")

    @property
    def new_special_tokens(self) -> list[str]:
        """The special tokens that the base does not have."""
        known = {} if self.base is None else self.base.added_tokens
        return [token for token in self.special_tokens if token not in known]

    def splitting(self, pattern: str) -> dict[str, object]:
        """Return how the core splits text: no pre-token crosses a special token, of the base or new."""
        known = [] if self.base is None else list(self.base.added_tokens)
        return splitting_of(pattern, [*known, *self.new_special_tokens], self.num_threads)

    def for_core(self) -> dict[str, object]:
        """Return the options as the core takes them: it does not count the special tokens of the base."""
        base = self.base
        return {
            "vocab_size": self.vocab_size - (0 if base is None else base.vocab_size - len(base.mergeable_ranks)),
            "num_special_tokens": len(self.new_special_tokens),
            "min_frequency": self.min_frequency,
            "max_token_length": self.max_token_length,
            "ties_by_byte_value": self.tie_order == "bytes",
            "base": base,
        }

    def tokenizer(self, vocabulary: tuple[list[bytes], list[tuple[int, int]]], pattern: str) -> CoreTokenizer:
        """Return the tokenizer with a trained vocabulary."""
        tokens, merges = vocabulary
        new = self.new_special_tokens
        if self.base is not None:
            return self.base.extended(tokens, merges, pattern, new)
        special = [(token, len(tokens) + index) for index, token in enumerate(new)]
        return CoreTokenizer.build_from_merges(tokens, merges, pattern, special)

    def merge(self, counts: WordCounts, pattern: str) -> CoreTokenizer:
        """Return the tokenizer with the vocabulary learned from counts."""
        with reporting(self.progress) as report:
            vocabulary = train_merges(counts._counts, self.for_core(), report)
        return self.tokenizer(vocabulary, pattern)


_Learn = Callable[[str, _Training], "CoreTokenizer"]
"""Learns a vocabulary from text that a pattern splits."""


def train(paths: PathLike | Iterable[PathLike], vocab_size: int, **options: Unpack[FileOptions]) -> CoreTokenizer:
    """Return the tokenizer that byte-pair encoding learns from files.

    Args:
        paths: See :meth:`WordCounts.from_files`.
        vocab_size: The number of ids: 256 bytes, merged tokens and special tokens, those of ``base`` included.
        **options: See :class:`FileOptions`, :class:`TextOptions` and :class:`MergeOptions`.

    Warns:
        UserWarning: If the text has too few pairs, so that the vocabulary is smaller. If rows were skipped: how many.

    Raises:
        FileNotFoundError: If nothing matches one of the paths.
        ValueError: If there is no text; if ``vocab_size`` has no room for the base or the bytes and for the special
            tokens; if special tokens repeat; if the pattern is unknown or not that of the base; if some byte of the
            text has no id in the base; if ``superword_from`` is not within the new ids; if a row holds no text, a
            file is not of its format, or text is longer than the limits of `WordCounts.from_files`, naming file and
            place; if an option has an unknown value.
        OSError: If a file cannot be read, or shrinks while it is read.

    Source: Sennrich et al. 2016, arXiv:1508.07909; the order of merges is that of ``tokenizers``' ``BpeTrainer``.
        Superwords: Liu et al. 2025, arXiv:2503.13423, section 2.
    """
    check_keywords("train", options, keywords_of(FileOptions))
    training = _Training(vocab_size=vocab_size, **options)
    bad_rows = BadRows(training.on_error)
    files = find_files(paths)
    separator, field = training.separator, training.field

    def learn(pattern: str, stage: _Training) -> CoreTokenizer:
        bad_rows.forget()
        splitting = training.splitting(pattern)
        if any(map(is_parquet, files)):
            counts = count_files(files, splitting, separator, field, bad_rows, training.progress)
            return stage.merge(WordCounts(counts), pattern)
        reading = reading_of(separator, field, bad_rows)
        with reporting(training.progress) as report:
            vocabulary, skipped = train_from_files(files, splitting, reading, stage.for_core(), report)
        bad_rows.add(*skipped)
        return stage.tokenizer(vocabulary, pattern)

    tokenizer = _in_stages(learn, training)
    bad_rows.warn(stacklevel=3)
    return tokenizer


def train_from_iterator(texts: Iterable[str], vocab_size: int, **options: Unpack[TextOptions]) -> CoreTokenizer:
    """Return the tokenizer that byte-pair encoding learns from texts, each of which is one document.

    Args:
        texts: See :meth:`WordCounts.from_iterator`. With ``superword_from`` they are read twice, so an iterator fails.
        vocab_size: See :func:`train`, as for warnings and errors.
        **options: See :class:`TextOptions` and :class:`MergeOptions`.

    Raises:
        TypeError: If an item is no ``str``.
        ValueError: If ``superword_from`` is given and ``texts`` can be read only once.

    Examples:
        >>> small = train_from_iterator(["low lower lowest"], vocab_size=258, progress=False)
        >>> small.id_to_bytes(257)
        b'low'
        >>> train_from_iterator(["low lower lowest"], vocab_size=260, base=small, progress=False).id_to_bytes(257)
        b'low'
        >>> train_from_iterator(["by the way"] * 9, 264, superword_from=260, progress=False).id_to_bytes(263)
        b'by the'
    """
    check_keywords("train_from_iterator", options, keywords_of(TextOptions))
    training = _Training(vocab_size=vocab_size, **options)
    if training.superword_from is not None and iter(texts) is texts:
        raise ValueError("superword_from reads the texts twice, and these can be read only once; give a list of them")

    def learn(pattern: str, stage: _Training) -> CoreTokenizer:
        splitting = training.splitting(pattern)
        with reporting(training.progress) as report:
            vocabulary = train_from_texts(texts, splitting, stage.for_core(), report)
        return stage.tokenizer(vocabulary, pattern)

    return _in_stages(learn, training)


def train_from_counts(
    counts: WordCounts,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] | None = None,
    **options: Unpack[MergeOptions],
) -> CoreTokenizer:
    """Return the tokenizer that byte-pair encoding learns from word counts: the same as from the text itself.

    Superwords need two calls: train on counts of words, then, with the result as ``base``, on counts with
    :data:`SUPERWORD_PATTERN`.

    Args:
        counts: The pre-tokens, with the pattern that split them.
        vocab_size: See :func:`train`, as for warnings and errors.
        special_tokens: See :class:`TextOptions`; ``None`` for those of the counts.
        **options: See :class:`MergeOptions`.

    Examples:
        >>> counts = WordCounts.from_iterator(["low lower lowest"], special_tokens=["<|end|>"], progress=False)
        >>> train_from_counts(counts, vocab_size=259, progress=False).special_tokens
        {'<|end|>': 258}
    """
    check_keywords("train_from_counts", options, keywords_of(MergeOptions))
    instance("counts", counts, WordCounts, "WordCounts")
    special = counts.special_tokens if special_tokens is None else special_tokens
    training = _Training(vocab_size=vocab_size, special_tokens=special, pattern=counts.pattern, **options)
    return _in_stages(lambda pattern, stage: stage.merge(counts, pattern), training)


def _in_stages(learn: _Learn, training: _Training) -> CoreTokenizer:
    """Return the tokenizer that ``learn`` trains, in two stages with superwords; warn if the text is too small.

    Superwords are longer pre-tokens: the second stage extends the vocabulary of the first with another pattern.
    """
    pattern = _pattern(training.pattern, training.base)
    stage = training
    if (superword_from := training.superword_from) is not None:
        least = 256 if training.base is None else training.base.vocab_size + 1
        below = training.vocab_size - len(training.new_special_tokens)
        if not least <= superword_from < below:
            raise ValueError(
                f"superword_from is {shown(superword_from)}; it must be at least {least} and less than {below}"
            )
        words = learn(pattern, replace(training, vocab_size=superword_from, special_tokens=[]))
        stage, pattern = replace(training, base=words), SUPERWORD_PATTERN
    tokenizer = learn(pattern, stage)
    if tokenizer.vocab_size < training.vocab_size:
        warnings.warn(
            f"the text has too few pairs for vocab_size {training.vocab_size}: "
            f"the vocabulary has {tokenizer.vocab_size} tokens",
            stacklevel=4,
        )
    return tokenizer


def _pattern(pattern: str | None, base: CoreTokenizer | None) -> str:
    """Return the pattern to split by; raise if the merges of the base were learned with another one."""
    if base is None:
        return DEFAULT_PATTERN if pattern is None else pattern
    wanted = None if pattern is None else WordCounts.from_iterator([], pattern=pattern, progress=False).pattern
    if wanted == SUPERWORD_PATTERN:
        return SUPERWORD_PATTERN
    if base.pattern_name is None and "\n" in base.pattern:
        raise ValueError(f"the base splits text in several steps, which training cannot: {base.pattern!r}")
    if wanted not in (None, base.pattern):
        name = base.pattern_name or base.pattern
        raise ValueError(f"pattern is {pattern!r}, but the base's is {name!r}: leave it out, or give SUPERWORD_PATTERN")
    return base.pattern_name or base.pattern
