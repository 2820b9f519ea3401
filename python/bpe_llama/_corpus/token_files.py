"""Encode files of text into one file of ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from bpe_llama._arguments import path as checked_path
from bpe_llama._arguments import strings
from bpe_llama._core import DocumentEncoder, shown
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.encode_documents import Place, encode_documents
from bpe_llama._corpus.files import find_files, reading_of
from bpe_llama._corpus.shards import dtype_of
from bpe_llama._ends import ids_around
from bpe_llama._files import PathLike
from bpe_llama._files.arrays import begin_array
from bpe_llama._progress import ProgressOption, reporting


def encode_files(
    tokenizer: CoreTokenizer,
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    begins: Sequence[int],
    ends: Sequence[int],
    separator: str | None,
    field: str,
    bad_rows: BadRows,
    num_threads: int | None,
    progress: ProgressOption,
    allowed_special: Iterable[str] | str,
) -> int:
    """Return the number of ids written: ``begins``, a document, ``ends``, and so on.

    :meth:`bpe_llama.Tokenizer.encode_files` documents the arguments.
    """
    check_out(out)
    files = find_files(paths)
    encoder = partial(
        DocumentEncoder,
        tokenizer,
        reading=reading_of(separator, field, bad_rows),
        begins=list(begins),
        ends=list(ends),
        num_threads=num_threads,
        allowed_special=checked_specials(tokenizer, allowed_special),
    )
    with begin_array(Path(out), dtype_of(tokenizer.vocab_size)) as array, reporting(progress) as report:
        for batch in encode_documents(encoder, files, range(len(files)), Place(), field, bad_rows, report):
            array.append(batch.ids)
    return array.size


def check_out(out: PathLike) -> None:
    """Raise `ValueError` unless a file of ids has a name that ends in ``.npy``, by which it is read as one."""
    if checked_path("out", out).suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {shown(out)}")


def begins_and_ends(tokenizer: CoreTokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before and after a document in training data.

    The post-processor of the tokenizer's file names them. If it appends nothing, ``eos_id`` is appended, if there is
    one.

    Raises:
        ValueError: If the post-processor repeats the text, or drops it.
    """
    before, after = ids_around(tokenizer.template(False))
    if not after and tokenizer.eos_id is not None:
        after = [tokenizer.eos_id]
    return before, after


def checked_specials(tokenizer: CoreTokenizer, allowed_special: Iterable[str] | str) -> list[str] | str:
    """Return an `allowed_special` that can be used several times and written as JSON.

    Raises:
        TypeError: If it is no collection of texts.
        ValueError: If it names no special token.
    """
    if not isinstance(allowed_special, str):
        expected = '"all" or a collection of special tokens'
        allowed_special = sorted(set(strings("allowed_special", allowed_special, expected)))
    tokenizer.encode_batch([], allowed_special=allowed_special)
    return allowed_special
