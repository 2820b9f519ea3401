"""Sets up a run: data, optimizer, callbacks, and the checkpoint from which it resumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from bpe_llama._arguments import boolean, check_keywords, instance, iterator, keywords_of, wrong
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import shown
from bpe_llama._files import locked
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.training.callbacks import Callback, TrainResult
from bpe_llama.model.training.checkpoints.checkpoint import (
    check_trainable,
    load_optimizer_state,
    load_run,
    remove_surplus,
)
from bpe_llama.model.training.checkpoints.finished import save_finished
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.data.batches import Batch, Batches, integers
from bpe_llama.model.training.data.examples import Example, ExampleBatches, checked_examples
from bpe_llama.model.training.data.rows import RowBatches
from bpe_llama.model.training.data.sources import DataSource, open_data
from bpe_llama.model.training.float8 import use_float8
from bpe_llama.model.training.held_out import held_out_examples
from bpe_llama.model.training.loop import LastMetrics, Trainer
from bpe_llama.model.training.optimizers.state import optimizer_for
from bpe_llama.model.training.parallel import ShardedModel, start
from bpe_llama.model.training.report.metrics import LossPlot, MetricsFile
from bpe_llama.model.training.report.progress import ProgressReport
from bpe_llama.model.training.step import LossFunction, batch_loss, batch_score
from bpe_llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ReportOptions(TypedDict, total=False):
    """Options of all functions that train; each may be left out.

    Attributes:
        resume: Resume from the checkpoint in `out`, if there is one. On a CPU the losses equal those of a run without
            the interruption.
        progress: Show the progress on stderr, as a bar on a terminal and as lines elsewhere; False: show nothing.
        callbacks: Called at each step, evaluation and checkpoint.
    """

    resume: bool
    progress: bool | None
    callbacks: Sequence[Callback]


class RunOptions(ReportOptions, total=False):
    """Options of the functions that train a language model: those of `ReportOptions`, and two more.

    Attributes:
        loss_fn: The loss of a micro-batch, instead of the cross-entropy of the next tokens.
        token_bytes: UTF-8 bytes of each id, `(V,)`, as `evaluation.token_bytes` returns them; missing ones are 0.
            Metrics then have the loss in bits per byte, which is comparable across vocabularies. Only the cross-entropy
            is reported so, not the training loss of a `loss_fn`, z-loss or label smoothing.
    """

    loss_fn: LossFunction
    token_bytes: npt.NDArray[np.int64] | None


def check_run(model: object, config: object, out: object, options: RunOptions, tokenizer: object | None = None) -> None:
    """Raise `TypeError` for an argument of a run that is of another type; callbacks become a list, to be read again."""
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "config")):
        raise TypeError(wrong("model", model, "a model"))
    instance("config", config, TrainConfig, "a TrainConfig")
    if tokenizer is not None:
        instance("tokenizer", tokenizer, Tokenizer)
    checked_path("out", out)
    check_keywords("train", options, keywords_of(RunOptions))
    for name in ("resume", "progress"):
        if options.get(name) is not None:
            boolean(name, options[name])
    options["callbacks"] = list(iterator("callbacks", options.get("callbacks", ()), "a list of Callbacks"))
    for place, callback in enumerate(options["callbacks"]):
        instance(f"callbacks[{place}]", callback, Callback, "a Callback, which has the methods on_step, close ...")
    if not callable(options.get("loss_fn", batch_loss)):
        raise TypeError(wrong("loss_fn", options["loss_fn"], "a function"))
    if (sizes := options.get("token_bytes")) is not None:
        config_of_model: Any = model.config
        sizes, size = integers(sizes, "token_bytes"), config_of_model.vocab_size
        if sizes.ndim != 1 or (sizes < 0).any():
            raise ValueError(f"token_bytes is {shown(sizes)}; expected numbers from 0, (V,)")
        options["token_bytes"] = np.pad(sizes[:size], (0, max(0, size - len(sizes))))  # ids without a token: no bytes


def train(
    model: LlamaForCausalLM,
    data: DataSource,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    eval_file: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    **options: Unpack[RunOptions],
) -> TrainResult:
    """Train `model` in place on tokens, and return the result.

    `out` receives `metrics.jsonl`, `loss.png` and the latest checkpoint, a folder `step-…` that loads as a model; with
    `tokenizer` also `model`, which holds weights and tokenizer.
    The first Ctrl-C or SIGTERM saves a checkpoint and ends the run; a second one ends it at once. The loss of a step is
    the mean over all of its learned tokens, whatever the micro-batches. A step whose loss or gradient is not finite is
    skipped. Under `torchrun` all ranks call this function and train together, as `config.parallel` says; each has the
    trained weights at the end.

    Args:
        model: The model; moved to the device (with FSDP to the CPU), its trained weights converted to
            `config.weights_dtype`. All ranks begin with the weights of rank 0.
        data: A `.npy` of ids, as `Tokenizer.encode_files` writes, or a folder of shards, as `Tokenizer.encode_corpus`
            does; several of them, mixed by size, or a dictionary of paths and weights: a corpus's weight is its share
            of the rows. Or `Batches`, or an iterable of batches (see `IterableBatches`).
        config: The run's options.
        out: Folder of the run; created if it does not exist.
        eval_file: Tokens to evaluate on, instead of the end of each corpus.
        tokenizer: The tokenizer of the ids. With it, a run that ends leaves `out/model`, or `out/adapter` of a model
            with an adapter: weights and tokenizer, which `generate`, `chat`, `serve` and transformers open.
        options: `resume`, `progress`, `loss_fn`, `callbacks` and `token_bytes`, as `RunOptions` documents them.

    Raises:
        FileNotFoundError: If a token file or shard is missing.
        ValueError: If the data or a weight is invalid or does not fit the model, or another tokenizer encoded token
            shards; if there are more ranks than rows in a micro-batch; if `out` holds another run's checkpoint, or its
            options or data differ, or it is locked; if too many consecutive steps were skipped, or a step has no token
            to learn. The last checkpoint stays.
        OSError: If a checkpoint cannot be written, for example on a full disk. The last one stays.

    Example:
        >>> result = train(model, "tokens.npy", TrainConfig(max_steps=100), "run", tokenizer=tok)  # doctest: +SKIP
        >>> result.loss  # doctest: +SKIP
        3.2
    """
    check_run(model, config, out, options, tokenizer)
    if eval_file is not None:
        eval_file = checked_path("eval_file", eval_file)
    batches, held_out = open_data(data, model.config, config, eval_file=eval_file, tokenizer=tokenizer)
    return train_on_batches(model, batches, config, out, held_out=held_out, tokenizer=tokenizer, **options)


def train_on_examples(
    model: LlamaForCausalLM,
    examples: Sequence[Example],
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    eval_examples: Sequence[Example] = (),
    tokenizer: Tokenizer | None = None,
    **options: Unpack[RunOptions],
) -> TrainResult:
    """Train `model` in place on examples whose labels mask some tokens, such as prompts, and return the result.

    Works as `train`, whose other arguments these are, except that each example is a row of its own, padded to the
    longest of its batch; `eval_examples` are held out. `config.sequence_length`, `config.eval_fraction` and
    `config.eval_windows` have no effect.

    Raises:
        ValueError: As `train`; or if an example has no token to learn or is longer than the model's context; or if
            `config` has `packing="best_fit"` or a `document_mask`.
    """
    check_run(model, config, out, options)
    examples, eval_examples = checked_examples(examples), checked_examples(eval_examples, name="eval_examples")
    batches = ExampleBatches(examples, batch_size=config.batch_size, seed=config.seed)
    for example in [*examples, *eval_examples]:
        example.check(model.config.vocab_size, model.config.context_length)
    held_out = held_out_examples(eval_examples, config.batch_size)
    return train_on_batches(model, batches, config, out, held_out=held_out, tokenizer=tokenizer, **options)


def train_on_batches(
    model: Pretrained,
    batches: Batches,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    held_out: Sequence[Batch] = (),
    score_fn: LossFunction = batch_score,
    tokenizer: Tokenizer | None = None,
    **options: Unpack[RunOptions],
) -> TrainResult:
    """Train `model` in place on any batches, and return the result; other arguments and errors are those of `train`.

    The data's options of `config` have no effect; packing and a mask are refused unless the batches are of a corpus.
    `score_fn` returns the loss of a batch of `held_out`.
    """
    check_run(model, config, out, options, tokenizer)
    loss_fn: LossFunction = options.get("loss_fn", batch_loss)
    if loss_fn is batch_loss:
        loss_fn = partial(batch_score, label_smoothing=config.label_smoothing, z_loss=config.z_loss)
    elif config.label_smoothing or config.z_loss:
        raise ValueError(
            f"label_smoothing is {config.label_smoothing} and z_loss {config.z_loss}, which only the default loss "
            "applies; expected 0 with a loss_fn"
        )
    if (config.packing == "best_fit" or config.masks_documents) and not isinstance(batches, RowBatches):
        raise ValueError(
            f"packing is {config.packing!r} and document_mask {config.document_mask}, which are for token files; "
            "expected 'concatenate' and no mask, as these data have rows of their own"
        )
    ranks, out = start(config.device, config.parallel), Path(out)
    if config.batch_size < ranks.world:
        rows = f"{config.batch_size} rows for {ranks.world} ranks"
        raise ValueError(f"a micro-batch has {rows}; expected a row for each at least")
    ranks.check_same("the data", batches.fingerprint)
    with ranks.entered_on_main(locked(out)):
        predicts_text = score_fn is batch_score
        check_trainable(model, predicts_text)
        home = torch.device("cpu") if ranks.sharded else ranks.device
        _move(model, home, torch.bfloat16 if config.weights_dtype == "bfloat16" else torch.float32)
        if config.checkpoint_activations:
            model.gradient_checkpointing_enable(every=config.checkpoint_activations)
        if config.dtype == "float8":
            use_float8(model, ranks.device)
        checkpoint, state = load_run(out, model, config, batches, ranks, resume=options.get("resume", False))
        trained = model
        if ranks.sharded:
            sharded = ShardedModel(model, ranks, config)
            trained, loss_fn, score_fn = sharded.model, sharded.gathered_for(loss_fn), sharded.gathered_for(score_fn)
        optimizer = optimizer_for(trained, config)
        if checkpoint is not None:
            load_optimizer_state(checkpoint, trained, optimizer)
            ranks.on_main(partial(remove_surplus, checkpoint, config.save_total_limit))
        reports: list[Callback] = []

        def open_reports() -> LastMetrics:
            metrics = MetricsFile(out / "metrics.jsonl", state.step)
            plot = LossPlot("token" if predicts_text else "text")
            reports.extend([metrics, ProgressReport(options.get("progress")), plot])
            eval_loss, tokens = metrics.last("eval_loss", state.step), int(metrics.last("tokens", state.step, 0))
            return LastMetrics(metrics.last("loss"), metrics.last("grad_norm"), eval_loss, tokens)

        last = ranks.on_main(open_reports)
        callbacks = [each for each in options["callbacks"] if ranks.is_main or each.on_every_rank]
        trainer = Trainer(
            trained,
            optimizer,
            config,
            batches,
            device=ranks.device,
            out=out,
            held_out=held_out,
            loss_fn=loss_fn,
            score_fn=score_fn,
            token_bytes=options.get("token_bytes"),
            callbacks=[*reports, *callbacks],
            ranks=ranks,
            whole=model if ranks.sharded else None,
        )
        trainer.resume(state, checkpoint, last)
        result = trainer.run()
        if tokenizer is not None and ranks.is_main and not result.interrupted:
            save_finished(model, tokenizer, out)
        return result


def _move(model: Pretrained, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to the device, and convert only its trained parameters to `dtype`."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.to(device=device, dtype=dtype)
        return
    model.to(device=device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
