"""Options of `pretrain` and `finetune` that are not fields of `TrainConfig`: reports and a teacher."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bpe_llama._progress import note
from bpe_llama.model.cli.loading import load_model
from bpe_llama.model.cli.options.common import describe
from bpe_llama.model.device import resolve_device
from bpe_llama.model.evaluation.bits_per_byte import token_bytes
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training import TrainConfig, TrainResult, batch_loss, distillation_loss, token_pieces
from bpe_llama.model.training.callbacks import Callback
from bpe_llama.model.training.checkpoints.checkpoint import checkpoint_to_resume
from bpe_llama.model.training.report.loggers import LOGGERS, logger_named
from bpe_llama.model.training.report.samples import Samples
from bpe_llama.model.training.run import RunOptions
from bpe_llama.model.training.step import LossFunction
from bpe_llama.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags themselves: `training_flags` adds them to a command, which gets them as `run`."""

    sample_prompt: Annotated[
        list[str] | None,
        typer.Option(help="Continue this text after each evaluation, into samples.jsonl; repeatable."),
    ] = None
    logger: Annotated[
        list[str] | None, typer.Option(help="Also send metrics there; repeatable.", metavar="|".join(LOGGERS))
    ] = None
    teacher: Annotated[
        str | None, typer.Option(help="Distillation: also learn the next-token distribution of this model.")
    ] = None
    teacher_temperature: Annotated[
        float | None, typer.Option(help="Temperature of both distributions.  [default: 2]")
    ] = None
    teacher_weight: Annotated[
        float | None, typer.Option(help="Weight of the teacher's part of the loss, 0 to 1.  [default: 0.5]")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint in --out.")] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="At the end, print the result as one JSON object; notes go to stderr.")
    ] = False


def say_result(result: TrainResult, as_json: bool, unit: str = "token", **more: Any) -> None:
    """Print the result of a run: one line, or with --json one object, in which a figure that is not finite is null.

    Args:
        result: The result.
        as_json: Whether --json is given.
        unit: What losses are per.
        **more: Further values of the object.
    """
    if as_json:
        values = dataclasses.asdict(result) | {"checkpoint": str(result.checkpoint)} | more
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        typer.echo(json.dumps(finite, ensure_ascii=False, indent=2))
    else:
        note(describe(result, unit), on_stdout=True)
    if result.interrupted:
        note(f"stopped; the same command with --resume continues from {result.checkpoint}", on_stdout=not as_json)


def say_if_nothing_to_resume(out: Path, resume: bool) -> None:
    """Print on stderr that --resume finds no checkpoint, so that a wrong --out is seen at once.

    Raises:
        ValueError: If `out` holds a run and --resume is not given.
    """
    if checkpoint_to_resume(out, resume) is None and resume:
        typer.echo(f"--resume: {out} holds no checkpoint; the run starts at step 0", err=True)


def run_keywords(model: LlamaForCausalLM, vocabulary: Tokenizer, config: TrainConfig, flags: RunFlags) -> RunOptions:
    """Return the arguments of a run that its flags name."""
    callbacks: list[Callback] = [logger_named(name) for name in flags.logger or ()]
    if flags.sample_prompt:
        callbacks.append(Samples(vocabulary, flags.sample_prompt))
    sizes = np.zeros(model.config.vocab_size, dtype=np.int64)
    known = token_bytes(vocabulary)[: len(sizes)]
    sizes[: len(known)] = known
    loss_fn = loss_function(flags.teacher, flags.teacher_temperature, flags.teacher_weight, vocabulary, config)
    return {"resume": flags.resume, "loss_fn": loss_fn, "callbacks": callbacks, "token_bytes": sizes}


def loss_function(
    teacher: str | None, temperature: float | None, weight: float | None, vocabulary: Tokenizer, config: TrainConfig
) -> LossFunction:
    """Return the loss of --teacher, or the cross-entropy without one.

    Raises:
        ValueError: If the teacher's tokenizer is another, or an option is out of range or given without a teacher.
    """
    if teacher is None:
        for flag, value in (("--teacher-temperature", temperature), ("--teacher-weight", weight)):
            if value is not None:
                raise ValueError(f"{flag} is for --teacher; expected both, or neither")
        return batch_loss
    if token_pieces(Tokenizer.from_pretrained(teacher), vocabulary):
        raise ValueError(f"{teacher}: its tokenizer lacks tokens of the trained model's; expected the same tokenizer")
    half = config.dtype == "bfloat16" or (
        config.dtype == "auto" and (config.weights_dtype == "bfloat16" or resolve_device(config.device).type == "cuda")
    )
    loaded = load_model(teacher, "bfloat16" if half else "float32", config.device)
    options = {"temperature": temperature, "alpha": weight}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return distillation_loss(loaded, **given)
