"""The flags of `pretrain` and `finetune` that set a field of `TrainConfig`, in one table."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from bpe_llama.model.cli.options.run import RunFlags
from bpe_llama.model.training import TrainConfig
from bpe_llama.model.training.config import CHOICES
from bpe_llama.model.training.parallel import start


class Flag(NamedTuple):
    """A flag's name, its help text and its metavar."""

    name: str
    help: str
    metavar: str | None = None


TRAINING_FLAGS = {
    "max_steps": Flag("--steps", "Optimizer steps."),
    "max_seconds": Flag("--seconds", "Also stop after this training time."),
    "sequence_length": Flag("--sequence-length", "Tokens per sequence."),
    "batch_size": Flag("--batch-size", "Sequences per micro-batch."),
    "gradient_accumulation": Flag("--accumulate", "Micro-batches per step (gradient accumulation)."),
    "packing": Flag("--packing", "Rows of documents cut anywhere, or whole by best fit.", "concatenate|best_fit"),
    "document_mask": Flag(
        "--document-mask/--no-document-mask", "Keep attention within documents; default: with --packing best_fit."
    ),
    "learning_rate": Flag("--learning-rate", "Peak learning rate."),
    "schedule": Flag("--schedule", "Learning rate after warm-up.", "|".join(CHOICES["schedule"])),
    "warmup_steps": Flag("--warmup", "Steps of warm-up."),
    "optimizer": Flag("--optimizer", "Muon is for the matrices of the layers.", "|".join(CHOICES["optimizer"])),
    "weight_decay": Flag("--weight-decay", "Weight decay, on matrices."),
    "ema_decay": Flag("--ema", "Decay of a moving average of the weights, which is saved; 0: none."),
    "z_loss": Flag("--z-loss", "Weight of the z-loss, which keeps logits small."),
    "label_smoothing": Flag("--label-smoothing", "Share of the target spread over the vocabulary."),
    "eval_fraction": Flag("--eval-fraction", "Fraction of the data, at its end, that is held out for evaluation."),
    "eval_every": Flag("--eval-every", "Steps between evaluations; 0: only at the end."),
    "save_every": Flag("--save-every", "Steps between checkpoints; 0: only at the end.  [default: every 10 minutes]"),
    "save_total_limit": Flag("--save-total-limit", "Newest checkpoints to keep; 0: all."),
    "log_every": Flag("--log-every", "Steps between lines of metrics.jsonl."),
    "seed": Flag("--seed", "Random seed of initial weights and data order."),
    "dtype": Flag("--dtype", "auto: bfloat16 on CUDA. float8 needs torchao and a GPU.", "|".join(CHOICES["dtype"])),
    "weights_dtype": Flag(
        "--weights-dtype",
        "Weights, gradients and moments in float32, or in bfloat16 with stochastic rounding: half the memory.",
        "float32|bfloat16",
    ),
    "master_weights": Flag("--master-weights", "With bfloat16 weights: float32 copies instead of rounding at random."),
    "device": Flag("--device", "auto (CUDA if available), cpu, cuda, cuda:1, ..."),
    "parallel": Flag(
        "--parallel",
        "Under torchrun: ddp or auto, the whole model on each rank; fsdp, weights and moments sharded.",
        "auto|ddp|fsdp",
    ),
    "compile": Flag("--compile", "Compile the model with torch.compile."),
    "checkpoint_activations": Flag(
        "--checkpoint-layers", "Recompute every K-th layer in the backward pass: less memory, slower; 1: all.", "K"
    ),
}
FIELDS_WITHOUT_FLAG = (
    *("min_learning_rate_ratio", "decay_fraction", "warmup_fraction", "betas", "gradient_clip", "max_skipped_steps"),
    "eval_windows",
)


def training_flags(
    *, without: Sequence[str] = (), defaults: Mapping[str, Any] | None = None, helps: Mapping[str, str] | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return a decorator that adds the flags of `TRAINING_FLAGS` and `RunFlags` around a command's keyword-only ones.

    The command receives the former as `**settings`, by the names of `TrainConfig`'s fields, and the latter as `run`.
    Under `torchrun` it runs on every rank, but only rank 0 prints.

    Args:
        without: Fields for which the command has no flag.
        defaults: The command's own defaults, by field.
        helps: The command's own help texts, by field.
    """
    hints, run_hints = get_type_hints(TrainConfig), get_type_hints(RunFlags, include_extras=True)
    of_run = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=run_hints[field.name]
        )
        for field in dataclasses.fields(RunFlags)
    ]

    def parameter(field: str, flag: Flag) -> inspect.Parameter:
        default = (defaults or {}).get(field, getattr(TrainConfig, field))
        option = typer.Option(flag.name, help=(helps or {}).get(field, flag.help), metavar=flag.metavar)
        kind = hints[field] | None if default is None else hints[field]
        return inspect.Parameter(
            field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(command, eval_str=True)
        own = [found for name, found in signature.parameters.items() if name not in ("run", "settings")]
        flags = [parameter(field, flag) for field, flag in TRAINING_FLAGS.items() if field not in without]
        place = sum(found.kind is not inspect.Parameter.KEYWORD_ONLY for found in own)

        @functools.wraps(command)
        def on_ranks(**values: Any) -> int:
            ranks = start(values["device"], values["parallel"])
            run = RunFlags(**{parameter.name: values.pop(parameter.name) for parameter in of_run})
            with ranks.only_main_prints():
                code = command(run=run, **values)
            ranks.finish()
            return code

        on_ranks.__signature__ = signature.replace(parameters=own[:place] + flags + own[place:] + of_run)  # type: ignore[attr-defined]
        return on_ranks

    return decorate
