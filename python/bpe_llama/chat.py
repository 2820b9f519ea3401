"""Chat templates: messages to the text, and the ids, that an instruction-tuned model was trained on.

A template is a program from a file of unknown origin, so it runs in jinja2's sandbox and cannot change its input.
Text of a message that looks like a special token stays ordinary text in the ids.

Source of the conventions: https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer

Message = Mapping[str, Any]

# Unicode noncharacters: they stand for nothing, so one that occurs in no message can mark places in the text.
_MARKERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    **variables: Any,
) -> str:
    r"""Return the text a chat template makes of messages, as transformers renders it.

    Args:
        template: The jinja2 source.
        messages: Each with a `role` and, as a rule, a `content`.
        add_generation_prompt: End with what opens the assistant's answer.
        bos_token: The beginning token's text, for templates that write it themselves.
        eos_token: The end token's text, likewise.
        **variables: Passed to the template, such as `tools`.

    Raises:
        ValueError: If a message is no mapping with a role, or the template is broken, asks for something forbidden, or
            refuses the messages; the message says which.

    Example:
        >>> render("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
        ...        [{"role": "user", "content": "Hi"}])
        '[user] Hi\n'
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {place} is {message!r}; expected a mapping with a 'role'")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            **variables,
        )
    except (TemplateError, TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"the chat template failed: {error}") from error


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of `tokenizer.chat_template` applied to messages; `options` are those of `render`.

    Special tokens that the template writes become their ids. The same text inside a message does not: there a marker
    breaks it while the template runs, and is taken out again afterwards.

    Raises:
        ValueError: As of `render`; or if the messages hold every noncharacter that could mark a place.
    """
    marked = _Marked(tokenizer, messages)
    return marked.encode(render_for(tokenizer, marked.messages, **options))


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], **options: Any
) -> tuple[list[int], list[bool]]:
    r"""Return the ids of a whole conversation and, of each, whether it is the assistant's: what fine-tuning learns.

    An answer is what follows the generation prompt, with what the template closes it by. It is encoded apart from that
    prompt, since that is how it will be generated.

    Args:
        tokenizer: One with a chat template.
        messages: From first to last; answers are those whose role is "assistant".
        **options: Passed to the template, such as `tools`.

    Raises:
        ValueError: As of `encode_chat`; or if no message is the assistant's, or the template does not write a
            conversation as a continuation of its beginning, so that answers cannot be told apart.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["a"], vocab_size=256, progress=False)
        >>> tok.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}" \
        ...                     "{% if add_generation_prompt %}a{% endif %}"
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        >>> ids, learned = encode_conversation(tok, talk)
        >>> tok.decode(ids), "".join(" ^"[told] for told in learned)
        ('uHi.aHo.', '     ^^^')
    """
    marked = _Marked(tokenizer, messages)

    def text_of(count: int, add_generation_prompt: bool) -> str:
        part = marked.messages[:count]
        return render_for(tokenizer, part, add_generation_prompt=add_generation_prompt, **options)

    whole = text_of(len(messages), False)
    cuts = [0]
    for place, message in enumerate(messages):
        if message.get("role") == "assistant":
            before, after = text_of(place, True), text_of(place + 1, False)
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= cuts[-1]):
                raise ValueError(
                    f"message {place}: the chat template does not write the answer right after its generation prompt, "
                    "so it cannot be told which tokens are the answer's"
                )
            cuts += [len(before), len(after)]
    if len(cuts) == 1:
        raise ValueError("no message has the role 'assistant'; there is no answer to learn from")
    ids: list[int] = []
    learned: list[bool] = []
    for number, (begin, end) in enumerate(zip(cuts, [*cuts[1:], len(whole)], strict=True)):
        part = marked.encode(whole[begin:end], whole[:begin])
        ids += part
        learned += [number % 2 == 1] * len(part)
    return ids, learned


class _Marked:
    """Messages in which text that looks like a special token is broken by a marker; and rendered text, to ids."""

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        self.tokenizer = tokenizer
        self.messages: list[Any] = list(messages)
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, special))) if special else None
        if self.special is None:
            return
        said = json.dumps(self.messages, ensure_ascii=False, default=str)
        marker = next((mark for mark in _MARKERS if mark not in said), None)
        if marker is None:
            raise ValueError("the messages hold all of the noncharacters U+FDD0 to U+FDEF; take one out")
        self.marker = marker
        self.messages = [_map_strings(message, self._broken) for message in self.messages]

    def _broken(self, text: str) -> str:
        assert self.special is not None  # or no message was mapped; for the type checker
        return self.special.sub(lambda match: match[0][:1] + self.marker + match[0][1:], text)

    def encode(self, text: str, before: str = "") -> list[int]:
        """Return the ids of what a template made of the messages, or of a part of it and what came before."""
        tokenizer = self.tokenizer
        if self.special is None:
            return tokenizer.encode_following(text, before)
        ids: list[int] = []
        end = 0
        passed = None if before.endswith(tuple(tokenizer.special_tokens)) else before
        for match in self.special.finditer(text):
            ids += tokenizer.encode_following(text[end : match.start()].replace(self.marker, ""), passed)
            ids.append(tokenizer.special_tokens[match[0]])
            end, passed = match.end(), None
        return ids + tokenizer.encode_following(text[end:].replace(self.marker, ""), passed)


def render_for(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> str:
    """Return the text of `tokenizer.chat_template` applied to messages.

    Raises:
        ValueError: As of `render`; or if the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template; set tokenizer.chat_template, or encode text instead")
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    for key, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if token_id is not None:
            options.setdefault(key, names.get(token_id, ""))
    return render(tokenizer.chat_template, messages, **options)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return [_map_strings(item, change) for item in value] if isinstance(value, list | tuple) else value


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Not jinja2's own filter, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
