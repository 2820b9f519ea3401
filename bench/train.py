"""Training speed and memory against the peers: ``python -m bench.train --help``.

Every trainer runs in its own process, on the same text, pattern and vocabulary size; the processes take turns. Seconds
are CPU time over all threads, memory is the increase of the peak over the resident memory before the call. bpe_llama
and gigabpe read the files; the others take an iterator of documents of whole lines. The learned tokens are compared by
digest with ours, trained with the peer's tie order on the peer's documents:

- ``tokenizers`` orders ties as bpe_llama does.
- ``rustbpe`` orders ties by byte value, as ``tie_order="bytes"`` does.
- ``gigabpe`` takes each line as a document.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import data, measure

PATTERN = "r50k"  # the one pattern that gigabpe knows
DOCUMENT_BYTES = 100_000
JOBS: dict[str, tuple[dict[str, int], int]] = {
    "20 MB mix, 32k": ({"prose": 7, "code": 7, "multilingual": 6}, 32_000),
    "100 MB mix, 32k": ({"prose": 40, "code": 40, "multilingual": 20}, 32_000),
    "60 MB multilingual, 64k": ({"multilingual": 60}, 64_000),
    "1 GB mix, 128k": ({"prose": 93, "code": 850, "multilingual": 57}, 128_000),
}
"""Job to megabytes of each corpus and vocabulary size."""

AGREES_WITH = {"gigabpe": "ours, lines", "rustbpe": "ours, ties by bytes", "tokenizers": "ours, iterator"}


def main() -> None:
    """Print one table per job and append the figures to bench/results/train.json."""
    parser = measure.parser(__doc__)
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=["20 MB mix, 32k"])
    parser.add_argument("--peers", nargs="*", choices=list(AGREES_WITH), default=list(AGREES_WITH))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a peer is stopped and dropped")
    parser.add_argument("--worker", nargs=2, metavar=("TRAINER", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        trainer, job = options.worker
        print(json.dumps(work(trainer, job, options.threads)))
        return
    rows = []
    for job in options.jobs:
        print(f"\n## {job}, {options.threads} threads\n", flush=True)
        rows += compare(job, options)
    packages = measure.versions("bpe-llama", *AGREES_WITH)
    print(f"\nrecorded in {measure.record('train', rows, packages)}")


def compare(job: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the trainers of a job interleaved, print their table and return its rows."""
    checks = {AGREES_WITH[peer] for peer in options.peers}
    runs: dict[str, list[dict[str, Any]]] = {}
    problems: dict[str, str] = {}
    for turn in range(options.rounds):
        for trainer in ["ours", *options.peers, *(checks if turn == 0 else ())]:
            if trainer not in problems:
                outcome = run_process(trainer, job, options)
                if isinstance(outcome, str):
                    problems[trainer] = outcome
                else:
                    runs.setdefault(trainer, []).append(outcome)
    rows = []
    for trainer in ["ours", *options.peers]:
        if trainer in runs:
            rows.append({"job": job, "trainer": trainer, "threads": options.threads, **summary(runs, trainer)})
    table = [
        [
            row["trainer"],
            f"{row['cpu']:.2f}",
            f"{row['cpu'] / rows[0]['cpu']:.1f}x",
            f"{row['wall']:.2f}",
            f"{row['megabytes']:.0f}",
            "" if row["trainer"] == "ours" else "yes" if row["agrees"] else "NO",
        ]
        for row in rows
    ]
    print(
        measure.markdown(
            ["trainer", "CPU s", "ratio", "wall s", "peak MB", "tokens equal ours with its tie order"], table
        )
    )
    for trainer, problem in problems.items():
        print(f"\n{trainer}: not timed, {problem}")
    return rows


def summary(runs: dict[str, list[dict[str, Any]]], trainer: str) -> dict[str, Any]:
    """Return a trainer's best figures, and whether its tokens equal ours with its tie order and documents."""
    best = {key: min(run[key] for run in runs[trainer]) for key in ("cpu", "wall", "megabytes")}
    twin = AGREES_WITH.get(trainer, "ours")
    agrees = twin in runs and {run["tokens"] for run in runs[trainer]} == {run["tokens"] for run in runs[twin]}
    return {**best, "agrees": agrees, "tokens": runs[trainer][0]["tokens"]}


def run_process(trainer: str, job: str, options: argparse.Namespace) -> dict[str, Any] | str:
    """Return the figures of the worker, or its error message."""
    command = [sys.executable, "-m", "bench.train", "--threads", str(options.threads), "--worker", trainer, job]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "true"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, env=environment)
    except subprocess.TimeoutExpired:
        return f"stopped after {options.limit:.0f} s"
    if result.returncode:
        return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    outcome: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return outcome


