"""Options of `pretrain` and `finetune` that are not fields of `TrainConfig`: reports and a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import numpy.typing as npt
import typer

from bpe_llama.model.cli.loading import load_model
from bpe_llama.model.evaluation.token_bytes import token_bytes
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training import TrainConfig, batch_loss, distillation_loss
from bpe_llama.model.training.callbacks import Callback
from bpe_llama.model.training.report.loggers import LOGGERS, logger_named
from bpe_llama.model.training.report.samples import Samples
from bpe_llama.model.training.step import LossFunction
from bpe_llama.tokenizer import Tokenizer

SamplePromptOption = Annotated[
    list[str] | None,
    typer.Option("--sample-prompt", help="Continue this text after each evaluation, into samples.jsonl; repeatable."),
]
LoggerOption = Annotated[
    list[str] | None,
    typer.Option("--logger", help="Also send metrics there; repeatable.", metavar="|".join(LOGGERS)),
]
TeacherOption = Annotated[
    Path | None,
    typer.Option(help="Distill: learn from this model's next-token distribution as well; a folder or .gguf."),
]


class RunKeywords(TypedDict):
    """Arguments of `training.train` and `training.finetune`."""

    loss_fn: LossFunction
    callbacks: Sequence[Callback]
    token_bytes: npt.NDArray[np.int64]


def run_keywords(
    model: LlamaForCausalLM,
    vocabulary: Tokenizer,
    config: TrainConfig,
    *,
    sample_prompt: Sequence[str] | None,
    logger: Sequence[str] | None,
    teacher: Path | None,
) -> RunKeywords:
    """Return the arguments of a run that these options name."""
    callbacks: list[Callback] = [logger_named(name) for name in logger or ()]
    if sample_prompt:
        callbacks.append(Samples(vocabulary, sample_prompt))
    sizes = np.zeros(model.config.vocab_size, dtype=np.int64)
    known = token_bytes(vocabulary)[: len(sizes)]
    sizes[: len(known)] = known
    loss_fn: LossFunction = batch_loss
    if teacher is not None:
        loss_fn = distillation_loss(load_model(teacher, config.weights_dtype, config.device))
    return {"loss_fn": loss_fn, "callbacks": callbacks, "token_bytes": sizes}
