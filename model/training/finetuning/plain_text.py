"""Encodes plain text to a token file; counts or parses special tokens spelled out in a text."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bpe_llama._core import DocumentEncoder, FileLines
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.documents import read_documents
from bpe_llama._corpus.files import in_batches, is_parquet, read_parquet, reading_of
from bpe_llama._corpus.rows import check_text, has_lines, has_rows, read_rows
from bpe_llama._corpus.shards import dtype_of
from bpe_llama._corpus.token_files import begins_and_ends
from bpe_llama._files.arrays import begin_array
from bpe_llama.model.training.finetuning.formats import read_row
from bpe_llama.model.training.finetuning.options import DataConfig
from bpe_llama.tokenizer import Tokenizer


def write_tokens(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    out: Path,
    config: DataConfig = DataConfig(),  # noqa: B008, frozen
    progress: bool | None = None,
) -> None:
    """Write the ids of all texts to a `.npy` file, each with the special tokens that the tokenizer's files add.

    If these add none after a text, it ends with the tokenizer's end-of-text id.

    Args:
        paths: Text files, and `.json`, `.jsonl` and `.parquet` files with a `text`.
        tokenizer: Its vocabulary.
        out: The token file.
        config: Its `parse_special` and `on_error` count. A special token that a text already begins or ends with is
            not added again if special tokens are parsed.
        progress: As of `Tokenizer.encode_files`.

    Warns:
        UserWarning: The number of skipped rows; unless special tokens are parsed, text that looks like special tokens.

    Raises:
        ValueError: If a row holds no text, or no file a text; the message names file and place.
    """
    bad_rows = BadRows(config.on_error)
    if config.parse_special:
        _write_parsed(paths, tokenizer, out, bad_rows)
    elif any(has_rows(path) and not has_lines(path) and not is_parquet(path) for path in paths):
        before, after = begins_and_ends(tokenizer)
        encoder = DocumentEncoder(tokenizer, [], reading_of(None, "text", bad_rows), before, after, None, ())
        with begin_array(out, dtype_of(tokenizer.vocab_size)) as array:
            for texts in in_batches(_texts(paths, bad_rows)):
                ids, *_ = encoder.encode_texts(texts)
                array.append(ids)
    else:
        tokenizer.encode_files(paths, out, eos=True, on_error=config.on_error, progress=progress)
    bad_rows.warn(stacklevel=3)
    # An empty file is an empty text, which the tokenizer may end with a token.
    if not any(path.stat().st_size for path in paths) or not np.load(out, mmap_mode="r").size:
        raise ValueError(f"{' to '.join(map(str, dict.fromkeys((paths[0], paths[-1]))))}: no text to learn")
    if config.parse_special:
        return
    lookalikes = SpecialLookalikes(tokenizer)
    if lookalikes.pattern is not None:
        for path in paths:
            if is_parquet(path):
                for text in read_parquet([path], "text", BadRows("skip")):
                    lookalikes.count(text)
            else:
                for line in FileLines(path):
                    lookalikes.count(line.decode(errors="replace"))
    lookalikes.warn(stacklevel=3)


def _texts(paths: Sequence[Path], bad_rows: BadRows) -> Iterator[str]:
    for path in paths:
        if is_parquet(path) or not has_rows(path):
            yield from read_documents([path], bad_rows=bad_rows)
            continue
        for place, row in read_rows(path, bad_rows):
            with bad_rows.caught(place):
                text = read_row(row, "text")
                check_text(text, "text")
                yield str(text)


def _write_parsed(paths: Sequence[Path], tokenizer: Tokenizer, out: Path, bad_rows: BadRows) -> None:
    begin, end = (np.array(ids, np.uint32) for ids in begins_and_ends(tokenizer))
    with begin_array(out, dtype_of(tokenizer.vocab_size)) as array:
        for texts in in_batches(_texts(paths, bad_rows)):
            ids, begins = tokenizer.encode_batch_to_numpy(texts, allowed_special="all")
            for first, next_first in itertools.pairwise(begins.tolist()):
                row = ids[first:next_first]
                if not np.array_equal(row[: len(begin)], begin):
                    array.append(begin)
                array.append(row)
                if not np.array_equal(row[len(row) - len(end) :], end):
                    array.append(end)


class SpecialLookalikes:
    """Counts special tokens of a tokenizer that are spelled out in text and learned as ordinary text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        # re searches for a literal prefix with a fast loop.
        begin = os.path.commonprefix(names)  # noqa: RUF071, of characters
        ends = "|".join(re.escape(name[len(begin) :]) for name in names)
        self.pattern = re.compile(f"{re.escape(begin)}(?:{ends})") if names else None
        self.found: Counter[str] = Counter()

    def count(self, text: str) -> None:
        """Count those in a text."""
        if self.pattern is not None:
            self.found.update(self.pattern.findall(text))

    def warn(self, stacklevel: int) -> None:
        """Warn of the counts, if any; a `stacklevel` of 2 is the line of the caller."""
        if self.found:
            most = ", ".join(f"{name!r} {count:,} times" for name, count in self.found.most_common(3))
            warnings.warn(
                f"text that looks like special tokens is learned as ordinary text ({most}); if it holds rendered "
                "chats, parse_special=True (--parse-special) makes them special tokens",
                stacklevel=stacklevel + 1,
            )


def encode_parsed(tokenizer: Tokenizer, text: str, before: str | None, parse_special: bool) -> list[int]:
    """Return the ids of a text that follows `before`, if not None; `parse_special` is that of `DataConfig`."""
    special = tokenizer.special_tokens
    names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    if before is not None and parse_special and before.endswith(tuple(special)):
        before = None
    ids: list[int] = []
    for number, part in enumerate(re.split(f"({names})", text) if parse_special and names else [text]):
        if number % 2:
            ids.append(special[part])
            before = None
        elif part:
            ids += tokenizer.encode_following(part, before) if before is not None else tokenizer.encode_ordinary(part)
    return ids
