"""Steps of pretraining against the loops of transformers and litgpt: ``python -m bench.pretrain --help``.

A step is forward, backward, clipping and AdamW, on the same ids, from the same weights. Each trainer is a process of
its own, so that its peak memory is its own; the processes take turns within a round. A ratio is that of one round, the
median over the rounds. Seconds are CPU time with one thread, to which other load on the machine adds little, else the
wall-clock's. Losses are compared with ours before a figure is printed.

Two plain products of large matrices take turns with the trainers, by both of torch's libraries; the rate of a step's
floating-point operations is a share of the faster one. A token takes 6 operations per weight of a matrix, and
6 T H N a layer for causal attention (Hoffmann et al. 2022, arXiv:2203.15556, appendix F).

litgpt 0.5.13 pins other versions of transformers' requirements, so it needs an environment of its own:
``pip install litgpt==0.5.13`` there, and ``--litgpt PYTHON`` names its interpreter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import measure
from bench.pretrain_peers import PRODUCT_FLOPS, TRAINERS, load

STEPS_BEFORE = 2  # the first steps allocate memory and choose kernels


@dataclass(frozen=True)
class Shape:
    """A model's shape; the embedding is tied to the head."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def config(self, vocab_size: int) -> dict[str, Any]:
        """Return the fields of a LlamaConfig."""
        return {**vars(self), "vocab_size": vocab_size, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}

    def flops_per_token(self, vocab_size: int, length: int) -> float:
        """Return the floating-point operations of a training step, per token."""
        head = self.hidden_size // self.num_attention_heads
        attention = 2 * self.hidden_size**2 + 2 * self.hidden_size * head * self.num_key_value_heads
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        matrices = self.num_hidden_layers * layer + vocab_size * self.hidden_size
        return 6 * matrices + 6 * self.num_hidden_layers * length * self.hidden_size


SHAPES = {
    "2M": Shape(192, 512, 4, 6, 2),
    "15M": Shape(384, 1024, 8, 6, 2),
    "135M": Shape(576, 1536, 30, 9, 3),  # SmolLM2-135M's
}
"""By the parameters with the vocabulary that such a model has: 4k, 4k, 49k."""
VOCABULARIES = {"4k": 4096, "49k": 49_152, "128k": 128_256}
CASES = ("2M/4k", "2M/128k", "15M/4k", "15M/49k", "15M/128k", "135M/49k")
PEERS = ("transformers", "litgpt")


