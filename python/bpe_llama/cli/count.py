"""`bpe-llama count`: counts tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama.cli.options import DEFAULT_TOKENIZER, TextArgument, TokenizerName, read_text

EXAMPLE = "Example: bpe-llama count --file README.md --tokenizer tokenizer.json"


def command(
    text: TextArgument = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="A UTF-8 file; repeatable.")] = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
) -> None:
    """Print the number of tokens of a text or of each file."""
    loaded = open_tokenizer(tokenizer)
    if not file or len(file) == 1:
        typer.echo(loaded.count(read_text(text, file[0] if file else None)))
        return
    total = 0
    for path in file:
        tokens = loaded.count(read_text(text, path))
        total += tokens
        typer.echo(f"{tokens:>12} {path}")
    typer.echo(f"{total:>12} total")
