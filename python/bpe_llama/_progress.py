"""Report the progress of a long call: a bar on the terminal, or the caller's function; print notes unless quiet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from types import NoneType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bpe_llama._arguments import wrong

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


class Progress(NamedTuple):
    """The progress of a long call.

    Attributes:
        stage: ``"count"`` while text is read for training, then ``"merge"``; ``"encode"`` while files are encoded,
            ``"encode rows"`` while a data set is; ``"load"`` while weights are read; ``"score"`` or ``"classify"``
            while a model is evaluated; ``"average"`` while models are averaged; ``"save"`` while weights
            are written; ``"read"`` while conversations are read.
        done: Bytes read, merges done, rows or tensors read, tokens scored, or texts labelled.
        total: All of them; ``None`` where their number is unknown.
    """

    stage: str
    done: int
    total: int | None


ProgressOption: TypeAlias = "bool | Callable[[Progress], object] | None"
Report: TypeAlias = Callable[[str, int, "int | None"], None]


_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Print no notes and show no progress within the block, except progress that is asked for: ``--quiet``."""
    token = _QUIET.set(quiet)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Return whether this code runs within `quietly`."""
    return _QUIET.get()


def note(text: str, *, on_stdout: bool = False) -> None:
    """Print a line for a person, on stderr unless told otherwise; nothing within `quietly`."""
    if not is_quiet():
        print(text, file=sys.stdout if on_stdout else sys.stderr, flush=True)


@contextmanager
def reporting(progress: ProgressOption) -> Iterator[Report | None]:
    """Yield the function that the core calls to report progress, or ``None``.

    Args:
        progress: ``None`` shows a bar if stderr is a terminal and rich is installed, ``True`` always, ``False`` never;
            a function is called with a :class:`Progress` about ten times a second and at the end of each stage. Within
            `quietly`, ``None`` shows nothing.
    """
    if callable(progress):
        call = progress
        yield lambda stage, done, total: _ignore(call(Progress(stage, done, total)))
    elif not isinstance(progress, (bool, NoneType)):
        raise TypeError(wrong("progress", progress, "True, False, None or a function"))
    elif progress or (progress is None and sys.stderr.isatty() and not is_quiet() and find_spec("rich")):
        with _bar() as report:
            yield report
    else:
        yield None


def _ignore(_result: object) -> None:
    """Drop what a caller's function returns."""


_LABELS = {
    "count": "counting words",
    "merge": "merging pairs",
    "encode": "encoding",
    "encode rows": "encoding rows",
    "load": "loading weights",
    "average": "averaging",
    "save": "writing weights",
    "read": "reading rows",
    "score": "scoring tokens",
    "classify": "labelling texts",
}
_OF_BYTES = ("count", "encode")


@contextmanager
def _bar() -> Iterator[Report]:
    """Show one line a stage on stderr: amount, rate, and the time left."""
    from bpe_llama._rich import Console, Text  # isort: split
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column

    class Amount(DownloadColumn):
        """Bytes for text, a plain number for merges and tensors."""

        def render(self, task):  # type: ignore[no-untyped-def]  # rich's own types vary between versions
            return super().render(task) if task.fields["stage"] in _OF_BYTES else MofNCompleteColumn().render(task)

    class Rate(TransferSpeedColumn):
        """Bytes or plain numbers a second."""

        def render(self, task):  # type: ignore[no-untyped-def]
            speed = task.finished_speed or task.speed
            if speed is None or task.fields["stage"] in _OF_BYTES:
                return super().render(task)
            return Text(f"{speed:,.0f}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}", table_column=Column(width=15)),
        BarColumn(),
        Amount(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    tasks = {}
    bars = Bars(*columns, console=Console(stderr=True))

    def report(stage: str, done: int, total: int | None) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(_LABELS[stage], stage=stage)
        bars.update(tasks[stage], completed=done, total=total, refresh=not bars.live.auto_refresh)

    try:
        start_drawing(bars)
        yield report
    finally:
        bars.stop()


def start_drawing(bars: Bars) -> None:
    """Start rich's bars. Where no thread can be started, whoever updates them has to refresh them."""
    try:
        bars.start()
    except RuntimeError:
        bars.live.auto_refresh = False
