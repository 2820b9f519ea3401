"""Options that several tokenizer commands share, and the text they read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._files import read_bytes

TokenizerName = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        "-t",
        help="tokenizer.json, .tiktoken, Llama 3's tokenizer.model, a .gguf, a folder that holds one, or a name on the "
        "Hugging Face Hub, such as org/name.",
    ),
]
DEFAULT_TOKENIZER = "tokenizer.json"
TextArgument = Annotated[str | None, typer.Argument(help="Text; default: --file or standard input.")]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this UTF-8 file.")]


def read_text(text: str | None, file: Path | None) -> str:
    """Return the text, or the content of the file, or standard input; raise a ValueError if it is not UTF-8."""
    if text is not None and file is not None:
        raise ValueError("give a text or --file, not both")
    if text is not None:
        return text
    if file is None and sys.stdin.isatty():
        raise ValueError("no text: give it as an argument, with --file, or on standard input")
    content = sys.stdin.buffer.read() if file is None else read_bytes(file)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        name = "standard input" if file is None else file
        raise ValueError(f"{name}: byte {error.start} is not valid UTF-8 ({error.reason})") from error
