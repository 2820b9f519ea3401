"""Turns the messages of a request into ids, through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpe_llama import chat
from bpe_llama._core import shown
from bpe_llama.chat.renderer import compile_template
from bpe_llama.chat.templates import choose_template
from bpe_llama.model.server.api.forced_calls import call_grammar
from bpe_llama.model.server.api.options import check_size
from bpe_llama.model.server.api.schemas import ChatMessage, ContentPart, InputPart
from bpe_llama.model.server.api.tools import Family, ToolParser, family_of
from bpe_llama.model.server.config import Limits
from bpe_llama.playground.errors import bad
from bpe_llama.tokenizer import Tokenizer


@dataclass
class Conversation:
    """A conversation, as a chat template reads it, and how the answer may call tools.

    Attributes:
        messages: Each with ``role`` and ``content``, perhaps ``tool_calls`` and others.
        tools: Functions in OpenAI's form; None if there are no tools.
        tool_choice: ``none``, ``auto``, ``required``, or ``name:`` followed by the name of a function.
        parallel: Whether the answer may have several calls.
        variables: Further variables of the template.
        continued: Whether the answer continues the last message instead of beginning a new one.
        begins: Whether the prompt ends with the beginning of an answer; None: unless the answer continues a message.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str = "auto"
    parallel: bool = True
    variables: dict[str, Any] | None = None
    continued: bool = False
    begins: bool | None = None

    @property
    def may_call(self) -> bool:
        """Return whether the answer may call a tool."""
        return bool(self.tools) and self.tool_choice != "none"


def template_of(tokenizer: Tokenizer, has_tools: bool) -> str:
    """Return the chat template.

    Raises:
        ApiError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise bad(
            "this model has no chat template: it continues text, use /v1/completions", "model", "no_chat_template"
        )
    return choose_template(tokenizer.chat_template, None, has_tools)


def encode(tokenizer: Tokenizer, talk: Conversation) -> list[int]:
    """Return the ids of a conversation. The text of a special token in a message is encoded as text.

    Raises:
        ApiError: If there is no template, or it reads no tools and the choice of a tool is left to the model.
        ValueError: If the template refuses the messages.
    """
    used = talk.tools if talk.tool_choice != "none" else None
    source = template_of(tokenizer, used is not None)
    known = compile_template(source).variables
    if used is not None and "tools" not in known and talk.tool_choice == "auto":
        raise bad(
            "the chat template of this model reads no tools; expected tool_choice required or the name of a function",
            "tools",
        )
    ids: list[int] = tokenizer.apply_chat_template(
        chat.with_system_role(talk.messages, source),
        talk.begins,
        tools=used if "tools" in known else None,
        continue_final_message=talk.continued,
        **(talk.variables or {}),
    )
    return list(ids)


def parser_for(tokenizer: Tokenizer, talk: Conversation) -> ToolParser | None:
    """Return a parser of the answer's calls, or None if the answer cannot have calls."""
    if not talk.may_call:
        return None
    names = [tool["function"]["name"] for tool in talk.tools or ()]
    return ToolParser(tool_family(tokenizer), names, talk.parallel)


def tool_family(tokenizer: Tokenizer) -> Family:
    """Return how a model with the chat template of this tokenizer writes calls."""
    return family_of(template_of(tokenizer, True))


def forced_call(tokenizer: Tokenizer, talk: Conversation) -> dict[str, Any]:
    """Return the option ``grammar`` that makes the answer a call, or no option if the model may answer with text.

    Raises:
        ApiError: If the request demands a call, but has no tools or none of this name.
    """
    if talk.tool_choice in ("none", "auto"):
        return {}
    functions = [tool["function"] for tool in talk.tools or ()]
    if not functions:
        raise bad(
            f"tool_choice is {shown(talk.tool_choice.removeprefix('name:'))}, but there are no tools", "tool_choice"
        )
    name = talk.tool_choice.removeprefix("name:") if talk.tool_choice.startswith("name:") else None
    if name is not None and all(function["name"] != name for function in functions):
        raise bad(f"tool_choice names {shown(name)}, which is not in tools", "tool_choice")
    if name is not None:
        functions = [function for function in functions if function["name"] == name]
    template = template_of(tokenizer, True)
    several = talk.parallel and name is None
    special = tokenizer.special_tokens
    family = family_of(template)
    grammar = call_grammar(family, functions, several=several, template=template, special_tokens=special)
    return {"grammar": grammar}


def check_tools(tools: Sequence[dict[str, Any]], limits: Limits) -> None:
    """Raise an ApiError if there are too many tools, two have the same name, or their schemas are too long."""
    if len(tools) > limits.tools:
        raise bad(f"tools has {len(tools)} tools; expected at most {limits.tools}", "tools")
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise bad(f"tools has two functions of the name {twice!r}", "tools")
    check_size(list(tools), limits, "tools")


def to_template(messages: Sequence[ChatMessage], limits: Limits) -> list[dict[str, Any]]:
    """Return messages as chat templates read them: content as text, arguments of calls as objects.

    Raises:
        ApiError: If there are too many messages, content is missing or not text, calls are not the assistant's, or the
            arguments of a call are no JSON object.
    """
    if len(messages) > limits.messages:
        raise bad(f"messages has {len(messages)} messages; expected at most {limits.messages}", "messages")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role}
    content = text_of(message.content, f"{where}.content")
    if content is not None:
        found["content"] = content
    elif message.refusal is not None:
        found["content"] = message.refusal
    elif message.role != "assistant":
        raise bad(f"{where}.content is missing", f"{where}.content", "missing_field")
    else:  # templates concatenate content with text, so it must not be None
        found["content"] = ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            found[name] = getattr(message, name)
    if message.tool_calls:
        if message.role != "assistant":
            raise bad(f"{where}.tool_calls is given; only the assistant calls tools", f"{where}.tool_calls")
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": call_arguments(
                        call.function.arguments, f"{where}.tool_calls[{place}].function.arguments"
                    ),
                },
            }
            for place, call in enumerate(message.tool_calls)
        ]
    return found


def _part_text(part: ContentPart | InputPart, where: str) -> str:
    """Return the text of a part of a message.

    Raises:
        ApiError: If the part is an image or anything else that is not text.
    """
    if part.type not in ("text", "input_text", "output_text", "refusal"):
        message = f"{where} has the type {part.type!r:.50}; this model reads text only"
        raise bad(message, f"{where}.type", "unsupported_content")
    field = "refusal" if part.type == "refusal" else "text"
    text = getattr(part, field)
    if text is None:
        raise bad(f"{where}.{field} is missing", f"{where}.{field}", "missing_field")
    return str(text)


def text_of(content: str | Sequence[ContentPart | InputPart] | None, where: str) -> str | None:
    """Return content as one text, its parts on lines of their own; None if there is none.

    Raises:
        ApiError: If a part is not text.
    """
    if content is None or isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{where}[{place}]") for place, part in enumerate(content))


def call_arguments(text: str, where: str) -> dict[str, Any]:
    """Return the arguments of a call in the history.

    Raises:
        ApiError: If the text is not a JSON object.
    """
    try:
        return chat.call_arguments(text, where)
    except ValueError as error:
        raise bad(str(error), where, "invalid_value") from None
