"""`bpe-llama count`: counts tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama.cli.options import DEFAULT_TOKENIZER, JsonOption, TextArgument, TokenizerName, read_text

EXAMPLE = "Example: bpe-llama count --file README.md --tokenizer tokenizer.json"


def command(
    text: TextArgument = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="A UTF-8 file; repeatable.")] = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    as_json: JsonOption = False,
) -> None:
    """Print the number of tokens of a text or of each file."""
    loaded = open_tokenizer(tokenizer)
    if not file or len(file) == 1:
        tokens = loaded.count(read_text(text, file[0] if file else None))
        typer.echo(json.dumps({"tokens": tokens}) if as_json else tokens)
        return
    found = {str(path): loaded.count(read_text(text, path)) for path in file}
    total = sum(found.values())
    if as_json:
        typer.echo(json.dumps({"tokens": total, "files": found}, ensure_ascii=False, indent=2))
        return
    for path, tokens in found.items():
        typer.echo(f"{tokens:>12} {path}")
    typer.echo(f"{total:>12} total")
