"""Check and copy the options of `Tokenizer.apply_chat_template` for one rendering of a chat template.

Source of the conventions: ``apply_chat_template`` and ``render_jinja_template`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from bpe_llama._arguments import boolean, iterator, reusable, wrong
from bpe_llama._core import shown
from bpe_llama.chat.provenance import GIVEN, TEMPLATE, UNKNOWN, traced
from bpe_llama.chat.templates import ChatTemplate, choose_template

if TYPE_CHECKING:
    from bpe_llama.chat.renderer import Rendered

Message = Mapping[str, Any]

# The special tokens that templates read by name, as ``bos_token``.
NAMED_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TOKEN_VARIABLES = frozenset(f"{name}_token" for name in NAMED_TOKENS)
# Roles that a template may make part of a special token, as in ``<|{{ message.role }}|>``.
_ROLES = frozenset(
    {"assistant", "context", "developer", "environment", "function", "human", "ipython", "model", "observation"}
    | {"system", "tool", "tool_response", "tools", "user"}
)
# transformers appends this tag to the message to continue, and truncates the text there. Its last space shows whether
# the template trims messages.
_CONTINUED = traced("CONTINUE_FINAL_MESSAGE_TAG ", GIVEN)
# The fields of a message for its reasoning: gpt-oss's template reads the second, other templates the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTokenizer(Protocol):
    """The part of `bpe_llama.Tokenizer` that chat templates use."""

    chat_template: ChatTemplate | None

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens to id."""

    @property
    def added_tokens(self) -> dict[str, int]:
        """Special tokens and other added tokens to id."""

    def added_tokens_json(self) -> str:
        """Return the added tokens with their flags, as a `tokenizer.json` lists them."""

    @property
    def normalizes_added_tokens(self) -> bool:
        """Whether added tokens may be looked for in normalized text."""

    def encode(self, text: str, *, allowed_special: Iterable[str] = ...) -> list[int]:
        """Return the ids of a text."""

    def encode_following(self, text: str, before: str | None) -> list[int]:
        """Return the ids of a text that follows other text, or ``None`` for a special token."""

    def encode_with_offsets(
        self, text: str, *, allowed_special: Iterable[str] = ...
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and for each the range of its characters."""

    def id_to_bytes(self, id: int, /) -> bytes:
        """Return the bytes of a token."""


@dataclass(frozen=True)
class ChatRequest:
    """The input of one rendering.

    Attributes:
        source: The template.
        messages: Its variable `messages`, traced.
        variables: Its other variables, traced.
        continued: The field of the last message at whose end the text ends; ``None`` for the whole text.
        marks_answers: Whether the template has a ``{% generation %}`` block.
        now: The time for `strftime_now`.
    """

    source: str
    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    continued: str | None
    marks_answers: bool
    now: datetime

    def render(self) -> Rendered:
        """Return the text; if the last message is continued, up to its end."""
        from bpe_llama.chat.renderer import render_template

        if self.continued is None:
            return render_template(self.source, self.messages, self.variables, self.now)
        messages, tagged = _tag_last_message(self.messages, self.continued, self.source)
        rendered = render_template(self.source, messages, self.variables, self.now)
        place = rendered.text.rfind(_CONTINUED.strip())
        if place < 0 or tagged.strip() not in rendered.text:
            raise ValueError("continue_final_message: the chat template does not write the last message unchanged")
        text = rendered.text[:place]
        return rendered._replace(text=text if rendered.text.startswith(_CONTINUED, place) else text.rstrip())


def _tag_last_message(messages: list[dict[str, Any]], field: str, source: str) -> tuple[list[dict[str, Any]], str]:
    """Return the messages with a tag appended to the text to continue, and this text."""
    last = dict(messages[-1])
    content = last.get(field)
    if content is None:
        raise ValueError(f"continue_final_message: the last message has no {shown(field)} to continue")
    fields = [name for name in _REASONING if last.get(name) == content] if field in _REASONING else [field]
    if not any(name in source for name in fields):
        raise ValueError(f"continue_final_message: the chat template does not read {shown(field)}")
    if isinstance(content, (list, tuple)):
        parts = list(content)
        place = next((i for i in reversed(range(len(parts))) if _has_text(parts[i])), None)
        if place is None:
            raise ValueError(f"continue_final_message: no part of the last message's {field!r} is a text")
        content = parts[place]["text"]
        parts[place] = parts[place] | {"text": content + _CONTINUED}
        last[field] = parts
    elif isinstance(content, str):
        last |= dict.fromkeys(fields, content + _CONTINUED)
    else:
        raise ValueError(f"continue_final_message: the last message's {field!r} is {shown(content)}; expected a text")
    return [*messages[:-1], last], content


def _has_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def prepare_for(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> ChatRequest:
    """Return the request for the tokenizer's template.

    Raises:
        TypeError: As of `prepare`; or if the tokenizer is none.
        ValueError: As of `prepare`; or if the tokenizer has no chat template.
    """
    check_tokenizer(tokenizer)
    return prepare(tokenizer.chat_template, _tokens_by_name(tokenizer), messages, **options)


def prepare(
    templates: ChatTemplate | None,
    named_tokens: Mapping[str, str],
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool | None = None,
    tools: Iterable[Any] | None = None,
    documents: Iterable[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> ChatRequest:
    """Return the request: options checked, values copied, defaults filled in.

    Args:
        templates: The templates to choose from.
        named_tokens: Special tokens by variable name, such as `bos_token`. They are text of the template.
        messages: Mappings with a role.
        add_generation_prompt: As in `Tokenizer.apply_chat_template`, like the arguments below.
        tools: JSON schemas or functions.
        documents: Mappings.
        chat_template: The name or the text of a template.
        continue_final_message: Whether the text ends with the last message; a str names its field.
        **variables: Variables of the template.

    Raises:
        TypeError: If an option is of another type; the message names it.
        ValueError: If an option is invalid; the message names it.
    """
    from bpe_llama.chat.renderer import compile_template
    from bpe_llama.chat.tool_schema import tool_schemas

    if add_generation_prompt is not None:
        boolean("add_generation_prompt", add_generation_prompt, "True, False or None")
    if not isinstance(continue_final_message, str):
        expected = "True, False or the name of a field"
        continue_final_message = boolean("continue_final_message", continue_final_message, expected)
    if continue_final_message and add_generation_prompt:
        raise ValueError(
            "continue_final_message and add_generation_prompt exclude each other: the first continues the last "
            "message, the second opens a new one"
        )
    source = choose_template(templates, chat_template, tools is not None)
    template = compile_template(source)
    for name in variables:
        if name not in template.variables:
            raise ValueError(
                f"{shown(name)} is no option of apply_chat_template and no variable that the chat template reads; "
                f"it reads {sorted(template.variables)}"
            )
    if documents is not None:
        try:
            documents = list(iterator("documents", reusable("documents", documents), "a list of mappings"))
        except TypeError:
            raise ValueError(f"documents is {shown(documents)}; expected a list of mappings") from None
        for place, document in enumerate(documents):
            if not isinstance(document, Mapping):
                raise ValueError(f"document {place} is {shown(document)}; expected a mapping")
    given = {
        "tools": None if tools is None else tool_schemas(tools),
        "documents": documents,
        "add_generation_prompt": not continue_final_message if add_generation_prompt is None else add_generation_prompt,
    }
    return ChatRequest(
        source,
        _plain_messages(messages),
        _plain(
            {**named_tokens, **variables, **given},
            "a variable of the chat template",
            named_tokens.keys() - variables.keys(),
        ),
        "content" if continue_final_message is True else continue_final_message or None,
        template.marks_answers,
        datetime.now(),
    )


NO_VARIABLES = TOKEN_VARIABLES.union(
    signature(prepare).parameters,
    ("self", "tokenizer", "tokenize", "return_assistant_tokens_mask", "return_dict"),  # of `apply_chat_template`
)
"""What ``chat_template_kwargs`` may not set: arguments, and the special tokens that a template writes."""


def check_tokenizer(tokenizer: object) -> None:
    """Raise `TypeError` if an object has no chat template, and so is no tokenizer."""
    if not hasattr(tokenizer, "chat_template"):
        raise TypeError(wrong("tokenizer", tokenizer, "a Tokenizer"))


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages for a template: without fields that are None, the reasoning under each of its names."""
    copies = []
    expected = "a list of mappings with a 'role'"
    if isinstance(messages, (str, Mapping)):
        raise ValueError(wrong("messages", messages, expected))
    for place, message in enumerate(iterator("messages", reusable("messages", messages), expected)):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {place} is {shown(message)}; expected a mapping with a 'role'")
        fields = _plain({key: value for key, value in message.items() if value is not None}, f"message {place}")
        reasoning = next((fields[name] for name in _REASONING if fields.get(name) is not None), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        role = str.__str__(message["role"])  # an enum has a hash of its own
        fields["role"] = traced(role, TEMPLATE if role in _ROLES else UNKNOWN)
        copies.append(fields)
    if not copies:
        raise ValueError("messages is empty: there are no messages; expected at least one")
    return copies


def _plain(value: dict[str, Any], where: str, own: Container[str] = ()) -> dict[str, Any]:
    """Return a copy for a template, in which the values of the keys in ``own`` are text of the template."""
    from bpe_llama.chat.renderer import plain, plain_key

    try:
        return {
            traced(plain_key(key), GIVEN): traced(plain(item), TEMPLATE if key in own else GIVEN)
            for key, item in value.items()
        }
    except RecursionError:
        raise ValueError(f"{where} nests too deeply") from None


def _tokens_by_name(tokenizer: ChatTokenizer) -> dict[str, str]:
    """Return the special tokens with a role by variable name, such as `bos_token` or a model's own `image_token`."""
    texts = {token_id: text for text, token_id in (tokenizer.added_tokens | tokenizer.special_tokens).items()}
    named = dict(getattr(tokenizer, "special_tokens_map", {}))
    for name in NAMED_TOKENS:
        token_id = getattr(tokenizer, f"{name}_id", None)
        if token_id is not None:
            text = texts.get(token_id)
            named[f"{name}_token"] = tokenizer.id_to_bytes(token_id).decode(errors="replace") if text is None else text
    return named
