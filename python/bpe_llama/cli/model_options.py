"""Shell completion of the commands that need torch: their options are kept in a file, as importing torch is slow."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypedDict

import typer
from typer.main import get_command

import bpe_llama
from bpe_llama._files import write_text


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
            found: Options = kept["options"]
            return found
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
