"""Small runs in child processes that are killed (SIGKILL) at random moments and resumed until they finish.

`python tests/model/training/killed_run.py 40` kills 40 processes and prints the runs whose results differ.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401, imported here, once for all runs
import numpy as np
import torch._dynamo  # noqa: F401, likewise
from safetensors.torch import load_file

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, lora, training
from bpe_llama.model.training.checkpoints.checkpoint import find_checkpoint

STEPS = 60


def train(out: Path) -> None:
    """Train on padded examples, with dropout, in micro-batches; save a checkpoint every third step."""
    drawn = np.random.default_rng(0)
    texts = [drawn.integers(3, 60, drawn.integers(5, 40)) for _ in range(50)]
    examples = [training.Example(ids, np.where(np.arange(len(ids)) > len(ids) // 2, ids, -100)) for ids in texts]
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = lora.add(LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4)), rank=4, dropout=0.1)
    config = training.TrainConfig(
        max_steps=STEPS,
        batch_size=2,
        gradient_accumulation=2,
        warmup_steps=5,
        learning_rate=1e-2,
        save_every=3,
        log_every=4,
        eval_every=10,
        device="cpu",
    )
    result = training.train_on_examples(
        model, examples[:40], config, out, eval_examples=examples[40:], resume=True, progress=False
    )
    result_values = {"loss": result.loss, "eval_loss": result.eval_loss, "norm": result.grad_norm, "step": result.step}
    (out / "result.json").write_text(json.dumps(result_values))


def start(out: Path) -> int:
    """Start a run in a forked process, which needs no imports, and return the process id."""
    process = os.fork()
    if not process:
        try:
            train(out)
            os._exit(0)
        finally:
            os._exit(1)
    return process


def run(out: Path) -> Path:
    """Run to the end and return the folder."""
    assert os.waitpid(start(out), 0)[1] == 0
    return out


def run_killed(out: Path, draw: random.Random, times: int, seconds: float) -> int:
    """Start the run and kill it within `seconds` of its first new line of metrics, `times` times; then finish it.

    Returns the number of processes that were killed before their end.
    """
    killed = 0
    for _ in range(times):
        before, process = _lines(out), start(out)
        while _lines(out) == before and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, seconds))
        os.kill(process, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    run(out)
    return killed


def _lines(out: Path) -> bytes:
    try:
        return (out / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return b""


def results(out: Path) -> dict[str, Any]:
    """Return what a run computed: its result, its metrics without times, its weights and its optimizer state."""
    checkpoint = find_checkpoint(out)
    assert checkpoint is not None
    tensors = {path.name: load_file(path) for path in checkpoint.glob("*.safetensors")}
    return {
        "result": json.loads((out / "result.json").read_text()),
        "metrics": [
            {key: value for key, value in line.items() if "second" not in key and key not in ("mfu", "data_wait")}
            for line in training.read_metrics(out / "metrics.jsonl")
        ],
        "weights": {
            f"{file}:{name}": tensor.tolist() for file, found in tensors.items() for name, tensor in found.items()
        },
    }


def main(times: int) -> None:
    """Kill `times` processes and print the outcome of each run."""
    folder = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    whole = results(run(folder / "whole"))
    seconds = (time.perf_counter() - started) / 3  # of a whole run, imports and plot included
    draw = random.Random(0)
    killed = lost = runs = 0
    while killed < times:
        out, runs = folder / f"run-{runs}", runs + 1
        ended = run_killed(out, draw, draw.randint(1, 3), seconds)
        same = results(out) == whole
        killed, lost = killed + ended, lost + (not same)
        print(f"{out.name}: killed {ended} times, {'the same results' if same else 'OTHER RESULTS'}", flush=True)
    print(f"{killed} kills, {lost} runs with other results")


if __name__ == "__main__":
    main(int(sys.argv[1]))
