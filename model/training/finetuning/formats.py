"""The formats of fine-tuning data, detected by their fields.

| format | fields |
|---|---|
| `messages` | `messages`: objects with `role`, `content`, `tool_calls`, `weight`; `tools`, `chat_template_kwargs` |
| `sharegpt` | `conversations`: objects with `from` and `value`; `system`, `tools` |
| `alpaca` | `instruction`, `output`; `input`, `system`, `history` |
| `prompt-completion` | `prompt`, `completion`: texts, or lists of messages; `tools`, `chat_template_kwargs` |
| `text` | `text` |

The fields before the semicolon are required; for `alpaca` and `prompt-completion`, both. Other fields are metadata
and are ignored, except those of images, audio and preferences, which are refused.

Sources: https://platform.openai.com/docs/guides/supervised-fine-tuning (`messages`, `weight`),
https://huggingface.co/docs/trl/dataset_formats (`prompt-completion`, `chat_template_kwargs`),
https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html (`alpaca`, `sharegpt`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bpe_llama._core import shown
from bpe_llama.chat.request import NO_VARIABLES

FORMATS = ("messages", "sharegpt", "alpaca", "prompt-completion", "text")
_REQUIRED = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
# A row with the required fields of several formats has the first of these formats.
_DETECTION_ORDER = ("messages", "sharegpt", "prompt-completion", "alpaca", "text")
# Unsupported fields that change what is learned; all others are metadata.
_DEPRECATED = dict.fromkeys(("functions", "function_call"), "expected 'tools', which replaced it in OpenAI's format")
_MEDIA = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "only text can be learned")
_PREFERENCES = dict.fromkeys(("chosen", "rejected", "label", "kto_tag"), "preferences cannot be learned")
_REFUSED: dict[str, dict[str, str]] = {
    "messages": _DEPRECATED | _MEDIA,
    "sharegpt": _DEPRECATED | _MEDIA | _PREFERENCES,
    "alpaca": _MEDIA | _PREFERENCES,
    "prompt-completion": _DEPRECATED | _MEDIA | _PREFERENCES,
    "text": {},
}
_NO_VARIABLES = NO_VARIABLES - {"tools", "documents"} | {"train_on"}
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class Chat(NamedTuple):
    """A conversation: its messages, and other variables of the chat template, such as `tools`."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]


class Completion(NamedTuple):
    """A prompt, and the completion, of which the tokens are learned."""

    prompt: str
    completion: str


def detect_format(row: Any) -> str | None:
    """Return the format of a row by its fields, or None if no format has them.

    Example:
        >>> detect_format({"instruction": "Add.", "input": "1 1", "output": "2"}), detect_format({"question": "?"})
        ('alpaca', None)
    """
    if not isinstance(row, dict):
        return None
    return next((name for name in _DETECTION_ORDER if all(field in row for field in _REQUIRED[name])), None)


def describe_fields(row: Any) -> str:
    """Return the fields of a row and the expected ones, for an error message."""
    known = "; ".join(f"{name} ({', '.join(_REQUIRED[name])})" for name in FORMATS)
    found = f"an object with the fields {sorted(row)}" if isinstance(row, dict) else f"{type(row).__name__}"
    return f"{found}; expected the fields of one of: {known}"