def work(trainer: str, job: str, threads: int) -> dict[str, Any]:
    """Train once in this process and return seconds, memory and a digest of the tokens."""
    sizes, vocab_size = JOBS[job]
    paths = [data.corpus(kind, megabytes) for kind, megabytes in sizes.items()]
    train = TRAINERS[trainer]
    train(paths[:0], 256 + 4, threads)  # warm-up of imports and thread pools
    before, wall, cpu = resident_megabytes(), time.perf_counter(), time.process_time()
    tokens = train(paths, vocab_size, threads)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    digest = hashlib.sha256(repr(tokens()).encode()).hexdigest()[:16]
    return {"wall": wall, "cpu": cpu, "megabytes": peak_megabytes() - before, "tokens": digest}


def resident_megabytes() -> float:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_megabytes() -> float:
    """Return the peak resident memory of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


Tokens = Callable[[], Sequence[bytes]]
"""Returns the merged tokens in order; called after timing."""


def documents(paths: Iterable[Path]) -> Iterator[str]:
    """Yield documents of whole lines, read lazily."""
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            while lines := file.readlines(DOCUMENT_BYTES):
                yield "".join(lines)
    yield "so that there is something to train on: one one one"


def lines(paths: Iterable[Path]) -> Iterator[str]:
    """Yield lines with their ends."""
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file


def train_ours(paths: Sequence[Path], vocab_size: int, threads: int) -> Tokens:
    """Train bpe_llama on the files."""
    from bpe_llama import Tokenizer

    tok = Tokenizer.train(paths or __file__, vocab_size, pattern=PATTERN, num_threads=threads, progress=False)
    return lambda: [tok.id_to_bytes(index) for index in range(256, tok.vocab_size)]


def train_ours_on(
    read: Callable[[Iterable[Path]], Iterator[str]],
    paths: Sequence[Path],
    vocab_size: int,
    threads: int,
    tie_order: str = "ids",
) -> Tokens:
    """Train bpe_llama on a peer's documents with its tie order."""
    from bpe_llama import Tokenizer

    texts = read(paths) if paths else documents(())
    tok = Tokenizer.train_from_iterator(
        texts, vocab_size, pattern=PATTERN, num_threads=threads, tie_order=tie_order, progress=False
    )
    return lambda: [tok.id_to_bytes(index) for index in range(256, tok.vocab_size)]


def train_gigabpe(paths: Sequence[Path], vocab_size: int, threads: int) -> Tokens:
    """Train gigabpe on the files."""
    import gigabpe

    files = [str(path) for path in paths] or [__file__]
    _, merges = gigabpe.train_bpe(files, vocab_size, special_tokens=[], pretokenizer="bytelevel", threads=threads)
    # Its alphabet holds only the bytes that occur, so it learns more merges.
    return lambda: [spelled(left + right) for left, right in merges][: vocab_size - 256]


def train_rustbpe(paths: Sequence[Path], vocab_size: int, threads: int) -> Tokens:
    """Train rustbpe; its threads are set in the environment."""
    import rustbpe

    from bpe_llama import _core

    tok = rustbpe.Tokenizer()
    tok.train_from_iterator(documents(paths), vocab_size, pattern=_core.pattern_regex(PATTERN))
    return lambda: [bytes(token) for token, rank in sorted(tok.get_mergeable_ranks(), key=rank_of) if rank >= 256]


def rank_of(item: tuple[object, int]) -> int:
    """Return the rank of a pair of token and rank."""
    return item[1]


def train_tokenizers(paths: Sequence[Path], vocab_size: int, threads: int) -> Tokens:
    """Train tokenizers' BpeTrainer; its threads are set in the environment."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(documents(paths), trainer)
    return lambda: [spelled(token) for token, rank in sorted(tok.get_vocab().items(), key=rank_of) if rank >= 256]


def spelled(token: str) -> bytes:
    """Return the bytes of a token written in GPT-2's alphabet."""
    return bytes(BYTES[letter] for letter in token)


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(rest)}


BYTES = _byte_alphabet()
TRAINERS: dict[str, Callable[[Sequence[Path], int, int], Tokens]] = {
    "ours": train_ours,
    "ours, lines": functools.partial(train_ours_on, lines),
    "ours, iterator": functools.partial(train_ours_on, documents),
    "ours, ties by bytes": functools.partial(train_ours_on, documents, tie_order="bytes"),
    "gigabpe": train_gigabpe,
    "rustbpe": train_rustbpe,
    "tokenizers": train_tokenizers,
}

if __name__ == "__main__":
    main()
