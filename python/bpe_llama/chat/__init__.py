"""Chat templates: messages to the text, and the ids, that an instruction-tuned model was trained on.

A template is a program from a file of unknown origin, so it runs in a sandbox that bounds its time and memory
(`renderer`). Text of a message that looks like a special token stays ordinary text in the ids.

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

__all__ = [
    "TRAIN_ON",
    "EncodedChat",
    "encode_chat",
    "encode_conversation",
    "encode_marked_chat",
    "render",
    "render_for",
]
