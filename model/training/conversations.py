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


def are_conversations(paths: Sequence[Path]) -> bool:
    """Return whether files hold conversations, not plain text: by the first line of each file of JSON lines.

    Raises:
        ValueError: If some do and some do not.
    """
    kinds = {path: bool(_JSON_LINES.search(path.name)) and _begins_with_messages(path) for path in paths}
    if len(set(kinds.values())) > 1:
        chat, plain = (next(path for path, kind in kinds.items() if kind is wanted) for wanted in (True, False))
        raise ValueError(f"{chat} holds conversations and {plain} plain text; train on one kind at a time")
    return any(kinds.values())


def read_conversations(paths: Sequence[Path], tokenizer: Tokenizer, max_length: int) -> Conversations:
    """Return conversations as examples in which the assistant's tokens are learned and all others only read.

    Args:
        paths: Files of JSON lines; those ending in `.gz` or `.zst` are decompressed.
        tokenizer: With the chat template that spells a conversation.
        max_length: Tokens of an example at most; what comes after is cut off.

    Raises:
        ValueError: If a line is no conversation, its messages do not suit the template, or nothing is left to learn;
            the message names file and line.
    """
    if tokenizer.chat_template is None:
        raise ValueError("conversations need a tokenizer with a chat template, and this one has none")
    examples: list[Example] = []
    cut = left_out = 0
    for place, value in _lines(paths):
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list):
            raise ValueError(f"{place}: expected an object with a list of 'messages'")
        try:
            ids, learned = encode_conversation(tokenizer, messages)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        kept = np.array(ids[:max_length], dtype=np.int64)
        example = Example(kept, np.where(np.array(learned[:max_length], dtype=bool), kept, IGNORED))
        if example.learned:
            examples.append(example)
            cut += len(ids) > max_length
        else:
            left_out += 1
    if not examples:
        raise ValueError(f"no conversation has an answer within its first {max_length:,} tokens")
    return Conversations(examples, cut, left_out)


def _begins_with_messages(path: Path) -> bool:
    for _, value in _lines([path]):
        return isinstance(value, dict) and "messages" in value
    return False


def _lines(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Yield each line that is not blank as where it is and what it holds."""
    for path in paths:
        for number, line in enumerate(FileLines(path), start=1):
            try:
                text = line.decode()
                if text.strip():
                    yield f"{path}, line {number}", json.loads(text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from error
