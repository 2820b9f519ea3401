"""The result of a run: a folder with weights and tokenizer that `generate`, `chat`, `serve` and transformers open."""

from __future__ import annotations

import warnings
from pathlib import Path

from bpe_llama._files import write_together
from bpe_llama.chat.templates import TEMPLATE_FILES
from bpe_llama.model.adapters import lora
from bpe_llama.model.generation_config import FILE as GENERATION_CONFIG
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.tokenizer import Tokenizer

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def save_with_tokenizer(model: Pretrained, tokenizer: Tokenizer, folder: Path) -> None:
    """Save weights, configs and tokenizer to one folder that `generate` and transformers load.

    They replace those in the folder together; other files stay.
    """
    unknown = model.config.unknown_to_transformers
    if unknown:
        warnings.warn(f"{folder}: transformers cannot load it, as it does not support {unknown}", stacklevel=2)
    with write_together(folder, "config.json", [GENERATION_CONFIG, *TEMPLATE_FILES]) as temporary:
        model.save_pretrained(temporary, portable=not unknown)
        tokenizer.save(temporary / "tokenizer.json")


def save_finished(model: Pretrained, tokenizer: Tokenizer, out: Path) -> None:
    """Save a trained model and its tokenizer to `out/model`, or its adapter to `out/adapter`.

    Beside an adapter a tokenizer with a chat template is saved, as it may be another one than the base model's; a
    warning says if no file can hold it.
    """
    if lora.names(model):
        with write_together(out / "adapter", lora.CONFIG, [*_TOKENIZER, *TEMPLATE_FILES]) as temporary:
            lora.save(model, temporary)
            if tokenizer.chat_template is not None:
                try:
                    tokenizer.save(temporary)
                except ValueError as error:
                    warnings.warn(f"{out / 'adapter'}: the tokenizer is not saved beside it: {error}", stacklevel=2)
    else:
        save_with_tokenizer(model, tokenizer, out / "model")
