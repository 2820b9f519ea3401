"""`bpe-llama convert`: rewrites weights and tokenizer in another format or dtype."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama._progress import note, reporting
from bpe_llama.model.adapters import lora
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.cli.loading import (
    adapter_path,
    average_models,
    load_model,
    resize_embeddings,
    save_with_tokenizer,
    tokenizer_of_adapter,
    vocabulary_of,
)
from bpe_llama.model.cli.options.common import AdapterOption, ResizeOption
from bpe_llama.model.generation.prompts import check_vocabulary

EXAMPLE = "Example: bpe-llama convert run/model model.gguf --dtype q8_0"

_FILE_SUFFIXES = (
    *(".bin", ".ckpt", ".ggml", ".gguf", ".json", ".model", ".npy", ".npz", ".onnx", ".pickle", ".pkl", ".pt", ".pth"),
    *(".safetensors", ".tar", ".tgz", ".gz", ".zip", ".tiktoken", ".txt"),
)
"""Ends of names that promise one file, of formats that are not written; a folder of such a name would mislead."""


def command(
    source: Annotated[str, typer.Argument(help="A folder, a .gguf, or org/name on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Argument(help="A name ending in .gguf, or a folder for Hugging Face's format.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16; for a .gguf also q8_0, q4_0.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: the source's own.")] = None,
    adapter: AdapterOption = None,
    resize: ResizeOption = False,
    average_with: Annotated[
        list[str] | None, typer.Option(help="Average the weights with those of this folder; repeatable.")
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weights of the average: one for the source, one for each --average-with; default: equal."),
    ] = None,
) -> None:
    """Convert weights and tokenizer to another format or dtype; merge an adapter, average checkpoints, add tokens."""
    to_gguf = out.suffix == ".gguf"
    if not to_gguf and (out.suffix.lower() in _FILE_SUFFIXES or out.is_file()):
        raise ValueError(f"OUT is {out}; expected a name ending in .gguf, or a folder for Hugging Face's format")
    load_as = "auto" if to_gguf else dtype
    folder = None if adapter is None else adapter_path(adapter)
    if folder is not None:
        tokenizer = tokenizer or tokenizer_of_adapter(folder)
    vocabulary = vocabulary_of(tokenizer, source)
    if average_with:
        loaded = average_models([source, *average_with], weight, load_as)
    elif weight:
        raise ValueError("--weight is for --average-with; expected both, or neither")
    else:
        loaded = load_model(source, load_as, "cpu")
    if folder is not None:
        lora.remove(lora.merge(lora.load(loaded, folder)))
    if resize:
        resize_embeddings(loaded, source, vocabulary)
    check_vocabulary(vocabulary, loaded.config.vocab_size)
    if to_gguf:
        metadata = tokenizer_metadata(vocabulary, vocabulary.chat_template, model_ends=loaded.end_ids)
        with reporting(None) as report:
            progress = None if report is None else partial(report, "save")
            save_gguf(loaded, out, dtype=dtype, tokenizer=metadata, progress=progress)
    else:
        save_with_tokenizer(loaded, vocabulary, out)
    note(f"{out}: {sum(weight.numel() for weight in loaded.parameters()):,} parameters", on_stdout=True)