def main() -> None:
    """Print a table, and keep its figures."""
    parser = measure.parser(__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="shape/vocabulary, such as 15M/49k")
    parser.add_argument("--dtypes", nargs="*", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--litgpt", metavar="PYTHON", help="interpreter of an environment with litgpt")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, shape, vocabulary, dtype, threads = options.worker
        work(name, f"{shape}/{vocabulary}", dtype, int(threads), options.rows, options.length)
        return
    rows: list[dict[str, Any]] = []
    print(measure.markdown(HEADER, []), flush=True)
    try:
        for case in options.cases:
            for dtype in options.dtypes:
                for threads in options.threads:
                    rows.append(compare(case, dtype, threads, options))
                    print("| " + " | ".join(line(rows[-1])) + " |", flush=True)
    finally:  # what was measured before an error or Ctrl-C is kept
        if rows:
            keep(rows, options)


def keep(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Append the figures to bench/results/pretrain.json and write bench/results/pretrain.md."""
    packages = measure.versions("torch", "transformers")
    packages["litgpt"] = version_of_litgpt(options.litgpt) if options.litgpt else None
    print(f"\nrecorded in {measure.record('pretrain', rows, packages)}")
    machine = measure.machine()
    said = f"{machine['processor']}, {tier()}, {machine['cores']} cores, commit {machine['commit']}, {packages}"
    said += f"; {options.rows} sequences of {options.length} tokens a step, {options.rounds} rounds."
    text = f"`python -m bench.pretrain`: {said}\n\n{measure.markdown(HEADER, [line(row) for row in rows])}\n"
    (measure.RESULTS / "pretrain.md").write_text(text, encoding="utf-8")


HEADER = [
    "shape/vocabulary",
    "arithmetic",
    "threads",
    "ours: tokens a second, best (median)",
    "of a large product",
    "transformers",
    "ours against it",
    "litgpt",
    "ours against it",
    "peak MB: ours, transformers, litgpt",
]


def line(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""

    def rate(name: str) -> str:
        return f"{row[name]['best']:,.0f} ({row[name]['median']:,.0f})" if name in row else "not run"

    def ratio(name: str) -> str:
        return f"{row[name]['ratio']:.2f}x" if name in row else ""

    memory = ", ".join(f"{row[name]['megabytes']:,.0f}" if name in row else "–" for name in ("ours", *PEERS))
    cells = [row["case"], row["dtype"], str(row["threads"]), rate("ours"), f"{row['share']:.0%}"]
    return [*cells, rate("transformers"), ratio("transformers"), rate("litgpt"), ratio("litgpt"), memory]


def compare(case: str, dtype: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the trainers of a case in turns and return their rates, memory and ratios."""
    interpreters = {"ours": sys.executable, "transformers": sys.executable, "product": sys.executable}
    if options.litgpt:
        interpreters["litgpt"] = options.litgpt
    workers = {name: Worker(name, python, case, dtype, threads, options) for name, python in interpreters.items()}
    try:
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        names = list(workers)
        for turn in range(STEPS_BEFORE + options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seen[name].append(workers[name].step(turn))
        memory = {name: worker.end() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.process.kill()
    tolerance = 2e-4 if dtype == "float32" else 2e-2
    clock = "cpu" if threads == 1 else "wall"
    tokens = options.rows * options.length
    row: dict[str, Any] = {"case": case, "dtype": dtype, "threads": threads}
    ours = [found[clock] for found in seen["ours"][STEPS_BEFORE:]]
    for name in (name for name in ("ours", *PEERS) if name in seen):
        for turn, (mine, theirs) in enumerate(zip(seen["ours"], seen[name], strict=True)):
            if not math.isclose(mine["loss"], theirs["loss"], rel_tol=tolerance):
                raise ValueError(
                    f"{case}, {dtype}: at step {turn} our loss is {mine['loss']}, {name}'s {theirs['loss']}"
                )
        times = [found[clock] for found in seen[name][STEPS_BEFORE:]]
        row[name] = {
            "best": tokens / min(times),
            "median": tokens / statistics.median(times),
            "ratio": statistics.median(theirs / mine for mine, theirs in zip(ours, times, strict=True)),
            "megabytes": memory[name],
        }
    shape, _, vocabulary = case.partition("/")
    flops = SHAPES[shape].flops_per_token(VOCABULARIES[vocabulary], options.length) * tokens
    product = min(found[clock] for found in seen["product"][STEPS_BEFORE:])
    row["share"] = flops / min(ours) / (PRODUCT_FLOPS / product)
    return row


class Worker:
    """A trainer in a process of its own, which takes a step when told to."""

    def __init__(
        self, name: str, python: str, case: str, dtype: str, threads: int, options: argparse.Namespace
    ) -> None:
        command = [python, "-m", "bench.pretrain", "--rows", str(options.rows), "--length", str(options.length)]
        command += ["--worker", name, *case.split("/"), dtype, str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": _package()}
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.receive()

    def receive(self) -> dict[str, float]:
        """Return the next line of figures."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if text.startswith("{"):
                found: dict[str, float] = json.loads(text)
                return found
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")

    def step(self, turn: int) -> dict[str, float]:
        """Return the loss and the seconds of a step."""
        self.send(str(turn))
        return self.receive()

    def end(self) -> float:
        """Return the megabytes that the process held at most, beyond those before its model was built."""
        self.send("end")
        return self.receive()["megabytes"]

    def send(self, text: str) -> None:
        """Write a line to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()


def work(name: str, case: str, dtype: str, threads: int, rows: int, length: int) -> None:
    """Take a step for each line of standard input, and print its figures."""
    import torch

    from bench.train import peak_megabytes, resident_megabytes

    torch.set_num_threads(threads)
    shape, _, vocabulary = case.partition("/")
    vocab_size = VOCABULARIES[vocabulary]
    config = {**SHAPES[shape].config(vocab_size), "max_position_embeddings": length}
    build = TRAINERS[name]
    load(name)
    before = resident_megabytes()
    step = build(config, dtype)
    print(json.dumps({}), flush=True)
    for text in sys.stdin:
        if text.strip() == "end":
            print(json.dumps({"megabytes": peak_megabytes() - before}), flush=True)
            return
        ids = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(int(text)))
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step(ids)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"loss": loss, "wall": wall, "cpu": cpu}), flush=True)


def _package() -> str:
    """Return the folder to import bpe_llama from, which the environment of litgpt lacks."""
    import bpe_llama

    return str(Path(bpe_llama.__file__).parents[1])


def version_of_litgpt(python: str) -> str:
    """Return the version of litgpt in another environment."""
    command = [python, "-c", "import importlib.metadata; print(importlib.metadata.version('litgpt'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def tier() -> str:
    """Return the widest vector instructions that torch uses."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


if __name__ == "__main__":
    main()
