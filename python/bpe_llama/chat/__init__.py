"""Chat templates: convert messages to the text and ids on which an instruction-tuned model was trained.

A template is an untrusted program, so it runs in a sandbox that limits time and memory. The text of a special token
inside a message is encoded as ordinary text.

| file | job |
|---|---|
| `templates` | read, write and choose a tokenizer's templates |
| `setting` | set a tokenizer's template, by name or file |
| `request` | check the options of one rendering |
| `tool_schema` | convert Python functions to JSON schemas |
| `renderer`, `compiler` | compile a template, render its text |
| `sandbox`, `operations`, `limits` | check each operation of a template against the limits |
| `answers` | find the assistant's answers in rendered text |
| `encoding` | encode rendered text, for generation and for fine-tuning |

Source of the conventions: https://huggingface.co/docs/transformers/chat_templating.
"""

from bpe_llama.chat.encoding import (
    TRAIN_ON,
    EncodedChat,
    encode_chat,
    encode_conversation,
    encode_marked_chat,
    render,
    render_for,
)
from bpe_llama.chat.setting import NAMED_TEMPLATES, with_chat_template

__all__ = [
    "NAMED_TEMPLATES",
    "TRAIN_ON",
    "EncodedChat",
    "encode_chat",
    "encode_conversation",
    "encode_marked_chat",
    "render",
    "render_for",
    "with_chat_template",
]
