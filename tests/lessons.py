"""The lessons of docs/learn: their notebooks, how they are executed, and what they print and draw.

``python -m tests.lessons NAME ...`` brings what belongs to a lesson up to date after its page was edited: the expected
output in the page, the notebook and the pictures. Lessons of `LONGER` take minutes.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jupytext
import nbformat
from nbclient import NotebookClient

from bench import data

FOLDER = Path(__file__).parents[1] / "docs" / "learn"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "index")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

LONGER = {"from-scratch": ("steps = 40\n", "steps = 2000\n")}
"""Lessons that show a longer run than the one that is tested, and the line that makes it longer."""

# A code block, and the output that is expected of it. If that is measured, only its words are; if it varies, only that
# there is some.
_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n(?P<mark><!-- (?:measured|varies): [^\n]+ -->\n)?```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Block(NamedTuple):
    """A code block of a page: its code, the output that the page shows, and the comment that stands above that."""

    code: str
    output: str
    mark: str

    def prints(self, text: str) -> bool:
        """Return whether the text that the code printed is what the page shows."""
        if "varies:" in self.mark:
            return bool(text)
        return same_output(self.output, text, measured=bool(self.mark))


def blocks_of(page: Path) -> list[Block]:
    """Return the Python blocks of a page, in order."""
    found = _BLOCK.finditer(page.read_text("utf-8"))
    return [Block(match["code"], match["output"] or "", match["mark"] or "") for match in found]


def pictures_of(page: Path) -> set[str]:
    """Return the names of the pictures that a page shows."""
    return set(re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", page.read_text("utf-8")))


def notebook_of(page: Path) -> Any:
    """Return the page as a notebook without outputs, the same each time."""
    notebook = jupytext.reads(page.read_text("utf-8"), fmt="md")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{page.stem}-{index}", nbformat.from_dict({})
    return notebook


def notebook_text(page: Path) -> str:
    """Return what the page's ``.ipynb`` file holds."""
    return nbformat.writes(notebook_of(page)) + "\n"


def prepare(page: Path, folder: Path, fetch: Callable[..., Any]) -> None:
    """Put what a page needs into a folder: the style of its pictures, weights, vocabularies."""
    (folder / "images").mkdir()
    shutil.copy(FOLDER / "matplotlibrc", folder)
    text = page.read_text("utf-8")
    if GGUF in text:
        (folder / GGUF).symlink_to(fetch(data.smollm2_gguf))
    for name in ("r50k", "cl100k", "o200k"):
        if f'"{name}_base"' in text:
            fetch(data.vocabulary, name)  # found in the cache by its name


def execute(page: Path, folder: Path, longer: bool = False) -> list[str]:
    """Execute the page's notebook in a folder and return what each code cell printed.

    With ``longer``, lessons of `LONGER` run as long as their pages show.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
        ValueError: If a cell warns, or has an output other than what it prints.
    """
    quiet = {"IPYTHONDIR": str(folder / ".ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    drawing = {"MPLBACKEND": "agg", "SOURCE_DATE_EPOCH": "0"}
    environment = {**os.environ, **quiet, **drawing, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    notebook = notebook_of(page)
    timeout: int | None = 900
    if longer and page.stem in LONGER:
        for cell in notebook.cells:
            cell.source = f"{cell.source}\n".replace(*LONGER[page.stem])
        timeout = None
    client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the event loop of Jupyter's client
        client.execute(env=environment)
    printed = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        texts = {"stdout": "", "stderr": ""}
        for output in cell.outputs:
            if output.output_type != "stream":
                raise ValueError(f"{page.name} has an output that its page cannot show: {output}\n{cell.source}")
            texts[output.name] += output.text
        if texts["stderr"]:
            raise ValueError(f"{page.name} warns: {texts['stderr']}\n{cell.source}")
        printed.append(texts["stdout"])
    return printed


def same_output(shown: str, printed: str, measured: bool = False) -> bool:
    """Return whether a cell printed what the page shows: the same words and integers, other numbers to 2%.

    Of measured output only the words are compared.

    >>> same_output("loss 2.50 of 3 runs", "loss 2.51 of 3 runs"), same_output("3 tokens", "4 tokens")
    (True, False)
    """
    words = [_NUMBER.sub("0", " ".join(text.split())) for text in (shown, printed)]
    if words[0] != words[1]:
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True)
    return measured or all(
        one == other if one.isdigit() else math.isclose(float(one), float(other), rel_tol=0.02, abs_tol=0.011)
        for one, other in pairs
    )


def update(page: Path, printed: list[str], folder: Path) -> None:
    """Write the outputs of an execution into the page, its notebook beside it and its pictures into ``images``."""
    outputs = iter(printed)

    def with_output(match: re.Match[str]) -> str:
        code, output = f"```python\n{match['code']}```\n", next(outputs)
        return code + (f"\n{match['mark'] or ''}```text\n{output.rstrip()}\n```\n" if output else "")

    page.write_text(_BLOCK.sub(with_output, page.read_text("utf-8")), "utf-8")
    page.with_suffix(".ipynb").write_text(notebook_text(page), "utf-8")
    for picture in (folder / "images").iterdir():
        shutil.copy(picture, FOLDER / "images")


def main(names: list[str]) -> None:
    """Execute the named lessons, by default all, and update what belongs to them."""
    for page in PAGES:
        if names and page.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            prepare(page, Path(folder), lambda function, *arguments: function(*arguments))
            update(page, execute(page, Path(folder), longer=True), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
