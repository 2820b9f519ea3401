"""Set a tokenizer's chat template: one of a few by name, a file, or a text."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from bpe_llama._files import read_text
from bpe_llama.chat.encoding import encode_conversation
from bpe_llama.chat.request import ChatTokenizer


class SettableTokenizer(ChatTokenizer, Protocol):
    """What `with_chat_template` needs of a tokenizer; `bpe_llama.Tokenizer` has it."""

    _settings: Any

    @property
    def end_ids(self) -> frozenset[int]: ...  # noqa: D102

    def with_special_tokens(self: TokenizerT, tokens: list[str]) -> TokenizerT: ...  # noqa: D102


TokenizerT = TypeVar("TokenizerT", bound=SettableTokenizer)


class NamedTemplate(NamedTuple):
    """A chat template that has a name.

    Attributes:
        text: Its jinja2 source.
        special_tokens: The special tokens that it writes.
    """

    text: str
    special_tokens: tuple[str, ...]


NAMED_TEMPLATES = {
    "chatml": NamedTemplate(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": NamedTemplate(
        "{{ '<|begin_of_text|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}
"""Templates by name.

Sources: ChatML, https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md; Llama 3,
https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py (``ChatFormat``).
"""


def template_tokens(template: str | None) -> tuple[str, ...]:
    """Return the special tokens that a named template writes; none for other templates.

    Examples:
        >>> template_tokens("chatml"), template_tokens("my.jinja")
        (('<|im_start|>', '<|im_end|>'), ())
    """
    return NAMED_TEMPLATES[template].special_tokens if template in NAMED_TEMPLATES else ()


def template_text(template: str) -> str:
    """Return the source of a template: of a name, of a file, or the text itself if it has a ``{``.

    Raises:
        FileNotFoundError: If it is none of these; the message suggests the nearest name.
        ValueError: If the file is not UTF-8.
    """
    if template in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[template].text
    if "{" in template:
        return template
    if Path(template).is_file():
        return read_text(Path(template))
    alike = difflib.get_close_matches(template, NAMED_TEMPLATES, n=1)
    hint = f"did you mean {alike[0]}?" if alike else f"expected {', '.join(NAMED_TEMPLATES)} or a file"
    raise FileNotFoundError(f"chat template {template}: no such name or file; {hint}")


def with_chat_template(tokenizer: TokenizerT, template: str, *, add_tokens: bool = False) -> TokenizerT:
    r"""Return a tokenizer with another chat template, which `save` writes beside it.

    The special token after an answer becomes one of ``end_ids``, so that generation stops there.

    Args:
        tokenizer: The tokenizer, which stays as it is.
        template: ``"chatml"``, ``"llama3"``, the path of a jinja2 file, or the text of a template.
        add_tokens: Add the special tokens of a named template that the tokenizer lacks, behind its last id.

    Raises:
        FileNotFoundError: As of `template_text`.
        ValueError: If the tokenizer lacks special tokens of a named template, or the template is broken or rejects a
            conversation.

    Warns:
        UserWarning: If no special token ends an answer; generation then does not stop there.

    Examples:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
        >>> tok = with_chat_template(tok, "chatml", add_tokens=True)
        >>> tok.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
        '<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n'
        >>> [tok.id_to_token(token_id) for token_id in sorted(tok.end_ids)]
        ['<|im_end|>']
    """
    text = template_text(template)
    missing = [token for token in template_tokens(template) if token not in tokenizer.special_tokens]
    if missing and not add_tokens:
        raise ValueError(
            f"the chat template {template} needs the special tokens {', '.join(missing)}, which this tokenizer lacks; "
            "expected a template of its own tokens, or a tokenizer trained with them"
        )
    chosen = tokenizer.with_special_tokens(missing)
    chosen.chat_template = text
    end = _end_of_turn(chosen)
    if end is None:
        warnings.warn(
            "no special token ends an answer in this chat template, so generation does not stop there",
            UserWarning,
            stacklevel=2,
        )
    elif end not in chosen.end_ids:
        ends = (*chosen._settings.end_ids, end)
        chosen._settings = dataclasses.replace(chosen._settings, end_ids=ends)
    return chosen


def _end_of_turn(tokenizer: SettableTokenizer) -> int | None:
    """Return the id of the special token that follows an answer, or None."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    ids, learned = encode_conversation(tokenizer, talk)
    special = set(tokenizer.special_tokens.values())
    answer = [token_id for token_id, is_learned in zip(ids, learned, strict=True) if is_learned]
    return next((token_id for token_id in answer if token_id in special), None)
