"""Options that several tokenizer commands share, and the text they read."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama._arguments import check_surrogates
from bpe_llama._files import read_bytes
from bpe_llama._progress import quietly

TokenizerName = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        "-t",
        help="tokenizer.json, tokenizer.model, tekken.json, vocab.json, a .tiktoken, a .gguf, a folder that holds one, "
        "a published vocabulary, such as o200k_base or gpt-4o, or a name on the Hugging Face Hub, such as org/name.",
    ),
]
DEFAULT_TOKENIZER = "tokenizer.json"
TextArgument = Annotated[str | None, typer.Argument(help="Text; default: --file or standard input.")]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this UTF-8 file.")]


def integer_option(description: str) -> Any:
    """Return the description of an option that is a whole number."""
    return typer.Option(parser=whole_number, metavar="<int>", help=description)


def whole_number(text: str) -> int:
    """Return the whole number of an option.

    Raises:
        ValueError: If it is none; the message says what to write for a number such as ``8e3``.

    Examples:
        >>> whole_number("8000")
        8000
        >>> whole_number("8e3")
        Traceback (most recent call last):
            ...
        typer...BadParameter: expected a whole number, got '8e3'; write 8000
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    hint = f"; write {int(number)}" if number.is_integer() and abs(number) < 2**53 else ""
    raise typer.BadParameter(f"expected a whole number, got {text!r}{hint}")


FieldOption = Annotated[str, typer.Option(help="The field or column of .jsonl and .parquet.")]
SeparatorOption = Annotated[
    str | None, typer.Option(help="Text that ends a document within a text file; default: a file is a document.")
]
OnErrorOption = Annotated[
    str,
    typer.Option(metavar="raise|skip", help="At a row without text: raise an error, or skip it and report the count."),
]
ThreadsOption = Annotated[int | None, integer_option("Number of threads; default: one per core.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress and no notes; warnings and errors remain.")
]


def with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the option --quiet."""

    @functools.wraps(command)
    def run(*arguments: Any, quiet: bool = False, **options: Any) -> Any:
        with quietly(quiet):
            return command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return run


def read_text(text: str | None, file: Path | None) -> str:
    """Return the text, or the content of the file, or standard input; raise a ValueError if it is not UTF-8."""
    if text is not None and file is not None:
        raise ValueError("give a text or --file, not both")
    if text is not None:
        check_surrogates("the text", text)  # which stand for bytes that are no UTF-8
        return text
    if file is None and sys.stdin.isatty():
        raise ValueError("no text: give it as an argument, with --file, or on standard input")
    content = sys.stdin.buffer.read() if file is None else read_bytes(file)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        name = "standard input" if file is None else file
        raise ValueError(f"{name}: byte {error.start} is not valid UTF-8 ({error.reason})") from error
