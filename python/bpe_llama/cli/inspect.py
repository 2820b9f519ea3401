"""`bpe-llama inspect`: shows tokens, or describes a tokenizer."""

from __future__ import annotations

from typing import Annotated

import typer

from bpe_llama.cli.options import DEFAULT_TOKENIZER, FileOption, TextArgument, TokenizerName, read_text
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama inspect 'How is this cut?' --tokenizer tokenizer.json --ids"


def command(
    text: TextArgument = None,
    file: FileOption = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    ids: Annotated[bool, typer.Option("--ids", help="Print one line per token: position, id, text, bytes.")] = False,
    vocabulary: Annotated[bool, typer.Option("--vocabulary", help="Describe the tokenizer instead of a text.")] = False,
) -> None:
    """Print a text with its tokens coloured, or describe a tokenizer."""
    from rich.console import Console

    from bpe_llama import display

    console = Console(soft_wrap=True, highlight=False)
    loaded = Tokenizer.from_pretrained(tokenizer)
    if vocabulary:
        console.print(display.vocabulary_table(loaded))
        return
    content = read_text(text, file)
    encoded = loaded.encode_ordinary(content)
    tokens = [loaded.id_to_bytes(token_id) for token_id in encoded]
    console.print(display.token_table(encoded, tokens) if ids else display.coloured_tokens(tokens))
    console.print(display.rates(len(encoded), content))
