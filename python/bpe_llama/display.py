"""Show tokens and vocabularies on a terminal.

The functions return `rich` renderables, which are plain text if the output is no terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bpe_llama._rich import Table, Text, cell_len

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer

# Neighbours differ in lightness and hue, with enough contrast to black text.
_BACKGROUNDS = ("#b9c7f7", "#b8ecc4", "#fbe6a2", "#f7c1c1", "#b5e6ef")
_VISIBLE = {"\n": "↵\n", "\t": "→\t", "\r": "␍"}


def visible(token: bytes) -> str:
    r"""Return a token as printable text: control characters and invalid UTF-8 are escaped.

    >>> visible(b"a\n"), visible(b"\x00"), visible("é".encode()[:1])
    ('a↵\n', '\\x00', '\\xc3')
    """
    shown = []
    for character in token.decode("utf-8", "backslashreplace"):
        if character in _VISIBLE:
            shown.append(_VISIBLE[character])
        else:
            shown.append(character if character.isprintable() else character.encode("unicode_escape").decode())
    return "".join(shown)


def coloured_tokens(tokens: Sequence[bytes]) -> Text:
    """Return the tokens as one text, neighbours on different backgrounds.

    >>> coloured_tokens([b"Hello", b" world"]).plain
    'Hello world'
    """
    text = Text()
    for index, token in enumerate(tokens):
        text.append(visible(token), style=f"black on {_BACKGROUNDS[index % len(_BACKGROUNDS)]}")
    return text


def token_rows(ids: Sequence[int], tokens: Sequence[bytes]) -> Iterator[str]:
    """Yield the lines of a table with one row a token: its position, id, text and bytes.

    A `Table` of rich would take 1 ms a token.

    Raises:
        ValueError: If ``ids`` and ``tokens`` differ in length.
    """
    if len(ids) != len(tokens):
        raise ValueError(f"ids and tokens must be as long, got {len(ids)} and {len(tokens)}")
    texts = [repr(visible(token)) for token in tokens]
    width = max(map(cell_len, texts), default=0)
    yield f" position  id      {'token':{width}}  bytes"
    for index, (token_id, text, token) in enumerate(zip(ids, texts, tokens, strict=True)):
        yield f" {index:<8}  {token_id:<6}  {text}{' ' * (width - cell_len(text))}  {token.hex(' ')}"


def rates(num_tokens: int, text: str) -> str:
    """Return one line with the numbers of tokens, characters and bytes, and bytes a token.

    >>> rates(2, "Hello world")
    '2 tokens, 11 characters, 11 bytes, 5.50 bytes a token'
    """
    num_bytes = len(text.encode("utf-8", "replace"))
    rate = f", {num_bytes / num_tokens:.2f} bytes a token" if num_tokens else ""
    return f"{num_tokens:,} tokens, {len(text):,} characters, {num_bytes:,} bytes{rate}"


def vocabulary_table(tokenizer: Tokenizer, longest: int = 10) -> Table:
    """Return a table with a tokenizer's size, pattern, special tokens and longest tokens."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    by_length = sorted(tokenizer.mergeable_ranks, key=len, reverse=True)
    table.add_row("vocabulary", f"{tokenizer.vocab_size:,} tokens")
    table.add_row("special", Text(", ".join(f"{name} = {i}" for name, i in tokenizer.special_tokens.items()) or "none"))
    table.add_row("pattern", Text(str(tokenizer.pattern)))
    if tokenizer.chat_template is not None:
        table.add_row("chat template", "yes")
    table.add_row("longest", Text(" ".join(repr(visible(token)) for token in by_length[:longest])))
    return table


def describe_tokens(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """Return the tokens of a text for JSON: id, text and bytes in hexadecimal of each, and the size of the text.

    The text of a token that is no whole character has U+FFFD in its place.
    """
    ids = tokenizer.encode_ordinary(text)
    pieces = [tokenizer.id_to_bytes(token_id) for token_id in ids]
    tokens = [
        {"id": token_id, "text": piece.decode("utf-8", "replace"), "bytes": piece.hex()}
        for token_id, piece in zip(ids, pieces, strict=True)
    ]
    return {"tokens": tokens, "characters": len(text), "bytes": len(text.encode("utf-8", "replace"))}


def describe_vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer's size, pattern, special tokens and chat template for JSON."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "pattern": tokenizer.pattern_name or tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "end_ids": sorted(tokenizer.end_ids),
        "chat_template": tokenizer.chat_template,
    }
