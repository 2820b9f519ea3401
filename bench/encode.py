"""Encoding speed against the peers: ``python -m bench.encode --help``.

Every peer encodes the same text with the same vocabulary, in one process and one thread. Its ids are compared with
tiktoken's before anything is timed. The cell of a peer that refuses the text or returns other ids says so. One thread
is timed in CPU time, to which other processes do not add; two threads in wall-clock time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # before a peer starts its thread pool
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from bench import data, measure
from bench.encode_peers import PEERS, Peer, load_peers
from bpe_llama._core import simd_tier

PROMPT = "Explain in three short sentences how byte-level BPE turns a line of text into ids, and name one pitfall"
SLOW_SHARE = 10  # peers below 20 MB/s get a tenth of the text, up to a line end


def main() -> None:
    """Print the tables and append the figures to bench/results/encode.json."""
    parser = measure.parser(__doc__)
    parser.add_argument("--vocabulary", choices=["cl100k", "llama3", "o200k"], default="cl100k")
    parser.add_argument("--megabytes", type=int, default=20, help="of each corpus")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=sorted(JOBS), default=sorted(JOBS), help="only these tables")
    options = parser.parse_args()

    peers, missing = load_peers(options.vocabulary)
    for name, reason in missing.items():
        print(f"{name}: not timed, {reason}")
    rows: list[dict[str, Any]] = []
    for job in options.only:
        print(f"\n## {job}, {options.vocabulary}, {simd_tier()}\n", flush=True)
        rows += JOBS[job](peers, options)
    packages = measure.versions("bpe-llama", *(peer.package for peer in PEERS.values()))
    print(f"\nrecorded in {measure.record('encode', rows, packages)}")


def texts(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time long text into NumPy and into a list, in MB of UTF-8 per second, best of all rounds."""
    rows = []
    for output in ("numpy", "list"):
        for kind in data.KINDS:
            text = data.corpus(kind, megabytes=options.megabytes).read_bytes().decode()
            rows.append(_throughput(f"{kind} into {output}", text, output, peers, options))
    _print_throughput(rows, peers)
    return rows


