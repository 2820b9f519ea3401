"""Chats as training examples: JSON lines, compressed or not, a line a conversation.

Such a line is `{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpe_llama._bad_rows import BadRows
from bpe_llama._core import FileLines
from bpe_llama.chat import encode_conversation
from bpe_llama.model.loss import IGNORED
from bpe_llama.model.training.examples import Example

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


_JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)


class Conversations(NamedTuple):
    """What `read_conversations` found.

    Attributes:
        examples: Those that hold something to learn.
        cut: How many of them were longer than allowed and lost their end.
        left_out: How many conversations lost all their answers by that, and are not among the examples.
    """

    examples: list[Example]
    cut: int
    left_out: int


def are_conversations(paths: Sequence[Path], on_error: str = "raise") -> bool:
    """Return whether files hold conversations, not plain text: by the first line of each file of JSON lines.

    Args:
        paths: The files.
        on_error: "raise" an error where that line is no JSON, or "skip" to the first that is an object.

    Raises:
        ValueError: If some do and some do not; if a line is no JSON.
    """
    kinds = {path: bool(_JSON_LINES.search(path.name)) and _begins_with_messages(path, on_error) for path in paths}
    if len(set(kinds.values())) > 1:
        chat, plain = (next(path for path, kind in kinds.items() if kind is wanted) for wanted in (True, False))
        raise ValueError(f"{chat} holds conversations and {plain} plain text; train on one kind at a time")
    return any(kinds.values())


def read_conversations(
    paths: Sequence[Path], tokenizer: Tokenizer, max_length: int, *, on_error: str = "raise"
) -> Conversations:
    """Return conversations as examples in which the assistant's tokens are learned and all others only read.

    Args:
        paths: Files of JSON lines; those ending in `.gz` or `.zst` are decompressed.
        tokenizer: With the chat template that spells a conversation.
        max_length: Tokens of an example at most; what comes after is cut off.
        on_error: What is done with a line that is not UTF-8, no JSON or no conversation, whose messages hold half of a
            surrogate pair or do not suit the template: "raise" an error, or "skip" it.

    Warns:
        UserWarning: How many lines were skipped, and where the first stands.

    Raises:
        ValueError: If there is such a line, naming file and line, and it is not to be skipped; if nothing is left to
            learn.
    """
    bad_rows = BadRows(on_error)
    if tokenizer.chat_template is None:
        raise ValueError("conversations need a tokenizer with a chat template, and this one has none")
    examples: list[Example] = []
    cut = left_out = 0
    for place, value in _lines(paths, bad_rows):
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list):
            bad_rows.skip_or_raise(f"{place}: expected an object with a list of 'messages'")
            continue
        try:
            _check_surrogates(messages)
            ids, learned = encode_conversation(tokenizer, messages)
        except ValueError as error:
            bad_rows.skip_or_raise(f"{place}: {error}", error)
            continue
        kept = np.array(ids[:max_length], dtype=np.int64)
        example = Example(kept, np.where(np.array(learned[:max_length], dtype=bool), kept, IGNORED))
        if example.learned:
            examples.append(example)
            cut += len(ids) > max_length
        else:
            left_out += 1
    bad_rows.warn(stacklevel=2)
    if not examples:
        raise ValueError(f"no conversation has an answer within its first {max_length:,} tokens")
    return Conversations(examples, cut, left_out)


def _begins_with_messages(path: Path, on_error: str) -> bool:
    bad_rows = BadRows(on_error)
    for _, value in _lines([path], bad_rows):
        if isinstance(value, dict) or not bad_rows.skips:
            return isinstance(value, dict) and "messages" in value
    return False


def _check_surrogates(messages: list[Any]) -> None:
    """Refuse half of a surrogate pair, which JSON can spell: it is no character, and would be learned as U+FFFD."""
    try:
        json.dumps(messages, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"lone surrogate \\u{ord(half):04x} in 'messages'") from None


def _lines(paths: Sequence[Path], bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    """Yield each line that is not blank as where it is and what it holds; those that are no JSON go to ``bad_rows``."""
    for path in paths:
        for number, line in enumerate(FileLines(path), start=1):
            place = f"{path}, line {number}"
            try:
                # A byte-order mark at the start of a file is no part of its text.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                value = json.loads(text)
            except UnicodeDecodeError as error:
                bad_rows.skip_or_raise(f"{place}: not UTF-8 ({error.reason})", error)
            except (json.JSONDecodeError, RecursionError) as error:
                bad_rows.skip_or_raise(f"{place}: not valid JSON ({error})", error)
            else:
                yield place, value
