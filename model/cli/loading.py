"""Loads models, and generators of model, tokenizer and adapter, from paths or the Hub; saves models and tokenizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
import typer

from bpe_llama._hub.fetching import local_path
from bpe_llama._progress import reporting
from bpe_llama.model import training
from bpe_llama.model.adapters import files, lora
from bpe_llama.model.checkpoints import average, hub_files
from bpe_llama.model.cli.options.common import QUANTIZED
from bpe_llama.model.device import resolve_device
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.quantization import quantize
from bpe_llama.tokenizer import Tokenizer


def checkpoint_path(name: str) -> Path:
    """Return the path of a model that may be a name on the Hub; what it needs is fetched."""
    return local_path(name, hub_files.needed_files)


def adapter_path(name: str) -> Path:
    """Return the path of an adapter that may be a name on the Hub; what it needs is fetched."""
    return local_path(name, files.needed_files)


def load_model(
    path: str | Path, dtype: str, device: str, check: Callable[[Pretrained, torch.device], None] | None = None
) -> LlamaForCausalLM:
    """Return the model of a path or a name on the Hub, with a progress bar on a terminal.

    ``check`` is called with the model on the meta device, and its device, before weights are read.
    """
    with reporting(None) as report:
        progress = None if report is None else partial(report, "load")
        return LlamaForCausalLM.from_pretrained(path, dtype=dtype, device=device, progress=progress, check=check)


def average_models(models: Sequence[str], weights: Sequence[float] | None, dtype: str) -> LlamaForCausalLM:
    """Return the mean of these models, with a progress bar on a terminal."""
    with reporting(None) as report:
        progress = None if report is None else partial(report, "average")
        return cast(
            LlamaForCausalLM,
            average([checkpoint_path(name) for name in models], weights, dtype=dtype, progress=progress),
        )


def resize_embeddings(model: Pretrained, source: str, vocabulary: Tokenizer) -> None:
    """Add rows for the tokens that `vocabulary` adds to the tokenizer at `source`; print their number on stderr.

    Each new row is the mean of the rows of the tokens that its token was made of.

    Raises:
        ValueError: If `vocabulary` does not extend that tokenizer.
    """
    rows = model.config.vocab_size
    pieces = training.token_pieces(Tokenizer.from_pretrained(source), vocabulary, rows)
    model.resize_token_embeddings(max(rows, vocabulary.vocab_size), pieces=pieces)
    typer.echo(f"embedding: {rows:,} rows, now {model.config.vocab_size:,}; {len(pieces):,} new tokens", err=True)


def load_generator(
    model: str,
    tokenizer: str | None,
    dtype: str,
    device: str,
    adapter: str | Path | None = None,
    quantized: str | None = None,
    check: Callable[[Pretrained, torch.device], None] | None = None,
    check_tokenizer: Callable[[Tokenizer], None] | None = None,
) -> TextGenerator:
    """Return a generator over the weights at `model`, with the tokenizer at `tokenizer` or, by default, at `model`.

    An adapter is merged into the weights, so that it costs no time, unless it cannot be: merging into a tied output
    projection would change the embedding, and quantized weights cannot be merged with. ``check`` is as of `load_model`.
    What is wrong with the tokenizer, which ``check_tokenizer`` checks too, or with the adapter's config is said first.
    """
    check_quantized(quantized)
    resolve_device(device)
    vocabulary = Tokenizer.from_pretrained(tokenizer or model)
    if check_tokenizer is not None:
        check_tokenizer(vocabulary)
    if adapter is not None:
        adapter = adapter_path(str(adapter))
        lora.AdapterConfig.read(adapter)
    loaded = load_model(model, dtype, device, check)
    if quantized is not None:
        quantize.quantize(loaded, quantized)
    if adapter is not None:
        lora.load(loaded, adapter)
        reason = lora.why_not_merge(loaded)
        if reason is None:
            lora.merge(loaded)
            lora.remove(loaded)
        elif quantized is None:
            typer.echo(f"the adapter is not merged, which is slower: {reason}", err=True)
    return TextGenerator(loaded, vocabulary)


def check_quantized(kind: str | None) -> None:
    """Raise a ValueError unless --quantize is one of `QUANTIZED` or absent."""
    if kind is not None and kind not in QUANTIZED:
        raise ValueError(f"--quantize is {kind!r}; expected {' or '.join(QUANTIZED)}")


def save_with_tokenizer(model: Pretrained, tokenizer: Tokenizer, folder: Path) -> None:
    """Save weights, configs and tokenizer to one folder that `generate` and transformers load."""
    unknown = model.config.unknown_to_transformers
    if unknown:
        warnings.warn(f"{folder}: transformers cannot load it, as it does not support {unknown}", stacklevel=2)
    model.save_pretrained(folder, portable=not unknown)
    tokenizer.save(folder / "tokenizer.json")
