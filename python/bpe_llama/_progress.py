"""Report the progress of a long call: a bar on the terminal, or the caller's function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import NoneType
from typing import NamedTuple, TypeAlias


class Progress(NamedTuple):
    """The progress of a long call.

    Attributes:
        stage: ``"count"`` while text is read for training, then ``"merge"``; ``"encode"`` while files are encoded,
            ``"encode rows"`` while a data set is; ``"load"`` while weights are read; ``"score"`` or ``"classify"``
            while a model is evaluated.
        done: Bytes read, merges done, rows or tensors read, tokens scored, or texts labelled.
        total: All of them; ``None`` where their number is unknown.
    """

    stage: str
    done: int
    total: int | None


ProgressOption: TypeAlias = "bool | Callable[[Progress], object] | None"
Report: TypeAlias = Callable[[str, int, "int | None"], None]


@contextmanager
def reporting(progress: ProgressOption) -> Iterator[Report | None]:
    """Yield the function that the core calls to report progress, or ``None``.

    Args:
        progress: ``None`` shows a bar if stderr is a terminal, ``True`` always, ``False`` never; a function is called
            with a :class:`Progress` about ten times a second and at the end of each stage.
    """
    if callable(progress):
        call = progress
        yield lambda stage, done, total: _ignore(call(Progress(stage, done, total)))
    elif not isinstance(progress, (bool, NoneType)):
        raise TypeError(f"progress must be True, False, None or a function, got {progress!r:.80}")
    elif progress or (progress is None and sys.stderr.isatty()):
        with _bar() as report:
            yield report
    else:
        yield None


def _ignore(_result: object) -> None:
    """Drop what a caller's function returns."""


@contextmanager
def _bar() -> Iterator[Report]:
    """Show one line a stage on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    class Amount(DownloadColumn):
        """Bytes for text, a plain number for merges and tensors."""

        def render(self, task):  # type: ignore[no-untyped-def]  # rich's own types vary between versions
            is_text = task.fields["stage"] in ("count", "encode")
            return super().render(task) if is_text else MofNCompleteColumn().render(task)

    labels = {"count": "counting words", "merge": "merging pairs", "encode": "encoding", "encode rows": "encoding rows"}
    labels |= {"load": "loading weights", "score": "scoring tokens", "classify": "labelling texts"}
    columns = (
        TextColumn("{task.description}", table_column=Column(width=15)),
        BarColumn(),
        Amount(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    tasks = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(labels[stage], stage=stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
