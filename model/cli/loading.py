"""Loads models, and generators of model, tokenizer and adapter, from paths or the Hub; saves models and tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch

from bpe_llama._by_name import open_tokenizer
from bpe_llama._gguf.header import read_gguf_model_header
from bpe_llama._hub.fetching import local_path
from bpe_llama._progress import note, reporting
from bpe_llama.chat import with_chat_template
from bpe_llama.chat.templates import template_tokens
from bpe_llama.model import training
from bpe_llama.model.adapters import files, lora
from bpe_llama.model.checkpoints import average, hub_files
from bpe_llama.model.cli.options.common import QUANTIZED
from bpe_llama.model.device import resolve_device
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.quantization import quantize
from bpe_llama.model.quantization.layers import GROUP_SIZES
from bpe_llama.model.training.checkpoints.finished import save_with_tokenizer
from bpe_llama.tokenizer import Tokenizer

__all__ = ["save_with_tokenizer"]


def checkpoint_path(name: str) -> Path:
    """Return the path of a model that may be a name on the Hub; what it needs is fetched."""
    return local_path(name, hub_files.needed_files)


def adapter_path(name: str) -> Path:
    """Return the path of an adapter that may be a name on the Hub; what it needs is fetched."""
    return local_path(name, files.needed_files)


def vocabulary_of(tokenizer: str | None, model: str) -> Tokenizer:
    """Return the tokenizer that --tokenizer names, or else the model's own."""
    return Tokenizer.from_pretrained(model) if tokenizer is None else open_tokenizer(tokenizer)


def with_template(vocabulary: Tokenizer, chat_template: str | None, *, add_tokens: bool) -> Tokenizer:
    """Return a tokenizer with the template of --chat-template.

    Args:
        vocabulary: The tokenizer.
        chat_template: A name, a file or None, which changes nothing.
        add_tokens: Whether the model has, or gets, rows for special tokens that the tokenizer lacks.

    Raises:
        ValueError: If the tokenizer lacks special tokens of the template, and none may be added.
    """
    if chat_template is None:
        return vocabulary
    missing = [token for token in template_tokens(chat_template) if token not in vocabulary.special_tokens]
    if missing and not add_tokens:
        raise ValueError(
            f"--chat-template {chat_template} needs {', '.join(missing)}, which the tokenizer lacks; add them with "
            "--resize-embeddings (finetune: with --full), or give a template of tokens that it has"
        )
    return with_chat_template(vocabulary, chat_template, add_tokens=True)


def end_turns(model: Pretrained, vocabulary: Tokenizer) -> None:
    """Make all ends that the tokenizer names, such as the end of an answer, ends of the model as well."""
    ends = dict.fromkeys((*model.end_ids, *sorted(vocabulary.end_ids)))
    if set(ends) != set(model.end_ids):
        model.config = model.config.replace(eos_token_id=list(ends))


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
    note(f"embedding: {rows:,} rows, now {model.config.vocab_size:,}; {len(pieces):,} new tokens")


def load_generator(
    model: str,
    tokenizer: str | None,
    dtype: str,
    device: str,
    adapter: str | Path | None = None,
    quantized: str | None = None,
    group_size: int | None = None,
    check: Callable[[Pretrained, torch.device], None] | None = None,
    check_tokenizer: Callable[[Tokenizer], None] | None = None,
) -> TextGenerator:
    """Return a generator over the weights at `model`, with the tokenizer at `tokenizer` or, by default, at `model`.

    A tokenizer beside the adapter, such as one with another chat template, goes before that at `model`.

    An adapter is merged into the weights, so that it costs no time, unless it cannot be: merging into a tied output
    projection would change the embedding, and quantized weights cannot be merged with. ``check`` is as of `load_model`.
    What is wrong with the tokenizer, which ``check_tokenizer`` checks too, or with the adapter's config is said first.
    """
    check_quantized(quantized, group_size)
    resolve_device(device)
    if adapter is not None:
        adapter = adapter_path(str(adapter))
        lora.AdapterConfig.read(adapter)
        tokenizer = tokenizer or tokenizer_of_adapter(adapter)
    vocabulary = vocabulary_of(tokenizer, model)
    if check_tokenizer is not None:
        check_tokenizer(vocabulary)
    loaded = load_model(model, dtype, device, check)
    if quantized is not None:
        quantize.quantize(loaded, quantized, group_size_of(checkpoint_path(model), quantized, group_size))
    if adapter is not None:
        lora.load(loaded, adapter)
        reason = lora.why_not_merge(loaded)
        if reason is None:
            lora.merge(loaded)
            lora.remove(loaded)
        elif quantized is None:
            note(f"the adapter is not merged, which is slower: {reason}")
    return TextGenerator(loaded, vocabulary)


def tokenizer_of_adapter(adapter: Path) -> str | None:
    """Return the path of the tokenizer that is saved with an adapter, if there is one."""
    has_one = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return str(adapter) if has_one else None


def check_quantized(kind: str | None, group_size: int | None = None) -> None:
    """Raise a ValueError unless --quantize is one of `QUANTIZED` or absent, and --group-size fits it."""
    if kind is not None and kind not in QUANTIZED:
        raise ValueError(f"--quantize is {kind!r}; expected {' or '.join(QUANTIZED)}")
    if group_size is not None and (kind != "int4" or group_size not in GROUP_SIZES):
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"--group-size is {group_size}; expected one of {sizes}, together with --quantize int4")


def group_size_of(path: Path, kind: str | None, given: int | None) -> int | None:
    """Return the group size of int4 that is given, or else 32 for a GGUF file with quantized matrices, or None.

    Almost all of its types have groups of 32 or less. Larger groups would mix their scales, which loses more.
    """
    if given is not None or kind != "int4" or path.suffix != ".gguf":
        return given
    types = {info.type_name for name, info in read_gguf_model_header(path).tensors.items() if name.startswith("blk.")}
    return None if types <= {"F32", "F16", "BF16"} else 32
