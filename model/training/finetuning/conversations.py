"""Rows of fine-tuning data to examples: conversations through the chat template, and prompts with completions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpe_llama._core import shown
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.rows import check_text, has_rows, is_other_table, read_rows
from bpe_llama._corpus.token_files import begins_and_ends
from bpe_llama._progress import ProgressOption, reporting
from bpe_llama.chat import call_arguments, encode_conversation, render_for, with_system_role
from bpe_llama.chat.templates import choose_template
from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.training.data.examples import Example
from bpe_llama.model.training.finetuning.formats import Chat, Completion, describe_fields, detect_format, read_row
from bpe_llama.model.training.finetuning.options import DataConfig
from bpe_llama.model.training.finetuning.plain_text import SpecialLookalikes, encode_parsed
from bpe_llama.tokenizer import Tokenizer

_REASONING = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class Conversations(NamedTuple):
    """The result of `read_conversations`.

    Attributes:
        examples: The examples with at least one learned token.
        truncated: Number of them that were longer than `max_length`.
        dropped: Number of rows without a learned token, as their answers were truncated or have a weight of 0.
    """

    examples: list[Example]
    truncated: int
    dropped: int


def find_formats(paths: Sequence[Path], config: DataConfig) -> dict[Path, str]:
    """Return the format of each file, one of `FORMATS`: `config.format`, or by the fields of its first row.

    A file without a suffix of JSON or Parquet, or of another table such as `.csv`, is text; under "text" a `.csv` is
    text as well. With `on_error="skip"`, the first row that is an object decides. A file of no format, a table of
    another kind, and text beside other formats are a `ValueError`.
    """
    formats = {path: _format_of(path, config) for path in paths}
    chats, plain = ([path for path in paths if (formats[path] == "text") is text] for text in (False, True))
    if chats and plain:
        raise ValueError(f"{chats[0]} holds conversations and {plain[0]} plain text; train on one kind at a time")
    return formats


def _format_of(path: Path, config: DataConfig) -> str:
    if not has_rows(path):
        if config.format not in ("auto", "text"):
            raise ValueError(
                f"{path}: format is {shown(config.format)}; expected a .json, .jsonl or .parquet file for it"
            )
        if config.format == "auto" and is_other_table(path):
            raise ValueError(
                f"{path}: rows of {path.suffix} are not read; expected .json, .jsonl, .ndjson or .parquet, or a file "
                "of plain text; with the format 'text' it is learned as plain text"
            )
        return "text"
    if config.format != "auto":
        return config.format
    bad_rows = BadRows(config.on_error)
    for place, row in read_rows(path, bad_rows):
        found = detect_format(row)
        if found is not None:
            return found
        if isinstance(row, dict) or not bad_rows.skips:
            raise ValueError(f"{place}: {describe_fields(row)}")
    raise ValueError(f"{path}: holds no row that is an object")


def read_conversations(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    max_length: int,
    config: DataConfig = DataConfig(),  # noqa: B008, frozen
    progress: ProgressOption = None,
) -> Conversations:
    """Return conversations and completions as examples, whose labels are -100 for tokens that are not learned.

    Prompt and completion are encoded separately, as in generation. The prompt begins with the special tokens that the
    tokenizer's files put before a text. The completion ends with those that they put after a text, or else with the
    end-of-text id, which are learned.

    Args:
        paths: `.json`, `.jsonl`, `.ndjson` and `.parquet` files; those ending in `.gz` or `.zst` are decompressed.
        tokenizer: Its vocabulary and, for chats, its chat template.
        max_length: Longest example in tokens; longer ones are truncated.
        config: How the files are read.
        progress: None shows the number of rows on a terminal, True always, False never; a function is called with a
            `bpe_llama._progress.Progress`.

    Warns:
        UserWarning: The number of skipped rows and the place of the first; the number of conversations whose reasoning
            the template omits; text of prompts and completions that looks like special tokens.

    Raises:
        ImportError: If `pyarrow`, which reads Parquet files, is not installed.
        ValueError: If a row cannot be used and `config.on_error` is "raise", naming file and place; or if no token is
            learned.
    """
    bad_rows = BadRows(config.on_error)
    formats = find_formats(paths, config)
    if tokenizer.chat_template is None and not {"prompt-completion", "text"}.issuperset(formats.values()):
        raise ValueError(
            "conversations need a tokenizer with a chat template, and this one has none; give --chat-template "
            "chatml, llama3 or a file"
        )
    lookalikes = SpecialLookalikes(tokenizer)
    encoder = _Encoder(tokenizer, config.train_on, config.parse_special)
    examples: list[Example] = []
    truncated = dropped = rows = 0
    with reporting(progress) as report:
        for path, format in formats.items():
            for place, row in read_rows(path, bad_rows):
                rows += 1
                if report is not None and rows % 100 == 0:
                    report("read", rows, None)
                with bad_rows.caught(place):
                    found = read_row(row, format, config.train_on)
                    if isinstance(found, str):
                        raise ValueError("the row holds a text; expected conversations or completions")
                    fields = (
                        {"messages": found.messages, **found.options} if isinstance(found, Chat) else found._asdict()
                    )
                    for field, value in fields.items():
                        check_text(value, field)
                    ids, learned = encoder.encode(found)
                    if isinstance(found, Completion) and not config.parse_special:
                        lookalikes.count(found.prompt + found.completion)
                    ids_T = np.array(ids[:max_length], dtype=np.int64)
                    example = Example(ids_T, np.where(np.array(learned[:max_length], dtype=bool), ids_T, IGNORED))
                    if example.learned:
                        examples.append(example)
                        truncated += len(ids) > max_length
                    else:
                        dropped += 1
    bad_rows.warn(stacklevel=2)
    lookalikes.warn(stacklevel=2)
    if encoder.without_reasoning:
        count = f"{encoder.without_reasoning:,} conversations"
        message = f"the chat template omits the reasoning of {count}; it is not learned"
        warnings.warn(message, stacklevel=2)
    if not examples:
        raise ValueError(f"no conversation has an answer within its first {max_length:,} tokens")
    return Conversations(examples, truncated, dropped)


class _Encoder:
    """Encodes conversations and completions, and counts those that lose their reasoning."""

    def __init__(self, tokenizer: Tokenizer, train_on: str, parse_special: bool) -> None:
        self.tokenizer, self.train_on, self.parse_special = tokenizer, train_on, parse_special
        self.without_reasoning = 0  # conversations whose reasoning the template omitted

    def encode(self, found: Chat | Completion) -> tuple[list[int], list[bool]]:
        """Return the ids, and for each id whether it is learned."""
        return self._chat(found) if isinstance(found, Chat) else self._completion(found)

    @cached_property
    def _reads_parts(self) -> bool:
        """Return whether the chat template supports content in parts; others render the list itself, or fail."""
        try:
            text = render_for(self.tokenizer, [{"role": "user", "content": [{"type": "text", "text": "\N{SNOWMAN}"}]}])
        except ValueError:
            return False
        return "\N{SNOWMAN}" in text and "'type'" not in text and '"type"' not in text

    def _chat(self, chat: Chat) -> tuple[list[int], list[bool]]:
        template = choose_template(self.tokenizer.chat_template, None, chat.options.get("tools") is not None)
        messages = with_system_role(chat.messages, template)
        in_parts = any(isinstance(message, dict) and isinstance(message.get("content"), list) for message in messages)
        if in_parts and not self._reads_parts:
            messages = [_with_one_text(message) for message in messages]
        called = [_with_arguments(message, place) for place, message in enumerate(messages)]
        try:
            ids, learned = encode_conversation(self.tokenizer, called, train_on=self.train_on, **chat.options)
        except ValueError:
            if called == messages:
                raise
            # A template that joins arguments to a text, such as DeepSeek's, needs them as text.
            ids, learned = encode_conversation(self.tokenizer, messages, train_on=self.train_on, **chat.options)
        reasoning = [part for message in messages for part in _reasoning(message)]
        if reasoning:
            rendered = self.tokenizer.decode(ids)
            self.without_reasoning += any(part not in rendered for part in reasoning)
        return ids, learned

    def _completion(self, found: Completion) -> tuple[list[int], list[bool]]:
        tokenizer = self.tokenizer
        before, after = begins_and_ends(tokenizer)
        prompt = encode_parsed(tokenizer, found.prompt, None, self.parse_special)
        answer = encode_parsed(tokenizer, found.completion, found.prompt or None, self.parse_special)
        if answer[len(answer) - len(after) :] != after:
            answer += after
        if before and (prompt or answer)[: len(before)] == before:  # the parsed text may hold these tokens itself
            before = []
        ids = before + prompt + answer
        return ids, [self.train_on == "all"] * (len(ids) - len(answer)) + [True] * len(answer)


def _with_one_text(message: Any) -> Any:
    """Return a message with its parts joined by line feeds, as vLLM and llama.cpp do."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": "\n".join(part["text"] for part in message["content"])}


def _with_arguments(message: Any, place: int) -> Any:
    """Return a message whose calls have their arguments as objects, as the server renders them, and not as JSON text.

    Raises:
        ValueError: If the text is not a JSON object.
    """
    if not isinstance(message, dict) or not isinstance(message.get("tool_calls"), list):
        return message
    calls = []
    for index, call in enumerate(message["tool_calls"]):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            where = f"message {place}: tool_calls[{index}].function.arguments"
            call = call | {"function": function | {"arguments": call_arguments(function["arguments"], where)}}
        calls.append(call)
    return message | {"tool_calls": calls}


def _reasoning(message: dict[str, Any]) -> list[str]:
    """Return the reasoning in an assistant message, from a separate field or from `<think>` blocks in its content."""
    if message.get("role") != "assistant":
        return []
    fields = [message.get(name) for name in ("reasoning_content", "reasoning", "thinking")]
    content = message.get("content")
    found = [text for text in fields if isinstance(text, str)]
    found += _REASONING.findall(content) if isinstance(content, str) else []
    return [text.strip() for text in found if text.strip()]
