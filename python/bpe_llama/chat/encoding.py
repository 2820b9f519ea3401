"""Render messages with a chat template and encode the text, for generation and for fine-tuning."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bpe_llama._arguments import iterator, reusable, string
from bpe_llama._core import shown
from bpe_llama.chat.encoder import EncodedChat, Encoder
from bpe_llama.chat.provenance import untraced
from bpe_llama.chat.request import TOKEN_VARIABLES, ChatTokenizer, Message, prepare, prepare_for

TRAIN_ON = ("assistant", "last", "all")
"""The tokens of a conversation to train on: all answers, the last one, or every token."""


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool | None = None,
    tools: Iterable[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Iterable[Mapping[str, Any]] | None = None,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> str:
    r"""Return the text of a chat template applied to messages, as transformers renders it.

    Args:
        template: The jinja2 source.
        messages: Mappings with a `role` and, usually, a `content`. A field that is None counts as missing.
        add_generation_prompt: As in `Tokenizer.apply_chat_template`, like the next three.
        tools: Likewise.
        documents: Likewise.
        continue_final_message: Likewise.
        **variables: Special tokens such as `bos_token`, and variables of the template.

    Raises:
        ValueError: If a message is no mapping with a role, an option is invalid, or the template is broken, violates
            the sandbox, exceeds a limit, or rejects the messages; the message says which.

    Example:
        >>> render("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
        ...        [{"role": "user", "content": "Hi"}])
        '[user] Hi\n'
    """
    named_tokens = {name: variables.pop(name) for name in TOKEN_VARIABLES & variables.keys()}
    request = prepare(
        string("template", template),
        named_tokens,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        documents=documents,
        continue_final_message=continue_final_message,
        **variables,
    )
    return untraced(request.render().text)


def render_for(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> str:
    """Return the text of `tokenizer.chat_template` applied to messages.

    Raises:
        ValueError: As of `render`; or if the tokenizer has no chat template.
    """
    return untraced(prepare_for(tokenizer, messages, **options).render().text)


def encode_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of `tokenizer.chat_template` applied to messages; `options` are those of `render`.

    Only text of the template becomes a special token: no part of a message, a tool, a document or a variable does.

    Raises:
        ValueError: As of `render`; or if the template makes a special token from text of unknown origin.
    """
    encoder = Encoder(tokenizer, prepare_for(tokenizer, messages, **options))
    return encoder.encode(encoder.render().text)


def encode_marked_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], **options: Any) -> EncodedChat:
    """Return the ids of `encode_chat`, and the mask of the ids that ``{% generation %}`` blocks wrote.

    The mask is true for a token with at least one character in such a block.

    Raises:
        ValueError: As of `encode_chat`; or if the template has no such block, or the last message is continued.
    """
    request = prepare_for(tokenizer, messages, **options)
    if request.continued is not None:
        raise ValueError("continue_final_message and return_assistant_tokens_mask exclude each other")
    if not request.marks_answers:
        raise ValueError("the chat template has no {% generation %} block, so the assistant's tokens are unknown")
    encoder = Encoder(tokenizer, request)
    return encoder.encode_answers(encoder.render())


def encode_conversation(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    train_on: str = "assistant",
    tools: Iterable[Mapping[str, Any] | Callable[..., Any]] | None = None,
    documents: Iterable[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    **variables: Any,
) -> tuple[list[int], list[bool]]:
    r"""Return the ids of a whole conversation and the mask of the ids to train on.

    With ``{% generation %}`` blocks in the template, their text is trained on. Otherwise an answer is the text from the
    end of the generation prompt to the closing token, included. Some templates remove reasoning from earlier answers,
    or open a ``<think>`` block in the generation prompt only. Then an answer is the text after the assistant's header
    that changes with the answer. An answer is encoded separately from the text before it, as in generation.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation; messages of the role "assistant" are answers. An answer with a `weight` of 0 is not
            trained on, as in OpenAI's files; the template does not see the weight.
        train_on: "assistant" for all answers, "last" for the last one alone, or "all" for every token.
        tools: As in `Tokenizer.apply_chat_template`, like the next two.
        documents: Likewise.
        chat_template: Likewise.
        **variables: Read by the template.

    Raises:
        ValueError: As of `encode_chat`; or if `train_on` or a weight has another value, there is no answer to train on,
            or the answers cannot be located in the text.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["a"], vocab_size=256, progress=False)
        >>> tok.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}" \
        ...                     "{% if add_generation_prompt %}a{% endif %}"
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        >>> ids, learned = encode_conversation(tok, talk)
        >>> tok.decode(ids), "".join(" ^"[trained] for trained in learned)
        ('uHi.aHo.', '     ^^^')
    """
    if string("train_on", train_on) not in TRAIN_ON:
        raise ValueError(f"train_on is {shown(train_on)}; expected {', '.join(TRAIN_ON)}")
    messages = list(iterator("messages", reusable("messages", messages), "a list of mappings with a 'role'"))
    unweighted = [
        {key: value for key, value in message.items() if key != "weight"} if isinstance(message, Mapping) else message
        for message in messages
    ]
    options = {"tools": tools, "documents": documents, "chat_template": chat_template, **variables}
    request = prepare_for(tokenizer, unweighted, add_generation_prompt=False, **options)
    if request.continued is not None:
        raise ValueError("continue_final_message: a conversation is learned whole")
    encoder = Encoder(tokenizer, request)
    rendered = encoder.render()
    whole = rendered.text
    wanted = _learned_answers(messages, train_on)
    if train_on == "all" and all(wanted):
        ids = encoder.encode(whole)
        return ids, [True] * len(ids)
    if not wanted:
        raise ValueError("no message has the role 'assistant'; there is no answer to learn from")
    if request.marks_answers:
        spans = rendered.find_answers()
        if not spans:
            raise ValueError("the chat template wrote no {% generation %} block for these messages")
        if [place for span in spans for place in span] != sorted(place for span in spans for place in span):
            raise ValueError("the chat template has a {% generation %} block within another")
        if all(wanted):
            wanted = [True] * len(spans)
        elif len(spans) != len(wanted):
            raise ValueError(
                f"the chat template writes {len(spans)} {{% generation %}} blocks for {len(wanted)} answers, so the "
                "blocks of the answers to learn are unknown"
            )
    else:
        spans = encoder.find_answers(whole)
    edges = [edge for span in spans for edge in span]
    ids, learned = [], []
    for part in encoder.parts(whole, edges):
        passed = bisect_right(edges, part.begin)
        ids += part.ids
        learned += [wanted[passed // 2] if passed % 2 else train_on == "all"] * len(part.ids)
    return ids, learned


def _learned_answers(messages: Sequence[Message], train_on: str) -> list[bool]:
    """Return for each answer whether it is learned."""
    wanted = []
    for place, message in enumerate(messages):
        weight = message.get("weight")
        is_number = hasattr(weight, "__float__") and not getattr(weight, "ndim", 0)
        if weight is not None and not (is_number and weight in (0, 1)):
            raise ValueError(f"message {place}: weight is {shown(weight)}; expected 0 or 1")
        if message.get("role") == "assistant":
            wanted.append(weight != 0)
        elif weight == 0 and train_on == "all":
            raise ValueError(
                f"message {place}: weight 0 is for answers; this one's role is {shown(message.get('role'))}"
            )
    if train_on == "last":
        wanted = [False] * (len(wanted) - 1) + wanted[-1:]
    return wanted
