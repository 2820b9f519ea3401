"""`bpe-llama compare`: compares tokenizers on texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.documents import read_documents
from bpe_llama._corpus.files import find_files
from bpe_llama._progress import note
from bpe_llama.cli.options import FieldOption, JsonOption

EXAMPLE = "Example: bpe-llama compare tokenizer.json gpt2 bert/tokenizer.json --text README.md --plot compare.png"


def command(
    tokenizers: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, published names or names on the Hub. WordPiece and Unigram are opened by the "
            "tokenizers library."
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="A file, or a folder or glob of them, as of train-tokenizer; repeatable.  [default: a paragraph in "
            "ten languages]",
        ),
    ] = None,
    field: FieldOption = "text",
    plot: Annotated[
        Path | None, typer.Option(help="Plot bytes a token and tokens a word to this .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare tokenizers on texts: tokens, bytes a token, tokens a word, single-byte tokens, speed."""
    from bpe_llama import compare as comparing
    from bpe_llama.compare.show import check_plot

    if plot is not None:
        check_plot(plot)
    names = short_names([Path(name) for name in tokenizers])
    if len(set(names)) < len(names):
        raise ValueError(f"a tokenizer is given twice: {', '.join(tokenizers)}")
    texts = list(comparing.SAMPLES.items())
    if text:
        files = find_files(text)
        texts = [
            (title, "\n".join(read_documents([path], field=field, bad_rows=BadRows("raise"))))
            for title, path in zip(short_names(files), files, strict=True)
        ]
    opened = {short: comparing.open_any(name) for short, name in zip(names, tokenizers, strict=True)}
    result = comparing.compare(opened, texts)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), ensure_ascii=False, indent=2))
    else:
        from bpe_llama._rich import Console

        width = None if sys.stdout.isatty() else 160
        Console(highlight=False, width=width).print(comparing.comparison_table(result))
    if plot is not None:
        comparing.save_plot(result, plot)
        note(f"{plot}: saved", on_stdout=not as_json)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell each from the others.

    Examples:
        >>> short_names([Path("a/tokenizer.json"), Path("b/tokenizer.json"), Path("org/gpt2")])
        ['a/tokenizer.json', 'b/tokenizer.json', 'gpt2']
    """
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
