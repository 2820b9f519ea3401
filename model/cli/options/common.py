"""Options, an exit code and a report line that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from bpe_llama._progress import quietly
from bpe_llama.chat import NAMED_TEMPLATES
from bpe_llama.model import training
from bpe_llama.model.device import computing_threads
from bpe_llama.model.quantization.layers import GROUP_SIZES

EXIT_INTERRUPTED = 130

QUANTIZED = ("int8", "int4")
"""The values of --quantize: the formats that native kernels compute with."""

AdapterOption = Annotated[str | None, typer.Option(help="A LoRA adapter: a folder of `finetune` or peft, or org/name.")]
QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", help=f"Quantize the weights to {' or '.join(QUANTIZED)}: less memory, faster decoding."),
]
GroupSizeOption = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        metavar="|".join(map(str, GROUP_SIZES)),
        help="With --quantize int4: weights that share a scale.  [default: 64; 32 for a quantized .gguf]",
    ),
]
ResizeOption = Annotated[
    bool,
    typer.Option(
        "--resize-embeddings",
        help="Add rows to embedding and head for the tokens that --tokenizer adds to the model's own.",
    ),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="|".join((*NAMED_TEMPLATES, "FILE")),
        help="Use this chat template in place of the tokenizer's, and save it with the tokenizer.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda, cuda:1, ...")]

ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="CPU threads.  [default: OMP_NUM_THREADS, or one per physical core]")
]


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress and no notes; warnings and errors remain.")
]


def with_common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with --threads, which sets the threads of torch and of the native kernels, and --quiet."""

    @functools.wraps(command)
    def run(*arguments: Any, threads: int | None = None, quiet: bool = False, **options: Any) -> Any:
        with quietly(quiet), computing_threads(threads):
            return command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    found = list(signature.parameters.values())
    only = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter("threads", only, default=None, annotation=ThreadsOption),
        inspect.Parameter("quiet", only, default=False, annotation=QuietOption),
    ]
    named = [parameter for parameter in found if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    run.__signature__ = signature.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
    return run


def describe(result: training.TrainResult, unit: str = "token") -> str:
    """Return the result of a run in one line; losses are per `unit`."""
    held_out = "" if result.eval_loss is None else f", held-out loss {result.eval_loss:.3f}"
    skipped = f", {result.skipped:,} steps skipped with a loss or gradient that is not finite" if result.skipped else ""
    return (
        f"step {result.step:,}: {result.tokens:,} tokens in {result.seconds:.0f} s, "
        f"loss {result.loss:.3f} nats per {unit}{held_out}{skipped}"
    )
