"""Training a vocabulary: text to word counts, word counts to merges."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bpe_llama import _core
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files, is_parquet, reading_of
from bpe_llama._files import PathLike
from bpe_llama._progress import Progress, ProgressOption, reporting
from bpe_llama.counts import (
    DEFAULT_PATTERN,
    WordCounts,
    check_special_tokens,
    check_texts,
    count_files,
    splitting_of,
)

__all__ = [
    "DEFAULT_PATTERN",
    "SUPERWORD_PATTERN",
    "Progress",
    "WordCounts",
    "train",
    "train_from_counts",
    "train_from_iterator",
]

SUPERWORD_PATTERN = _core.SUPERWORD_PATTERN
"""Where superwords end (SuperBPE, arXiv:2503.13423): the pieces are what this matches and what lies between.

As in the second stage of the authors' published tokenizers, digits stand in threes, and runs of punctuation and of
spaces apart from words. Two things differ: a line break ends a piece too, so that pieces stay short, and combining
marks count as letters.
"""


@dataclass(frozen=True)
class _Options:
    """What is trained, checked before any text is read."""

    vocab_size: int
    special_tokens: list[str]
    """Those that the base does not have yet."""
    min_frequency: int
    max_token_length: int | None
    tie_order: str
    base: _core.Tokenizer | None

    def __post_init__(self) -> None:
        check_special_tokens(self.special_tokens)
        least = 256 + len(self.special_tokens)
        if self.base is not None:
            size = self.base.vocab_size
            least = size + len(self.special_tokens) + 1
            if self.vocab_size < least:
                raise ValueError(
                    f"vocab_size is {self.vocab_size}; it must be at least {least}: "
                    f"the base has {size} ids, and {len(self.special_tokens)} special tokens are new"
                )
        elif self.vocab_size < least:
            raise ValueError(
                f"vocab_size is {self.vocab_size}; it must be at least {least}: "
                f"256 bytes and {len(self.special_tokens)} special tokens"
            )
        if self.min_frequency < 0:
            raise ValueError(f"min_frequency is {self.min_frequency}; it must not be negative")
        if self.max_token_length is not None and self.max_token_length < 1:
            raise ValueError(f"max_token_length is {self.max_token_length}; it must be positive, or None")
        if self.tie_order not in ("ids", "bytes"):
            raise ValueError(f"tie_order is {self.tie_order!r}; expected 'ids' or 'bytes'")

    def for_core(self) -> dict[str, object]:
        """Return the options as the core takes them: it counts no special tokens of the base."""
        base = self.base
        return {
            "vocab_size": self.vocab_size - (0 if base is None else base.vocab_size - len(base.mergeable_ranks)),
            "num_special_tokens": len(self.special_tokens),
            "min_frequency": self.min_frequency,
            "max_token_length": self.max_token_length,
            "ties_by_byte_value": self.tie_order == "bytes",
            "base": base,
        }

    def all_special_tokens(self) -> list[str]:
        """Return the special tokens that no word crosses."""
        return [*(() if self.base is None else self.base.added_tokens), *self.special_tokens]

    def tokenizer(self, vocabulary: tuple[list[bytes], list[tuple[int, int]]], pattern: str) -> _core.Tokenizer:
        """Return the tokenizer of a trained vocabulary."""
        tokens, merges = vocabulary
        if self.base is not None:
            return self.base.extended(tokens, merges, pattern, self.special_tokens)
        special = [(token, len(tokens) + index) for index, token in enumerate(self.special_tokens)]
        return _core.Tokenizer.build_from_merges(tokens, merges, pattern, special)


def train(
    paths: PathLike | Iterable[PathLike],
    vocab_size: int,
    *,
    pattern: str | None = None,
    special_tokens: Sequence[str] = (),
    base: _core.Tokenizer | None = None,
    superword_from: int | None = None,
    min_frequency: int = 0,
    max_token_length: int | None = None,
    tie_order: str = "ids",
    separator: str | None = None,
    field: str = "text",
    on_error: str = "raise",
    num_threads: int | None = None,
    progress: ProgressOption = None,
) -> _core.Tokenizer:
    """Return the tokenizer that byte-pair encoding learns from files.

    Args:
        paths: See :meth:`WordCounts.from_files`, as for ``pattern``.
        vocab_size: Ids in all: 256 bytes, merged tokens, special tokens; those of ``base`` count.
        pattern: Splits text into the words that tokens do not cross; kept with the vocabulary. ``None`` is
            ``"llama3"``, or that of ``base``, which can be followed by no other but :data:`SUPERWORD_PATTERN`.
        special_tokens: They take the last ids, in this order. Where one stands in the text, words end; it is not
            learned from.
        base: A tokenizer to go on from. Its merges come first, and all its ids stay what they are, special tokens
            included; new tokens follow after the last of them, and then the special tokens that are new. So where the
            base has special tokens, they stand between its tokens and the new ones, as in no vocabulary trained in one
            go; otherwise, on the same text, the result is the same. Text is counted as it stands, also where the base
            normalizes what it encodes.
        superword_from: From this many ids on, tokens may cross the ends of words, as in SuperBPE, but not what
            :data:`SUPERWORD_PATTERN` keeps apart, such as lines; the tokenizer then splits text by that pattern. The
            text is read twice, and as lines hardly repeat, memory grows with the text, by about five bytes a byte.
        min_frequency: Pairs seen fewer times do not merge.
        max_token_length: Tokens of three bytes and more are shorter than this, as in ``tokenizers``.
        tie_order: Which of two equally frequent pairs merges first: the one with the smaller ``"ids"``, as in
            ``tokenizers``, or with single bytes compared as ``"bytes"``, as in ``rustbpe``.
        separator: Text that ends a document within a file.
        field: The field or column of ``.jsonl`` and ``.parquet`` files that holds the text.
        on_error: ``"raise"`` an error at the first row that holds no text, or ``"skip"`` them and warn of their number;
            see :meth:`WordCounts.from_files`.
        num_threads: ``None`` for all processors. The result does not depend on it.
        progress: ``None`` shows a bar on a terminal, ``False`` nothing; a function gets :class:`Progress`.

    Warns:
        UserWarning: If the text has too few pairs; the vocabulary is smaller then. If rows were skipped, how many.

    Raises:
        FileNotFoundError: If nothing matches one of the paths.
        ValueError: If there is no text; if ``vocab_size`` has no room for the base or the bytes and for the special
            tokens; if special tokens repeat; if the pattern is unknown or not that of the base; if some byte of the
            text has no id in the base; if ``superword_from`` is not within the new ids; if a row holds no text or a
            file is not of its format, naming file and place; if ``on_error`` is neither.
        OSError: If a file cannot be read, or shrinks while it is read.

    Source: Sennrich et al. 2016, arXiv:1508.07909; the order of merges is that of ``tokenizers``' ``BpeTrainer``.
        Superwords: Liu et al. 2025, arXiv:2503.13423, section 2.
    """
    bad_rows = BadRows(on_error)
    options = _options(vocab_size, special_tokens, min_frequency, max_token_length, tie_order, base)
    files = find_files(paths)

    def learn(pattern: str, options: _Options) -> _core.Tokenizer:
        bad_rows.forget()
        splitting = splitting_of(pattern, bounds, num_threads)
        if any(map(is_parquet, files)):
            counts = WordCounts(count_files(files, splitting, separator, field, bad_rows, progress))
            return options.tokenizer(_merge(counts, options, progress), pattern)
        reading = reading_of(separator, field, bad_rows)
        with reporting(progress) as report:
            vocabulary, skipped = _core.train_from_files(files, splitting, reading, options.for_core(), report)
        bad_rows.add(*skipped)
        return options.tokenizer(vocabulary, pattern)

    bounds = options.all_special_tokens()
    tokenizer = _in_stages(learn, options, pattern, superword_from)
    bad_rows.warn(stacklevel=3)
    return tokenizer


def train_from_iterator(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str | None = None,
    special_tokens: Sequence[str] = (),
    base: _core.Tokenizer | None = None,
    superword_from: int | None = None,
    min_frequency: int = 0,
    max_token_length: int | None = None,
    tie_order: str = "ids",
    num_threads: int | None = None,
    progress: ProgressOption = None,
) -> _core.Tokenizer:
    """Return the tokenizer that byte-pair encoding learns from texts, each of which is one document.

    Args:
        texts: See :meth:`WordCounts.from_iterator`. With ``superword_from`` they are read twice: a list, say.
        vocab_size: See :func:`train`, as for the other arguments, warnings and errors.
        pattern: Likewise.
        special_tokens: Likewise.
        base: Likewise.
        superword_from: Likewise.
        min_frequency: Likewise.
        max_token_length: Likewise.
        tie_order: Likewise.
        num_threads: Likewise.
        progress: Likewise.

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
    options = _options(vocab_size, special_tokens, min_frequency, max_token_length, tie_order, base)
    texts = check_texts(texts)
    if superword_from is not None and iter(texts) is texts:
        raise ValueError("superword_from reads the texts twice, and these can be read only once; give a list of them")

    def learn(pattern: str, options: _Options) -> _core.Tokenizer:
        splitting = splitting_of(pattern, bounds, num_threads)
        with reporting(progress) as report:
            vocabulary = _core.train_from_iterator(texts, splitting, options.for_core(), report)
        return options.tokenizer(vocabulary, pattern)

    bounds = options.all_special_tokens()
    return _in_stages(learn, options, pattern, superword_from)