def worst_cases(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time inputs that are slow for tokenizers, a megabyte each.

    Each round gets a text one character shorter, so that no cache of pre-tokens holds it.
    """
    hard = data.adversarial()
    names = ("one_letter", "spaces", "random_letters", "base64", "every_code_point")
    rows = [_throughput(name, hard[name], "numpy", peers, options) for name in names]
    _print_throughput(rows, peers)
    return rows


def _throughput(
    label: str, text: str, output: str, peers: dict[str, Peer], options: argparse.Namespace
) -> dict[str, Any]:
    short = text[: text.rfind("\n", 0, len(text) // SLOW_SHARE) + 1] or text
    vary = len(text) < 2_000_000
    row: dict[str, Any] = {"text": label, "vocabulary": options.vocabulary}
    candidates: dict[str, Callable[[], object]] = {}
    sizes = {}
    reference = peers["tiktoken"].into("list")
    for name, peer in peers.items():
        own = short if peer.slow else text
        run = peer.into(output)
        try:
            verdict = _verdict(run(own), reference(own))
        except Exception as error:
            verdict = f"refuses: {' '.join(str(error).split())[:40]}"
        if verdict:
            row[name] = verdict
            continue
        sizes[name] = len(own.encode())
        turns = itertools.cycle([own[: len(own) - turn] for turn in range(options.rounds + 1)] if vary else [own])
        candidates[name] = lambda run=run, turns=turns: run(next(turns))  # type: ignore[misc]
    for name, timing in measure.interleaved(candidates, options.rounds, clock=time.process_time).items():
        row[name] = {"mb_s_best": sizes[name] / timing.best / 1e6, "mb_s_median": sizes[name] / timing.median / 1e6}
    return row


def _verdict(ids: Any, expected: list[int]) -> str:
    if len(ids) == len(expected) and np.array_equal(np.asarray(ids), np.asarray(expected)):
        return ""
    return "wrong ids"


def _print_throughput(rows: list[dict[str, Any]], peers: dict[str, Peer]) -> None:
    def cell(value: Any) -> str:
        return value if isinstance(value, str) else f"{value['mb_s_best']:.1f}"

    table = []
    for row in rows:
        others = [row[name]["mb_s_best"] for name in peers if name != "ours" and isinstance(row[name], dict)]
        ratio = f"{row['ours']['mb_s_best'] / max(others):.2f}x" if isinstance(row["ours"], dict) and others else "-"
        table.append([row["text"], *(cell(row[name]) for name in peers), ratio])
    print(measure.markdown(["MB/s", *peers, "ours / best peer"], table))


def prompts(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one short prompt into a list, in microseconds per call."""
    expected = peers["tiktoken"].into("list")(PROMPT)
    runs = {name: peer.into("list") for name, peer in peers.items()}
    wrong = [name for name, run in runs.items() if list(run(PROMPT)) != expected]
    candidates = {name: (lambda run=run: run(PROMPT)) for name, run in runs.items() if name not in wrong}
    timings = measure.interleaved(candidates, options.rounds * 10, calls=300, clock=time.process_time)
    row: dict[str, Any] = {"text": f"prompt of {len(PROMPT)} characters", "vocabulary": options.vocabulary}
    row |= dict.fromkeys(wrong, "wrong ids") | {
        n: {"us_best": t.best * 1e6, "us_median": t.median * 1e6} for n, t in timings.items()
    }
    cells = [row[n] if isinstance(row[n], str) else f"{row[n]['us_best']:.2f}" for n in peers]
    print(measure.markdown(["µs", *peers], [[row["text"], *cells]]))
    return [row]


def loading(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time loading the vocabulary from its file and encoding three characters, in a new process each time.

    The memory is the increase of resident memory over that after importing the peer: vocabulary, tables and caches.
    """
    rows: list[dict[str, Any]] = []
    for name in peers:
        seen = [_in_child(name, options.vocabulary) for _ in range(max(3, options.rounds // 3))]
        best, memory = min(child.load_s for child in seen), min(child.memory_mb for child in seen)
        rows.append({"peer": name, "vocabulary": options.vocabulary, "load_s": best, "rss_mb": memory})
    table = [[row["peer"], f"{row['load_s'] * 1000:.0f}", f"{row['rss_mb']:.0f}"] for row in rows]
    print(measure.markdown(["", "load, ms", "memory of the loaded vocabulary, MB"], table))
    return rows


def first_pass(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the first long text of a new process into NumPy, without and with loading the vocabulary."""
    rows: list[dict[str, Any]] = []
    for kind in data.KINDS:
        text = data.corpus(kind, megabytes=options.megabytes)
        row: dict[str, Any] = {"text": kind, "vocabulary": options.vocabulary}
        turns = [name for _ in range(max(3, options.rounds // 3)) for name in peers]
        seen: dict[str, list[Child]] = {name: [] for name in peers}
        for name in turns:
            seen[name].append(_in_child(name, options.vocabulary, str(text)))
        for name, children in seen.items():
            row[name] = {
                "mb_s_best": max(child.text_mb / child.first_s for child in children),
                "with_load_mb_s_best": max(child.text_mb / (child.load_s + child.first_s) for child in children),
            }
        rows.append(row)
    for figure, label in (("mb_s_best", "first pass"), ("with_load_mb_s_best", "first pass and loading")):
        table = [[row["text"], *(f"{row[name][figure]:.0f}" for name in peers)] for row in rows]
        print(measure.markdown([f"MB/s, {label}", *peers], table), end="\n\n")
    return rows


class Child(NamedTuple):
    """The figures of a new process: load time, its memory, the size of the text, the time of its first encoding."""

    load_s: float
    memory_mb: float
    text_mb: float
    first_s: float


def _in_child(name: str, vocabulary: str, path: str = "") -> Child:
    script = """
import sys, time
from pathlib import Path
from bench.encode import SLOW_SHARE
from bench.encode_peers import PEERS
from bench.measure import resident_mb
name, vocabulary, path = sys.argv[1:]
peer = PEERS[name]()
peer.prepare(vocabulary)
text = Path(path).read_bytes().decode() if path else ""
text = text[: len(text) // SLOW_SHARE] if peer.slow else text
before, started = resident_mb(), time.process_time()
peer.load(vocabulary)
run = peer.into("numpy")
run("a b")
loaded, after = time.process_time(), resident_mb()
began = time.process_time()
run(text)
first = time.process_time() - began
print(loaded - started, after - before, len(text.encode()) / 1e6, first)
"""
    command = [sys.executable, "-c", script, name, vocabulary, path]
    out = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    return Child(*map(float, out.split()))


def two_threads(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a batch of documents on one thread and on two."""
    ours: Any = peers["ours"].loaded
    rows: list[dict[str, Any]] = []
    for kind in data.KINDS:
        text = data.corpus(kind, megabytes=options.megabytes).read_bytes().decode()
        documents = [text[i : i + 4000] for i in range(0, len(text), 4000)]
        timings = measure.interleaved(
            {
                "1 thread": lambda docs=documents: ours.encode_batch_to_numpy(docs, num_threads=1),  # type: ignore[misc]
                "2 threads": lambda docs=documents: ours.encode_batch_to_numpy(docs, num_threads=2),  # type: ignore[misc]
            },
            options.rounds,
        )
        size = len(text.encode()) / 1e6
        rows.append({"text": kind, **{name: {"mb_s_best": size / t.best} for name, t in timings.items()}})
    table = []
    for row in rows:
        one, two = row["1 thread"]["mb_s_best"], row["2 threads"]["mb_s_best"]
        table.append([row["text"], f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}x"])
    print(measure.markdown(["MB/s, batch of 4,000-character documents", "1 thread", "2 threads", "ratio"], table))
    return rows


JOBS: dict[str, Callable[[dict[str, Peer], argparse.Namespace], list[dict[str, Any]]]] = {
    "texts": texts,
    "worst_cases": worst_cases,
    "prompts": prompts,
    "loading": loading,
    "first_pass": first_pass,
    "two_threads": two_threads,
}

if __name__ == "__main__":
    main()