def read_row(row: Any, kind: str, train_on: str = "assistant") -> Chat | Completion | str:
    """Return the content of a row: a conversation, a prompt with its completion, or a text.

    Unless `train_on` is "all", no answer within a prompt is learned.

    Raises:
        ValueError: If a field is missing or has another type; the message names the field and the value.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {_wanted(kind)}, got {shown(row)}")
    for field in _REQUIRED[kind]:
        if row.get(field) is None or (field in ("messages", "conversations") and not isinstance(row[field], list)):
            raise ValueError(f"expected an object with {_wanted(kind)}; its fields are {sorted(row)}")
    for field, instead in _REFUSED[kind].items():
        if row.get(field) not in (None, [], ""):
            raise ValueError(f"{field!r} is {shown(row[field])}; {instead}")
    if kind == "messages":
        return Chat(_messages(row["messages"], "messages"), _options(row))
    if kind == "sharegpt":
        return _sharegpt(row)
    if kind == "alpaca":
        return _alpaca(row)
    if kind == "text":
        return _text(row, "text")
    if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        prompt, completion = (_messages(row[field], field) for field in _REQUIRED[kind])
        for place, message in enumerate(prompt):
            if not isinstance(message, dict):
                raise ValueError(f"message {place} of 'prompt' is {shown(message)}; expected an object with 'role'")
        if train_on != "all":
            prompt = [turn | ({"weight": 0} if turn.get("role") == "assistant" else {}) for turn in prompt]
        return Chat(prompt + completion, _options(row))
    return Completion(_text(row, "prompt"), _text(row, "completion"))


def _wanted(kind: str) -> str:
    if kind in ("messages", "sharegpt"):
        return f"a list of {_REQUIRED[kind][0]!r}"
    return " and ".join(map(repr, _REQUIRED[kind]))


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{field!r} is {shown(value)}; expected a text")
    return value


def _messages(value: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"{field!r} is {shown(value)}; expected a list of messages")
    for place, message in enumerate(value):
        if isinstance(message, dict):
            if message.get("function_call"):
                raise ValueError(f"message {place}: 'function_call' is OpenAI's older spelling; expected 'tool_calls'")
            for number, part in enumerate(message["content"] if isinstance(message.get("content"), list) else ()):
                if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                    raise ValueError(f"message {place}: part {number} is {shown(part)}; expected one of type 'text'")
    return value


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the chat template in a row, except its messages."""
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError(f"'chat_template_kwargs' is {shown(options)}; expected an object")
    for name in sorted(_NO_VARIABLES & options.keys()):
        raise ValueError(
            f"'chat_template_kwargs' sets {name!r}; a row cannot change special tokens, template or options"
        )
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'tools' is {shown(tools)}, not valid JSON ({error})") from None
    if tools is None:
        return options
    if not isinstance(tools, list):
        raise ValueError(f"'tools' is {shown(tools)}; expected a list of schemas")
    return options | {"tools": tools}


def _sharegpt(row: Mapping[str, Any]) -> Chat:
    talk: Sequence[Any] = row["conversations"]
    if talk and all(isinstance(turn, dict) and "role" in turn for turn in talk):
        messages = _messages(list(talk), "conversations")
    else:
        messages = [_sharegpt_turn(turn, place) for place, turn in enumerate(talk)]
    if row.get("system"):
        messages = [{"role": "system", "content": _text(row, "system")}, *messages]
    return Chat(messages, _options(row))


def _sharegpt_turn(turn: Any, place: int) -> dict[str, Any]:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise ValueError(f"message {place} is {shown(turn)}; expected an object with 'from' and 'value'")
    role = _ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise ValueError(f"message {place}: 'from' is {shown(turn['from'])}; expected one of {sorted(_ROLES)}")
    content = turn["value"]
    if not isinstance(content, str):
        raise ValueError(f"message {place}: 'value' is {shown(content)}; expected a text")
    message: dict[str, Any] = {"role": role, "content": content}
    if turn["from"] == "function_call":
        try:
            calls = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"message {place}: the call {content!r:.100} is not valid JSON ({error})") from None
        calls = calls if isinstance(calls, list) else [calls]
        message = {"role": role, "tool_calls": [{"type": "function", "function": call} for call in calls]}
    return message | ({"weight": turn["weight"]} if turn.get("weight") is not None else {})


def _alpaca(row: Mapping[str, Any]) -> Chat:
    messages = [{"role": "system", "content": _text(row, "system")}] if row.get("system") else []
    history = row.get("history") or []
    pairs = isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)
    if not pairs or not all(isinstance(text, str) for turn in history for text in turn):
        raise ValueError(f"'history' is {shown(history)}; expected a list of pairs of texts")
    question = _text(row, "instruction")
    if row.get("input"):
        question += "\n" + _text(row, "input")
    for user, answer in [*history, (question, _text(row, "output"))]:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return Chat(messages, {})
