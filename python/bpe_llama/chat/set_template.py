"""Set the chat template of a tokenizer, and with it the token that ends an answer."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from bpe_llama._arguments import boolean
from bpe_llama.chat.encoding import encode_conversation
from bpe_llama.chat.request import ChatTokenizer, check_tokenizer
from bpe_llama.chat.templates import template_text, template_tokens


class SettableTokenizer(ChatTokenizer, Protocol):
    """What `with_chat_template` needs of a tokenizer; `bpe_llama.Tokenizer` has it."""

    _settings: Any

    @property
    def end_ids(self) -> frozenset[int]: ...  # noqa: D102

    def with_special_tokens(self: TokenizerT, tokens: list[str]) -> TokenizerT: ...  # noqa: D102


TokenizerT = TypeVar("TokenizerT", bound=SettableTokenizer)


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
    check_tokenizer(tokenizer)
    text = template_text(template)
    missing = [token for token in template_tokens(template) if token not in tokenizer.special_tokens]
    if not boolean("add_tokens", add_tokens) and missing:
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
            stacklevel=2,
        )
    elif end not in chosen.end_ids:
        ends = (*chosen._settings.end_ids, end)
        chosen._settings = replace(chosen._settings, end_ids=ends)
    return chosen


def _end_of_turn(tokenizer: SettableTokenizer) -> int | None:
    """Return the id of the special token that follows an answer, or None."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    ids, learned = encode_conversation(tokenizer, talk)
    special = set(tokenizer.special_tokens.values())
    answer = [token_id for token_id, is_learned in zip(ids, learned, strict=True) if is_learned]
    return next((token_id for token_id in answer if token_id in special), None)
