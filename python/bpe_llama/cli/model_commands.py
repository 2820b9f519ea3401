"""Forwards the commands that need torch to `bpe_llama.model.cli`, which is imported only when such a command runs.

For shell completion their options are kept in a file, as importing torch is slow.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypedDict

import typer
from typer.core import TyperCommand
from typer.main import get_command

import bpe_llama
from bpe_llama._files import write_text

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
        extra = "serve" if context.info_name == "serve" else "model"  # it holds the other, too
        message = f"{context.info_name} needs {error.name}: pip install 'bpe_llama[{extra}]'"
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


class OptionHelp(TypedDict):
    """What completion shows of an option.

    Attributes:
        names: Its names, such as ``--model`` and ``-m``.
        help: Its help text.
        is_flag: Whether it takes no value.
    """

    names: list[str]
    help: str
    is_flag: bool


Options: TypeAlias = "dict[str, list[OptionHelp]]"


def parameters_of(command: str) -> list[Any]:
    """Return the parameters of a command, with which typer completes a line of a shell."""

    def stub(**_values: object) -> None: ...

    options = model_options().get(command, [])
    named = [(each["names"], each["help"], False) for each in options if not each["is_flag"]]
    named += [([name], each["help"], True) for each in options if each["is_flag"] for name in each["names"]]
    stub.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                f"option_{number}",
                inspect.Parameter.KEYWORD_ONLY,
                default=False if is_flag else None,
                annotation=Annotated[bool if is_flag else (str | None), typer.Option(*names, help=help_)],
            )
            for number, (names, help_, is_flag) in enumerate(named)
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(stub)
    return get_command(app).params


def model_options() -> Options:
    """Return the options of each command of `bpe_llama.model.cli`; none if torch is not installed."""
    from bpe_llama._loading.published.cache import cache_folder

    cache, key = cache_folder() / "options.json", _key()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, or damaged
        kept = json.loads(cache.read_text("utf-8"))
        if kept["key"] == key:
            return kept["options"]
    try:
        found = read_options()
    except ModuleNotFoundError:
        return {}
    with contextlib.suppress(OSError):  # the folder may be read-only
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, json.dumps({"key": key, "options": found}))
    return found


def read_options() -> Options:
    """Return the options as the commands themselves have them; this imports torch."""
    from bpe_llama.model.cli import app

    commands: Mapping[str, object] = get_command(app).commands  # type: ignore[attr-defined]
    found: Options = {}
    for name, command in commands.items():
        options = [each for each in command.params if each.param_type_name == "option"]  # type: ignore[attr-defined]
        found[name] = [
            {"names": [*each.opts, *each.secondary_opts], "help": each.help or "", "is_flag": each.is_flag}
            for each in options
        ]
    return found


def _key() -> str:
    """Return a text that changes with the commands' files."""
    folder = Path(bpe_llama.__file__).parent / "model" / "cli"
    newest = max((path.stat().st_mtime_ns for path in folder.rglob("*.py")), default=0)
    return f"{bpe_llama.__version__} {folder} {newest}"
