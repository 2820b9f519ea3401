"""`bpe-llama decode`: ids to text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama._files import read_bytes
from bpe_llama._files.arrays import open_array
from bpe_llama.cli.options import DEFAULT_TOKENIZER, TokenizerName

EXAMPLE = "Example: bpe-llama decode 9906 1917 --tokenizer cl100k.tiktoken"


def command(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids; default: --file or standard input.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help="A .npy file of ids, or a text file: ids separated by white space, or a JSON list."
        ),
    ] = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
) -> None:
    """Print the text of ids; a line end is added only on a terminal."""
    token_ids = _read_ids(ids, file)
    content = open_tokenizer(tokenizer).decode_bytes(token_ids)
    sys.stdout.buffer.write(content)
    if sys.stdout.isatty() and not content.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _read_ids(ids: list[str] | None, file: Path | None) -> list[int]:
    if ids and file is not None:
        raise ValueError("give ids or --file, not both")
    if file is not None and file.suffix.lower() == ".npy":
        array = open_array(file)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"{file}: expected a flat array of integers, got {array.dtype} of shape {array.shape}")
        return [int(token_id) for token_id in array]
    if not ids:
        content = sys.stdin.buffer.read() if file is None else read_bytes(file)
        ids = [content.decode("utf-8", "replace")]
    text = " ".join(ids).strip()
    if not text.startswith("["):
        return [_whole_number(word) for word in text.split()]
    try:  # as `bpe-llama encode --json` prints them
        listed = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"ids begin with '[', but are no JSON list: {text[:40]!r}") from None
    return [_whole_number(json.dumps(token_id)) for token_id in listed]


def _whole_number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"ids must be whole numbers, got {word[:40]!r}") from None
