"""The options of fine-tuning data: one dataclass, checked when it is constructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bpe_llama._core import shown
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama.chat import TRAIN_ON
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.finetuning.formats import FORMATS


@dataclass(frozen=True)
class DataConfig:
    """How the files of fine-tuning data are read.

    Attributes:
        format: The format of `.json`, `.jsonl` and `.parquet` files, one of `training.FORMATS`; "auto" detects it by
            the fields of the first row. "text" also takes a `.csv` as plain text.
        train_on: "assistant" for all answers, "last" for the last one alone, or "all" for every token. A message with
            a `weight` of 0 is never learned; of plain text everything is.
        parse_special: Whether special tokens spelled out in plain text, prompts and completions are encoded as special
            tokens, as already rendered chats need; in messages they never are.
        on_error: "raise" an error at the first row that cannot be read, is not of its file's format, holds a lone
            surrogate or does not suit the template, or "skip" such rows and warn of their number.

    Raises:
        ValueError: If a value is not one of those.
    """

    format: str = "auto"
    train_on: str = "assistant"
    parse_special: bool = False
    on_error: str = "raise"

    def __post_init__(self) -> None:
        """Refuse unknown values by name."""
        if self.format not in ("auto", *FORMATS):
            raise ValueError(f"format is {shown(self.format)}; expected auto, {', '.join(FORMATS)}")
        if self.train_on not in TRAIN_ON:
            raise ValueError(f"train_on is {shown(self.train_on)}; expected {', '.join(TRAIN_ON)}")
        BadRows(self.on_error)


FINETUNE_DEFAULTS: dict[str, Any] = {
    "sequence_length": 512,
    "batch_size": 4,
    "gradient_accumulation": 4,
    "learning_rate": 2e-4,
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "eval_fraction": 0.05,
    "log_every": 1,
}
"""The fields of `TrainConfig` that have other defaults in fine-tuning."""
FULL_LEARNING_RATE = 2e-5
"""The default of `learning_rate` if all weights are trained, not an adapter."""


def finetune_config(*, full: bool = False, **options: Any) -> TrainConfig:
    """Return the options of a run with the defaults of `bpe-llama finetune`.

    Args:
        full: Whether all weights are trained, not an adapter.
        **options: Fields of `TrainConfig`.

    Raises:
        ValueError: As of `TrainConfig`.

    Example:
        >>> finetune_config(max_steps=50).learning_rate, finetune_config(full=True, max_steps=50).learning_rate
        (0.0002, 2e-05)
    """
    rate = {"learning_rate": FULL_LEARNING_RATE} if full else {}
    return TrainConfig(**(FINETUNE_DEFAULTS | rate | options))