def train_from_counts(
    counts: WordCounts,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] | None = None,
    base: _core.Tokenizer | None = None,
    min_frequency: int = 0,
    max_token_length: int | None = None,
    tie_order: str = "ids",
    progress: ProgressOption = None,
) -> _core.Tokenizer:
    """Return the tokenizer that byte-pair encoding learns from word counts: the same as from the text itself.

    Superwords need counts of their own: train on counts of words first, then, with the result as ``base``, on counts
    made with :data:`SUPERWORD_PATTERN`.

    Args:
        counts: The words; they bring their pattern.
        vocab_size: See :func:`train`, as for the other arguments, warnings and errors.
        special_tokens: ``None`` for those of the counts.
        base: Likewise.
        min_frequency: Likewise.
        max_token_length: Likewise.
        tie_order: Likewise.
        progress: Likewise.

    Examples:
        >>> counts = WordCounts.from_iterator(["low lower lowest"], special_tokens=["<|end|>"], progress=False)
        >>> train_from_counts(counts, vocab_size=259, progress=False).special_tokens
        {'<|end|>': 258}
    """
    special = counts.special_tokens if special_tokens is None else special_tokens
    options = _options(vocab_size, special, min_frequency, max_token_length, tie_order, base)

    def learn(pattern: str, options: _Options) -> _core.Tokenizer:
        return options.tokenizer(_merge(counts, options, progress), pattern)

    return _in_stages(learn, options, counts.pattern, None)


