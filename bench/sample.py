"""Time per sampled id: `Sampler` against torch's sort (as in Meta's code), transformers' warpers, NumPy's argsort.

    python -m bench.sample                 # the table, and bench/results/sample.jsonl
    python -m bench.sample --rounds 5      # quicker, noisier
    python -m bench.sample --simd avx2     # as on a CPU without AVX-512: ours and torch's
    python -m bench.sample --cuda          # the GPU alone, beside the bar

One thread, p = 0.9, T = 0.8; with a GPU, also the torch twin in a CUDA graph. Peers take turns within each round, and
the best round is reported. torch.logsumexp, one pass over the logits, is the lower bound. Before anything is timed, all
must keep the same ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from bench import measure
from bench.cuda.bars import about, beside_bar, require_cuda
from bpe_llama import Sampler
from bpe_llama._core import simd_tier
from bpe_llama.model.sampling import sample_logits

TOP_P, TEMPERATURE = 0.9, 0.8


def flat_row(vocab_size: int) -> np.ndarray:
    """Return standard normal logits: half the vocabulary survives p = 0.9."""
    return np.random.default_rng(1).normal(size=vocab_size).astype(np.float32)


def real_row(vocab_size: int) -> np.ndarray:
    """Return logits like those of a language model: a wide bulk and twenty ids far above it."""
    random = np.random.default_rng(2)
    row = random.normal(size=vocab_size) * 2.2
    row[random.choice(vocab_size, 20, replace=False)] += 6 + 8 * random.random(20)
    return row.astype(np.float32)


def meta_kept(row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probs = torch.softmax(row / TEMPERATURE, dim=-1)
    ordered, ids = torch.sort(probs, dim=-1, descending=True)
    ordered[torch.cumsum(ordered, dim=-1) - ordered > TOP_P] = 0
    return ordered, ids


def meta(row: torch.Tensor) -> torch.Tensor:
    ordered, ids = meta_kept(row)
    return ids.gather(-1, torch.multinomial(ordered / ordered.sum(-1, keepdim=True), 1))


WARPERS = (TemperatureLogitsWarper(TEMPERATURE), TopPLogitsWarper(TOP_P))


def warp(row: torch.Tensor) -> torch.Tensor:
    scores = row[None]
    for warper in WARPERS:
        scores = warper(None, scores)
    return torch.softmax(scores, dim=-1)


def warpers(row: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(warp(row), 1)


def argsort(row: np.ndarray, random: np.random.Generator) -> int:
    weights = np.exp((row - row.max()) / TEMPERATURE)
    order = np.argsort(-row)
    mass = np.cumsum(weights[order])
    kept = int(np.searchsorted(mass, TOP_P * mass[-1])) + 1
    return int(order[np.searchsorted(mass[:kept], random.random() * mass[kept - 1])])


def microseconds(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the best and the median microseconds per call of each job, in timings of about 20 ms."""
    calls = {}
    for name, job in jobs.items():
        start = time.perf_counter()
        job()
        calls[name] = max(1, int(0.02 / max(time.perf_counter() - start, 1e-6)))
    timings = measure.interleaved(jobs, rounds, calls)
    return {name: (timing.best * 1e6, timing.median * 1e6) for name, timing in timings.items()}


