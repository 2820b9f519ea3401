"""What `mkdocs build` does beyond its plugins: the page of commands, and links to files outside docs/."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

ROOT = Path(__file__).parents[2]
COMMANDS_HERE = "<!-- commands -->"
_NO_MARKUP, _ESCAPED = re.compile(r"[<\[]"), r"\\\g<0>"  # neither a tag nor a link
_TYPE = re.compile(r"<(?:list\[)?(\w+)\]?>")  # of an option's value, as typer writes it
_LINK = re.compile(r"(\]\()(\.\.?/[^)#\s]+)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return the page's text with the commands listed, and links to the repository where the site has no page."""
    if COMMANDS_HERE in markdown:
        markdown = markdown.replace(COMMANDS_HERE, "\n".join(_commands()))

    def outside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link[2]))
        if path.startswith("docs/") or not (ROOT / path).exists():
            return link[0]
        if path == "ARCHITECTURE.md":
            return f"{link[1]}{posixpath.relpath('design.md', posixpath.dirname(page.file.src_uri) or '.')}"
        return f"{link[1]}{config.extra['repository']}/blob/main/{path}"

    return _LINK.sub(outside, markdown)


def _commands() -> Iterator[str]:
    from bpe_llama.cli import app
    from bpe_llama.cli.model_commands import MODEL_COMMANDS
    from bpe_llama.model.cli import app as model_app

    commands = {**get_command(app).commands, **get_command(model_app).commands}
    for name in [*(name for name in get_command(app).commands if name not in MODEL_COMMANDS), *MODEL_COMMANDS]:
        yield from _command(name, commands[name])


def _command(name: str, command: Any) -> Iterator[str]:
    """Yield the section of a command: what it does, an example, arguments and options with their defaults."""
    yield f"## {name}\n"
    yield f"{_text(command.help)}\n"
    if command.epilog:
        yield f"```sh\n{command.epilog.removeprefix('Example: ')}\n```\n"
    context = command.make_context(name, [], resilient_parsing=True)
    yield "| option | |"
    yield "|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record:
            names, text = (_text(cell).replace("|", r"\|") for cell in record)
            names = _TYPE.sub(lambda found: found[1].upper(), names)
            yield f"| `{names}` | {_NO_MARKUP.sub(_ESCAPED, text)} |"
    yield ""


def _text(text: str | None) -> str:
    return " ".join((text or "").split())
