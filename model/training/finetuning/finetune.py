"""Fine-tuning: trains a model further on text files, conversations or completions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpe_llama._arguments import boolean, wrong
from bpe_llama._core import shown
from bpe_llama._corpus.corpus import open_tokens
from bpe_llama._corpus.files import find_files
from bpe_llama._files import PathLike, locked
from bpe_llama._progress import note
from bpe_llama.model.generation.prompts import check_vocabulary
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training.callbacks import TrainResult
from bpe_llama.model.training.checkpoints.checkpoint import checkpoint_to_resume
from bpe_llama.model.training.config import TrainConfig, with_epochs
from bpe_llama.model.training.data.rows import RowBatches
from bpe_llama.model.training.data.sources import open_data
from bpe_llama.model.training.finetuning.conversations import find_formats, read_conversations
from bpe_llama.model.training.finetuning.options import DataConfig
from bpe_llama.model.training.finetuning.plain_text import write_tokens
from bpe_llama.model.training.finetuning.show import print_example, print_trainable_parameters
from bpe_llama.model.training.parallel import start
from bpe_llama.model.training.run import RunOptions, check_run, train_on_batches, train_on_examples
from bpe_llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


def finetune(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    texts: PathLike | Iterable[PathLike],
    config: TrainConfig,
    out: PathLike,
    *,
    epochs: float | None = None,
    show_example: bool = False,
    format: str = DataConfig.format,
    train_on: str = DataConfig.train_on,
    parse_special: bool = DataConfig.parse_special,
    on_error: str = DataConfig.on_error,
    **options: Unpack[RunOptions],
) -> TrainResult:
    """Train `model` in place on text files, and return the result.

    All weights are trained, or, after `lora.add`, the adapter alone. The rows of `.json`, `.jsonl`, `.ndjson` and
    `.parquet` files are read; other tables, such as `.csv`, are refused, and any other file is plain text. `.gz` and
    `.zst` files are decompressed. Plain text, and rows with a `text`, are packed into sequences of
    `config.sequence_length` tokens; each document ends with the tokenizer's end-of-text id. Each conversation or
    completion (a row with `messages`, `conversations`, `instruction` or `prompt`) is one example, truncated to that
    length, of which only the answers are learned. `config.eval_fraction` of the data is held out.

    Args:
        model: The model.
        tokenizer: Its vocabulary and, for conversations, chat template.
        texts: A file, a folder, a glob pattern, or several of these; all plain text or all rows.
        config: The run's options.
        out: Folder of the run: `metrics.jsonl`, `loss.png`, the latest checkpoint, for plain text `tokens.npy`, and at
            the end `adapter` or, without an adapter, `model`, with the tokenizer.
        epochs: Passes over the data, instead of `config.max_steps`.
        show_example: Print the first example on stderr, with the learned tokens coloured.
        format: As `DataConfig` documents it, like the next three.
        train_on: Likewise.
        parse_special: Likewise.
        on_error: Likewise.
        options: As of `train`.

    Warns:
        UserWarning: The number of skipped rows and the place of the first; text that looks like special tokens and is
            not parsed.

    Raises:
        FileNotFoundError: If a path matches nothing.
        ImportError: If `pyarrow`, which reads Parquet files, is not installed.
        ValueError: If the tokenizer does not fit the model, a row or a file is damaged, the text is too short,
            or as `train`.

    Example:
        >>> finetune(model, tokenizer, "notes/*.txt", TrainConfig(learning_rate=2e-4), "run")  # doctest: +SKIP
    """
    check_run(model, config, out, options)
    if not hasattr(tokenizer, "encode_following"):
        raise TypeError(wrong("tokenizer", tokenizer, "a Tokenizer"))
    boolean("parse_special", parse_special)
    boolean("show_example", show_example)
    check_vocabulary(tokenizer, model.config.vocab_size)
    with_epochs(config, epochs, 1)  # raises before the files are read
    data = DataConfig(format, train_on, parse_special, on_error)
    files, out, resume = find_files(texts), Path(out), options.get("resume", False)
    is_text = "text" in find_formats(files, data).values()
    if is_text and train_on != DataConfig.train_on:
        raise ValueError(f"train_on is {shown(train_on)}, and all of plain text is learned; leave it out")
    ranks = start(config.device, config.parallel)
    ranks.on_main(lambda: checkpoint_to_resume(out, resume))  # before this run replaces another run's tokens.npy
    if is_text:
        token_file = out / "tokens.npy"
        progress = options.get("progress")
        with ranks.entered_on_main(locked(out)):
            ranks.on_main(lambda: write_tokens(files, tokenizer, token_file, data, progress))
        batches, held_out = open_data(token_file, model.config, config)
        if show_example and ranks.is_main:
            print_example(tokenizer, open_tokens(token_file)[: config.sequence_length].astype(np.int64))
        if ranks.is_main:
            print_trainable_parameters(model)
        assert isinstance(batches, RowBatches)  # as those of a token file are
        config = with_epochs(config, epochs, batches.data.rows_per_epoch)
        return train_on_batches(model, batches, config, out, held_out=held_out, tokenizer=tokenizer, **options)
    progress = ranks.is_main and options.get("progress")
    found = read_conversations(files, tokenizer, config.sequence_length, data, progress)
    if ranks.is_main and (found.truncated or found.dropped):
        note(
            f"{found.truncated} conversations truncated to {config.sequence_length} tokens, {found.dropped} dropped, "
            "as no token within that length is learned"
        )
    examples = found.examples
    if show_example and ranks.is_main:
        print_example(tokenizer, examples[0].ids, examples[0].labels)
    eval_count = max(1, int(len(examples) * config.eval_fraction)) if config.eval_fraction and len(examples) > 1 else 0
    train_examples, eval_examples = examples[: len(examples) - eval_count], examples[len(examples) - eval_count :]
    if ranks.is_main:
        print_trainable_parameters(model)
    config = with_epochs(config, epochs, len(train_examples))
    return train_on_examples(
        model, train_examples, config, out, eval_examples=eval_examples, tokenizer=tokenizer, **options
    )
