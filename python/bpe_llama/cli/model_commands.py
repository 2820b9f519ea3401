"""Forwards the commands that need torch to `bpe_llama.model.cli`, which is imported only when such a command runs."""

from __future__ import annotations

import os
from typing import Any

import typer
from typer.core import TyperCommand

# What torch reads once, when it is imported; the user's own setting counts.
ENVIRONMENT = {
    # OpenMP's workers sleep between two loops. By default they spin, on a busy machine in the way of those with work.
    "OMP_WAIT_POLICY": "passive",
    # Large tensors lie on huge pages where the system offers them: a sixth of the time for memory touched first.
    "THP_MEM_ALLOC_ENABLE": "1",
}

EXIT_BAD_USAGE = 2

# Command to its line in `bpe-llama --help`.
MODEL_COMMANDS = {
    "pretrain": "Train a LLaMA from scratch on a token file.",
    "finetune": "Fine-tune a model on your own text, with LoRA or in full.",
    "eval": "Evaluate a model: perplexity and bits per byte on text, tasks of lm-evaluation-harness.",
    "generate": "Continue a prompt.",
    "chat": "Chat with an instruction-tuned model.",
    "serve": "Serve a model over HTTP, as OpenAI's API.",
    "convert": "Convert weights to another format.",
    "demo": "Train a tokenizer and a small LLaMA on this machine's Python library, then generate.",
}


COMPLETING = "_BPE_LLAMA_COMPLETE"
"""Set in the environment by the shells' completion scripts."""


class ForwardedCommand(TyperCommand):
    """A command whose options are known only while a shell completes them; else its own module parses them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, while a shell completes with the options of `bpe_llama.model.cli`."""
        if COMPLETING not in os.environ:
            return super().get_params(ctx)
        from bpe_llama.cli.model_options import parameters_of

        return parameters_of(str(self.name))


def forward(context: typer.Context) -> None:
    """Run a command of `bpe_llama.model.cli`, which needs torch."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from bpe_llama.model.cli import app as model_app
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("bpe_llama"):
            raise
        message = f"{context.info_name} needs {error.name}: pip install 'bpe-llama[model]'"
        raise ValueError(message) from error
    try:
        code = model_app(args=[str(context.info_name), *context.args], prog_name="bpe-llama", standalone_mode=False)
    except Exception as error:
        from bpe_llama.model.training.parallel import is_reported_by_rank_0

        if is_reported_by_rank_0(str(error)):
            raise typer.Exit(EXIT_BAD_USAGE) from None
        raise
    if isinstance(code, int):
        raise typer.Exit(code)
