"""The command line: ``bpe-llama COMMAND``, one file a command.

A user's mistake ends in one line on standard error and exit code 2. ``bpe-llama --help`` does not import torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from bpe_llama import __version__
from bpe_llama._core import shown
from bpe_llama.cli import compare, count, decode, doctor, encode, encode_corpus, inspect, train_tokenizer
from bpe_llama.cli.model_commands import EXIT_BAD_USAGE, MODEL_COMMANDS, ForwardedCommand, forward
from bpe_llama.cli.options import with_quiet

EXIT_INTERRUPTED = 130
_LONGEST_ERROR = 4000  # characters

app = typer.Typer(
    name="bpe-llama",
    help="Train a byte-level BPE vocabulary, tokenize, train or load a LLaMA, generate.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _callback(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (train_tokenizer, encode_corpus, encode, decode, count, inspect, compare, doctor):
    _name = _command.__name__.rpartition(".")[2].replace("_", "-")
    app.command(_name, epilog=_command.EXAMPLE)(with_quiet(_command.command))

for _name, _help in MODEL_COMMANDS.items():
    app.command(
        _name,
        cls=ForwardedCommand,
        help=_help,
        add_help_option=False,  # the model's own command answers --help
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    )(forward)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of one command: 0, 2 for bad usage or bad input, 130 for Ctrl-C.

    >>> main(["--version"])
    0...
    0
    """
    original, warnings.formatwarning = warnings.formatwarning, _warning_line
    try:
        code = app(args=arguments, prog_name="bpe-llama", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # newer versions of typer return this code for Ctrl-C
            _print_error("interrupted")
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        _print_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # such as `bpe-llama ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, KeyError, OSError, MemoryError, ImportError) as error:
        _print_error(_one_line(error))
        return EXIT_BAD_USAGE
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            _print_error("no thread can be started; allow more processes (ulimit -u, the limit of the container)")
            return EXIT_BAD_USAGE
        if not hasattr(
            error, "format_message"
        ):  # click's errors; versions of typer keep that class in different modules
            raise
        _print_error(_usage_message(error))
        return EXIT_BAD_USAGE
    finally:
        warnings.formatwarning = original


def _warning_line(message: Warning | str, *_args: object, **_options: object) -> str:
    """Return a warning in one line, without the source line that raised it."""
    return f"bpe-llama: warning: {' '.join(str(message).split())}\n"


def _usage_message(error: Any) -> str:
    """Return the message of one of click's errors with the value: typer 0.29 leaves it out of those of pydantic."""
    name = str(getattr(error, "option_name", "")).lstrip("-")
    parameters = error.ctx.command.params if name else ()
    if name.replace("-", "_") in (each.name for each in parameters if each.param_type_name == "argument"):
        return f"No such option: --{name}; write the {name} itself, without --{name}"
    details = getattr(error.__cause__, "errors", None)
    got = f", got {shown(details()[0]['input'])}" if callable(details) else ""
    return f"{error.format_message()}{got}"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(message.split()) or type(error).__name__


def _print_error(message: str) -> None:
    """Print an error in one line; of a message that repeats a long value, the beginning and the end."""
    line = " ".join(message.split())
    if len(line) > _LONGEST_ERROR:
        line = f"{line[: _LONGEST_ERROR // 2]} ... {line[-_LONGEST_ERROR // 2 :]}"
    print(f"bpe-llama: {line}", file=sys.stderr)
