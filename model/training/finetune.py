"""Fine-tuning: a model that is already trained goes on with one's own text."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bpe_llama._bad_rows import BadRows
from bpe_llama._files import PathLike, find_files
from bpe_llama.model.prompts import check_vocabulary
from bpe_llama.model.training.checkpoint import checkpoint_to_resume
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.conversations import are_conversations, read_conversations
from bpe_llama.model.training.data import open_tokens, split_tail
from bpe_llama.model.training.loop import TrainResult, train, train_on_examples

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM
    from bpe_llama.tokenizer import Tokenizer


def finetune(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    texts: PathLike | Iterable[PathLike],
    config: TrainConfig,
    out: PathLike,
    *,
    epochs: float | None = None,
    resume: bool = False,
    on_error: str = "raise",
    progress: bool | None = None,
) -> TrainResult:
    """Train a model further on text files and return how it went; the model is trained in place.

    What is trained is what the model says: all of its weights, or, after `lora.add`, its adapter alone. Plain text
    (`.txt`, `.gz`, `.parquet` ..., or `.jsonl` with a `text`) is cut into windows of `config.sequence_length` tokens,
    documents ended by the tokenizer's end-of-text id. Of conversations (`.jsonl` with `messages`) each is a row of its
    own, cut at that length, and only the assistant's tokens are learned. `config.eval_fraction` of either is held out.

    Args:
        model: The model.
        tokenizer: Its vocabulary and, for conversations, chat template.
        texts: A file, a folder, a glob pattern, or several of these; all of one kind.
        config: The run's settings.
        out: Folder of the run: `metrics.jsonl`, `loss.png`, the latest checkpoint and, of plain text, `tokens.npy`.
        epochs: Passes over the text, in place of `config.max_steps`.
        resume: Go on from the checkpoint in `out`, where there is one.
        on_error: "raise" an error at the first row that holds no text or no conversation, or "skip" them and warn of
            their number; see `Tokenizer.encode_files` and `read_conversations`.
        progress: Show a bar on stderr; None: where that is a terminal.

    Warns:
        UserWarning: How many rows were skipped, and where the first stands.

    Raises:
        FileNotFoundError: If a path matches nothing.
        ValueError: If the tokenizer does not fit the model, a row or a file is damaged, the text is too short,
            or as `train`.

    Example:
        >>> finetune(model, tokenizer, "notes/*.txt", TrainConfig(learning_rate=2e-4), "run")  # doctest: +SKIP
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    if epochs is not None and not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"epochs is {epochs}, expected a positive number")
    BadRows(on_error)
    files, out = find_files(texts), Path(out)
    checkpoint_to_resume(out, resume)  # complain before another run's tokens are replaced
    if not are_conversations(files, on_error):
        out.mkdir(parents=True, exist_ok=True)
        token_file = out / "tokens.npy"
        eos = tokenizer.eos_id is not None
        tokenizer.encode_files(files, token_file, eos=eos, on_error=on_error, progress=progress)
        tokens, _ = split_tail(open_tokens(token_file), config.eval_fraction, config.sequence_length)
        config = _for_epochs(config, epochs, len(tokens) / config.sequence_length)
        return train(model, token_file, config, out, resume=resume, progress=progress)
    found = read_conversations(files, tokenizer, config.sequence_length, on_error=on_error)
    if found.cut or found.left_out:
        print(
            f"{found.cut} conversations cut to {config.sequence_length} tokens, {found.left_out} left out, "
            "their answers being further on",
            file=sys.stderr,
        )
    examples = found.examples
    tail = max(1, int(len(examples) * config.eval_fraction)) if config.eval_fraction and len(examples) > 1 else 0
    learned, held_out = examples[: len(examples) - tail], examples[len(examples) - tail :]
    config = _for_epochs(config, epochs, len(learned))
    return train_on_examples(model, learned, config, out, eval_examples=held_out, resume=resume, progress=progress)


def _for_epochs(config: TrainConfig, epochs: float | None, rows: float) -> TrainConfig:
    """Return the settings with as many steps as `epochs` passes over `rows` rows take."""
    if epochs is None:
        return config
    steps = max(1, math.ceil(epochs * rows / (config.batch_size * config.gradient_accumulation)))
    return dataclasses.replace(config, max_steps=steps, warmup_steps=min(config.warmup_steps, steps))
