"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpe_llama.model import training

EXIT_INTERRUPTED = 130

AdapterOption = Annotated[Path | None, typer.Option(help="A LoRA adapter's folder, by `finetune` or peft.")]
QuantizeOption = Annotated[
    str | None, typer.Option("--quantize", help="Hold the weights as int8 or int4: less memory, and read sooner.")
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")]


def describe(result: training.TrainResult) -> str:
    """Return one line on how a run went."""
    held_out = "" if result.eval_loss is None else f", {result.eval_loss:.3f} on held-out text"
    skipped = f", {result.skipped:,} steps skipped, not being finite" if result.skipped else ""
    return (
        f"step {result.step:,}: {result.tokens:,} tokens in {result.seconds:.0f} s, "
        f"loss {result.loss:.3f} nats a token{held_out}{skipped}"
    )
