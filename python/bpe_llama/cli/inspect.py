"""`bpe-llama inspect`: shows tokens, or describes a tokenizer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama.cli.options import DEFAULT_TOKENIZER, FileOption, JsonOption, TextArgument, TokenizerName, read_text

EXAMPLE = "Example: bpe-llama inspect 'How is this cut?' --tokenizer tokenizer.json --ids"


def command(
    text: TextArgument = None,
    file: FileOption = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    ids: Annotated[bool, typer.Option("--ids", help="Print one line per token: position, id, text, bytes.")] = False,
    vocabulary: Annotated[bool, typer.Option("--vocabulary", help="Describe the tokenizer instead of a text.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Show a page in the browser, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="With --open: another tokenizer; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="With --open: 0 takes a free port.")] = 0,
) -> None:
    """Print a text with its tokens coloured, describe a tokenizer, or open a page that shows its tokens."""
    if open_page:
        if text is not None or file is not None or ids or vocabulary or as_json:
            raise ValueError("--open takes no text, --file, --ids, --vocabulary or --json: the page has them")
        _open([tokenizer, *(compare or [])], port)
        return
    if compare or port:
        raise ValueError("--compare and --port need --open")
    if vocabulary and (text is not None or file is not None or ids):
        raise ValueError("--vocabulary takes no text, --file or --ids: it describes the tokenizer alone")
    from bpe_llama import display
    from bpe_llama._rich import Console

    console = Console(soft_wrap=True, highlight=False)
    loaded = open_tokenizer(tokenizer)
    if as_json:
        found = (
            display.describe_vocabulary(loaded)
            if vocabulary
            else display.describe_tokens(loaded, read_text(text, file))
        )
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    if vocabulary:
        console.print(display.vocabulary_table(loaded))
        return
    content = read_text(text, file)
    encoded = loaded.encode_ordinary(content)
    tokens = [loaded.id_to_bytes(token_id) for token_id in encoded]
    if ids:
        for row in display.token_rows(encoded, tokens):
            typer.echo(row)
    else:
        console.print(display.coloured_tokens(tokens))
    console.print(display.rates(len(encoded), content))


def _open(names: Sequence[str], port: int) -> None:
    """Serve the page until Ctrl-C, and open it in the browser."""
    import webbrowser

    from bpe_llama.playground import playground, run_server

    if len(set(names)) < len(names):
        raise ValueError(f"a tokenizer is given twice: {', '.join(names)}")
    tokenizers = {name: open_tokenizer(name) for name in names}

    def ready(url: str) -> None:
        typer.echo(url)
        sys.stdout.flush()
        webbrowser.open(url)

    run_server(playground(tokenizers), "127.0.0.1", port, ready)
