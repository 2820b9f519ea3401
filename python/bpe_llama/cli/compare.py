"""`bpe-llama compare`: compares two tokenizers on texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpe_llama.cli.options import read_text
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama compare ours.json cl100k.tiktoken --text README.md --plot compare.png"


def command(
    a: Annotated[str, typer.Argument(help="The first tokenizer: a file, folder or name on the Hub.")],
    b: Annotated[str, typer.Argument(help="The second tokenizer.")],
    text: Annotated[list[Path], typer.Option("--text", help="A UTF-8 file; repeatable.")],
    plot: Annotated[Path | None, typer.Option(help="Plot bytes per token to this .png, .svg or .pdf.")] = None,
) -> None:
    """Compare two tokenizers on texts."""
    from rich.console import Console

    from bpe_llama import compare as comparing

    texts = [(path.name, read_text(None, path)) for path in text]
    result = comparing.compare(Tokenizer.from_pretrained(a), Tokenizer.from_pretrained(b), texts)
    names = (Path(a).name, Path(b).name) if Path(a).name != Path(b).name else (a, b)
    Console(soft_wrap=True, highlight=False).print(comparing.comparison_table(result, *names))
    if plot is not None:
        comparing.save_plot(result, *names, plot)
        typer.echo(f"{plot}: saved")
