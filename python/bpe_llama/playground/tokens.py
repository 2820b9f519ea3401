"""Describes texts, conversations, merges and tokenizers for the page, as values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpe_llama.educational import EducationalTokenizer
    from bpe_llama.tokenizer import Tokenizer

MAX_SHOWN = 5_000
"""Tokens that one answer describes; all are counted."""
MAX_PIECE = 200
"""Bytes of a pre-token to show merges of; each merge gives one list of tokens."""
MAX_STEPPED = 20_000
"""Tokens in all steps of the merges of a text: about a megabyte of JSON."""


def describe_text(tokenizer: Tokenizer, text: str, *, special: bool, template: bool) -> dict[str, Any]:
    r"""Return the tokens of a text.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        special: Whether the text of a special token becomes its id.
        template: Whether to add the tokens of the post-processor, such as a beginning-of-text token.

    Returns:
        ``count``, ``characters``, ``bytes`` and ``tokens``. A token has ``id``, ``bytes`` (hexadecimal), ``text``,
        ``special``, ``start`` and ``end``: its characters are ``text[start:end]``. ``start`` and ``end`` are None for a
        token without characters.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=260, progress=False)
        >>> found = describe_text(tok, "low é", special=False, template=False)
        >>> [(token["text"], token["bytes"], token["start"], token["end"]) for token in found["tokens"]]
        [('low', '6c6f77', 0, 3), (' ', '20', 3, 4), ('\\xc3', 'c3', 4, 5), ('\\xa9', 'a9', 4, 5)]
    """
    allowed = tuple(tokenizer.special_tokens) if special else ()
    ids, spans = tokenizer.encode_with_offsets(text, allowed_special=allowed)
    offsets: list[tuple[int, int] | None] = list(spans)
    if template:
        whole = list(tokenizer(text, allowed_special=allowed)["input_ids"])
        start = sum(1 for _ in takewhile(lambda item: item[1] is None, tokenizer.template(False)))
        if whole[start : start + len(ids)] != ids:  # the post-processor did more than put tokens around the text
            offsets = [None] * len(whole)
        else:
            offsets = [None] * start + offsets + [None] * (len(whole) - start - len(ids))
        ids = whole
    return _described(tokenizer, text, ids, offsets)


def describe_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, answer: bool) -> dict[str, Any]:
    """Return the tokens of a conversation as the chat template writes it, in the form of `describe_text`.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Messages with ``role`` and ``content``.
        answer: Whether the text ends where the assistant's answer begins.

    Raises:
        ValueError: If there is no template, or it refuses the messages.
    """
    from bpe_llama.chat import encode_chat

    ids = encode_chat(tokenizer, messages, add_generation_prompt=answer)
    text = tokenizer.decode(ids)
    return {**_described(tokenizer, text, ids, [None] * len(ids)), "rendered": text}


def _described(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int] | None]
) -> dict[str, Any]:
    special = set(tokenizer.special_tokens.values())
    tokens = []
    for token_id, span in zip(ids[:MAX_SHOWN], offsets[:MAX_SHOWN], strict=True):
        start, end = span if span is not None else (None, None)
        token = describe_token(tokenizer, token_id)
        tokens.append({**token, "special": token_id in special, "start": start, "end": end})
    num_bytes = len(text.encode("utf-8", "replace"))
    return {"count": len(ids), "characters": len(text), "bytes": num_bytes, "tokens": tokens}


def describe_token(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    r"""Return ``id``, ``bytes`` in hexadecimal, and ``text``; bytes that are not UTF-8 are written as ``\xNN``."""
    data = tokenizer.id_to_bytes(token_id)
    return {"id": token_id, "bytes": data.hex(), "text": data.decode("utf-8", "backslashreplace")}


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer's size, pattern, special tokens and whether it has a chat template."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "pattern": tokenizer.pattern,
        "pattern_name": tokenizer.pattern_name,
        "pipeline": tokenizer.pipeline,
        "special_tokens": dict(tokenizer.special_tokens),
        "chat_template": tokenizer.chat_template is not None,
    }


def describe_merges(twin: EducationalTokenizer, text: str) -> list[dict[str, Any]]:
    """Return the pre-tokens of a text, and the tokens of each after every merge.

    Returns:
        One item a pre-token: ``text``, and ``steps``, each a list of tokens with ``text`` and ``id``. The first step
        holds single bytes, and each later one has one more merge. ``steps`` is empty for a pre-token of more than
        `MAX_PIECE` bytes, and once the steps so far and the next ones would have over `MAX_STEPPED` tokens.

    Example:
        >>> from bpe_llama.educational import EducationalTokenizer
        >>> twin = EducationalTokenizer.train(["low lower lowest"], vocab_size=258)
        >>> (piece,) = describe_merges(twin, "lows")
        >>> [[token["text"] for token in step] for step in piece["steps"]]
        [['l', 'o', 'w', 's'], ['lo', 'w', 's'], ['low', 's']]
    """
    pieces, room = [], MAX_STEPPED
    for piece in twin.split(text):
        data = piece.encode()
        steps = list(twin.merge_steps(data)) if len(data) <= MAX_PIECE and room > 0 else []
        room -= sum(map(len, steps))
        if room < 0:
            steps = []
        pieces.append({"text": piece, "steps": [_step(twin, step) for step in steps]})
    return pieces


def _step(twin: EducationalTokenizer, tokens: Iterable[bytes]) -> list[dict[str, Any]]:
    return [{"text": token.decode("utf-8", "backslashreplace"), "id": twin.ids[token]} for token in tokens]
