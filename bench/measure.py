"""Interleaved timing of peers, and the files of results.

On a shared machine, load slows all candidates of a round alike. So the candidates take turns within each round, and the
best and the median over the rounds are reported.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpe_llama._core import simd_tier, simd_tiers

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the best and the median over the rounds."""

    best: float
    median: float


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: Mapping[str, int] | int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Return the timing of each candidate: after one warm-up call, all take turns, in rotating order, in each round.

    Args:
        candidates: Name to a function without arguments.
        rounds: Timings per candidate; at least 9 on a noisy machine.
        calls: Calls per timing, of all candidates or by name; several for calls of microseconds.
        clock: ``time.process_time`` for the processor's time, which other processes do not lengthen.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    names = list(candidates)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            count = calls if isinstance(calls, int) else calls[name]
            run = candidates[name]
            started = clock()
            for _ in range(count):
                run()
            times[name].append((clock() - started) / count)
    return {name: Timing(min(seen), statistics.median(seen)) for name, seen in times.items()}


def clock() -> float:
    """Return the CPU time with one torch thread, as other load does not add to it; else the wall-clock time."""
    import torch

    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def resident_mb() -> float:
    """Return the resident memory of this process in MB; NaN if the system does not report it.

    Not the peak, which imports may have reached. Freed memory is returned to the system first, if the C library can.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, AttributeError, TypeError):
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(markdown(["text", "ours"], [["prose", "343"]]))
    | text | ours |
    |---|---|
    | prose | 343 |
    """
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with a script's docstring as help, and ``--simd``, which `bench` itself has obeyed."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--simd", choices=simd_tiers(), help="cap on the CPU instructions of our kernels and of torch")
    return made


def machine() -> dict[str, Any]:
    """Return processor, instructions in use, cores, load, system, Python, commit and date."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()
    return {
        "processor": processor,
        "simd": simd_tier(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Return each package's version, ``None`` if it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def record(bench: str, rows: Sequence[Mapping[str, Any]], packages: Mapping[str, str | None]) -> Path:
    """Append one run to ``bench/results/BENCH.json``, a list of runs, and return the file's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{bench}.json"
    runs = json.loads(path.read_text("utf-8")) if path.exists() else []
    runs.append({"machine": machine(), "packages": packages, "rows": [_plain(row) for row in rows]})
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)
    return path


def append(file: str, bench: str, **values: Any) -> None:
    """Append one run as a line of JSON to ``bench/results/FILE.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{file}.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"bench": bench, **machine(), **values}) + "\n")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: asdict(value) if isinstance(value, Timing) else value for key, value in row.items()}