def check_kept(row: np.ndarray, sampler: Sampler) -> None:
    """Raise unless all keep the same ids, except for ids at the boundary, where float32 sums differ."""
    ours = set(np.flatnonzero(sampler.probs(row)))
    ordered, ids = meta_kept(torch.from_numpy(row))
    others = {
        "meta": set(ids[ordered > 0].tolist()),
        "transformers": set(warp(torch.from_numpy(row))[0].nonzero()[:, 0].tolist()),
    }
    for name, theirs in others.items():
        # The error of float32 cumulative sums over a vocabulary is about 1e-6, a few ids of a flat row.
        if len(ours ^ theirs) > max(1, len(row) // 10_000):
            raise AssertionError(f"{name} keeps {len(theirs)} ids, ours {len(ours)}, {len(ours ^ theirs)} differ")


def one_row(vocab_size: int, kind: str, row: np.ndarray, rounds: int) -> dict[str, Any]:
    sampler = Sampler(temperature=TEMPERATURE, top_p=TOP_P)
    check_kept(row, sampler)
    tensor = torch.from_numpy(row)
    random = np.random.default_rng(3)
    jobs: dict[str, Callable[[], object]] = {
        "bpe_llama": lambda: sampler.sample(row),
        "torch.logsumexp": lambda: torch.logsumexp(tensor, 0),
        "torch sort (Meta)": lambda: meta(tensor),
        "transformers": lambda: warpers(tensor),
        "NumPy argsort": lambda: argsort(row, random),
    }
    return {"job": f"{vocab_size:,} {kind}", "times": microseconds(jobs, rounds)}


def batch(rows: int, vocab_size: int, rounds: int) -> dict[str, Any]:
    sampler = Sampler(temperature=TEMPERATURE, top_p=TOP_P)
    logits = np.random.default_rng(4).normal(size=(rows, vocab_size)).astype(np.float32)
    jobs = {f"{n} threads": (lambda n=n: sampler.sample(logits, num_threads=n)) for n in (1, 2)}
    return {"job": f"batch of {rows} x {vocab_size:,}", "times": microseconds(jobs, rounds)}


def on_cuda(rows: int, dtype: torch.dtype, row: np.ndarray, rounds: int) -> dict[str, Any]:
    """Return the time of a CUDA graph that samples from each row, and that of the sort on the same device."""
    logits = torch.from_numpy(row).expand(rows, -1).to("cuda", dtype).contiguous()
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    samplers: dict[str, Callable[[], torch.Tensor]] = {
        "bpe_llama": lambda: sample_logits(logits, temperature=TEMPERATURE, top_p=TOP_P, step=step),
        "torch sort (Meta)": lambda: meta(logits.float()),
    }
    expected = Sampler(temperature=TEMPERATURE, top_p=TOP_P).sample(logits[0].cpu(), step=0)
    if samplers["bpe_llama"]().tolist() != [expected] * rows:
        raise AssertionError(f"the GPU does not sample {expected}, as the CPU does")
    jobs: dict[str, Callable[[], object]] = {}
    for name, job in samplers.items():
        job()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                job()
        except RuntimeError as error:
            if name == "bpe_llama":
                raise
            print(f"{name} cannot be captured: {str(error).splitlines()[0]}")
            continue

        def replay(graph: torch.cuda.CUDAGraph = graph) -> None:
            for _ in range(100):
                graph.replay()
            torch.cuda.synchronize()

        jobs[name] = replay
    times = {name: (best / 100, median / 100) for name, (best, median) in microseconds(jobs, rounds).items()}
    return {"job": f"cuda, {rows} x {len(row):,} {str(dtype).removeprefix('torch.')}", "times": times}


def print_graphs(rounds: int) -> list[dict[str, Any]]:
    """Print and return the times of the sampler's CUDA graphs, microseconds a step."""
    graphs = []
    for size in (1, 64):
        for dtype in (torch.bfloat16, torch.float32):
            graphs.append(on_cuda(size, dtype, flat_row(128_256), rounds))
            _, *others = (f"{name} {best:.0f}us" for name, (best, _) in graphs[-1]["times"].items())
            said = beside_bar(graphs[-1]["times"]["bpe_llama"][0], "sampler")
            print(f"{graphs[-1]['job']}: {', '.join([said, *others])}", flush=True)
    return graphs


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cuda", action="store_true", help="only the sampler's CUDA graphs")
    chosen = parser.parse_args()
    rounds = chosen.rounds
    torch.set_num_threads(1)
    if chosen.cuda:
        require_cuda("cuda")
        print(about("cuda"))
        print_graphs(rounds)
        return
    results = []
    for vocab_size in (1_024, 49_152, 128_256):
        for kind, make in (("real", real_row), ("flat", flat_row)):
            results.append(one_row(vocab_size, kind, make(vocab_size), rounds))
    together = batch(32, 128_256, rounds)

    names = list(results[0]["times"])
    print(f"Microseconds per row, {simd_tier()}, best of {rounds} interleaved rounds; in brackets the ratio to ours.\n")
    print("| logits | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for result in results:
        ours = result["times"]["bpe_llama"][0]
        cells = [
            f"{best:,.1f}" + ("" if name == "bpe_llama" else f" ({best / ours:.1f})")
            for name, (best, _) in result["times"].items()
        ]
        print(f"| {result['job']} | " + " | ".join(cells) + " |")
    one, two = (together["times"][f"{n} threads"][0] for n in (1, 2))
    print(f"\n{together['job']}: {one:,.0f} us on one thread, {two:,.0f} on two: {one / two:.2f}x")
    graphs: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        graphs = print_graphs(rounds)
    else:
        print("No CUDA device: the table omits batches of 1 and 64 rows on a GPU.")

    versions = measure.versions("bpe-llama", "torch", "transformers", "numpy")
    measure.append("sample", "sample", versions=versions, results=[*results, together, *graphs])


if __name__ == "__main__":
    main()
