"""The result of a run: a folder with weights and tokenizer that `generate`, `chat`, `serve` and transformers open."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bpe_llama.model.adapters import lora
from bpe_llama.model.pretrained import Pretrained

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


def save_with_tokenizer(model: Pretrained, tokenizer: Tokenizer, folder: Path) -> None:
    """Save weights, configs and tokenizer to one folder that `generate` and transformers load."""
    unknown = model.config.unknown_to_transformers
    if unknown:
        warnings.warn(f"{folder}: transformers cannot load it, as it does not support {unknown}", stacklevel=2)
    model.save_pretrained(folder, portable=not unknown)
    tokenizer.save(folder / "tokenizer.json")


def save_finished(model: Pretrained, tokenizer: Tokenizer, out: Path) -> None:
    """Save a trained model and its tokenizer to `out/model`, or its adapter to `out/adapter`.

    Beside an adapter a tokenizer with a chat template is saved, as it may be another one than the base model's; a
    warning says if no file can hold it.
    """
    if lora.names(model):
        lora.save(model, out / "adapter")
        if tokenizer.chat_template is not None:
            try:
                tokenizer.save(out / "adapter")
            except ValueError as error:
                warnings.warn(f"{out / 'adapter'}: the tokenizer is not saved beside it: {error}", stacklevel=2)
    else:
        save_with_tokenizer(model, tokenizer, out / "model")
