"""Chat templates: convert messages to the text and ids on which an instruction-tuned model was trained.

A template is an untrusted program, so it runs in a sandbox that limits time and memory. Messages are untrusted, too: no
text of theirs becomes a special token, whatever the template does with it.

| file | job |
|---|---|
| `templates` | read, write and choose a tokenizer's templates; templates with a name |
| `request` | check the options of one rendering |
| `tool_schema` | convert Python functions to JSON schemas; read a call's arguments |
| `renderer`, `compiler` | compile a template, render its text |
| `sandbox`, `operations`, `limits` | check each operation of a template against the limits |
| `provenance` | carry the origin of each character, so that only the template's text becomes a special token |
| `answers` | find the assistant's answers in rendered text |
| `encoder` | encode rendered text |
| `encoding` | render and encode messages, for generation and for fine-tuning |
| `set_template` | set a tokenizer's template |

Source of the conventions: https://huggingface.co/docs/transformers/chat_templating.
"""

from bpe_llama.chat.encoder import EncodedChat
from bpe_llama.chat.encoding import (
    TRAIN_ON,
    encode_chat,
    encode_conversation,
    encode_marked_chat,
    render,
    render_for,
)
from bpe_llama.chat.set_template import with_chat_template
from bpe_llama.chat.templates import NAMED_TEMPLATES, with_system_role
from bpe_llama.chat.tool_schema import call_arguments

__all__ = [
    "NAMED_TEMPLATES",
    "TRAIN_ON",
    "EncodedChat",
    "call_arguments",
    "encode_chat",
    "encode_conversation",
    "encode_marked_chat",
    "render",
    "render_for",
    "with_chat_template",
    "with_system_role",
]