def _options(
    vocab_size: int,
    special_tokens: Sequence[str],
    min_frequency: int,
    max_token_length: int | None,
    tie_order: str,
    base: _core.Tokenizer | None,
) -> _Options:
    known = {} if base is None else base.added_tokens
    new = [token for token in check_special_tokens(special_tokens) if token not in known]
    return _Options(vocab_size, new, min_frequency, max_token_length, tie_order, base)


def _in_stages(
    learn: Callable[[str, _Options], _core.Tokenizer],
    options: _Options,
    pattern: str | None,
    superword_from: int | None,
) -> _core.Tokenizer:
    """Return what ``learn`` makes of the text, in two stages if there are to be superwords; warn if it is too small.

    Superwords are nothing but longer words: the second stage goes on from the first with another pattern.
    """
    pattern = _pattern(pattern, options.base)
    if superword_from is not None:
        least = 256 if options.base is None else options.base.vocab_size + 1
        below = options.vocab_size - len(options.special_tokens)
        if not least <= superword_from < below:
            raise ValueError(f"superword_from is {superword_from}; it must be at least {least} and less than {below}")
        words = learn(pattern, replace(options, vocab_size=superword_from, special_tokens=[]))
        options, pattern = replace(options, base=words), SUPERWORD_PATTERN
    tokenizer = learn(pattern, options)
    if tokenizer.vocab_size < options.vocab_size:
        warnings.warn(
            f"the text has too few pairs for vocab_size {options.vocab_size}: "
            f"the vocabulary has {tokenizer.vocab_size} tokens",
            UserWarning,
            stacklevel=4,
        )
    return tokenizer


def _pattern(pattern: str | None, base: _core.Tokenizer | None) -> str:
    """Return the pattern to split by; refuse one that the base's merges were not made with."""
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


def _merge(
    counts: WordCounts, options: _Options, progress: ProgressOption
) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Return the vocabulary learned from counts."""
    with reporting(progress) as report:
        return _core.train_merges(counts._counts, options.for_core(), report)
