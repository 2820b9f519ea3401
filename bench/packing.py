"""Held-out loss by tokens trained: documents concatenated, and packed by best fit with document masks.

Each document repeats a phrase of its own, so what it needs is in it and what precedes it in a row is noise. Runs of a
seed have one model, learning rate and number of rows; padding is not counted. The loss is that of each document alone.

Run `python -m bench.packing`; it writes `bench/results/packing.md`. Two minutes on one core.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench import measure
from bench.measure import RESULTS
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training
from bpe_llama.model.training.data.packing import PackedRows
from bpe_llama.model.training.data.rows import RowBatches
from bpe_llama.model.training.held_out import held_out_loss

WINDOW, ROWS, VOCABULARY, HELD_OUT = 128, 8, 64, 200
VARIANTS: dict[str, dict[str, Any]] = {
    "concatenated": {"packing": "concatenate"},
    "concatenated, masks": {"packing": "concatenate", "document_mask": True},
    "best fit, masks": {"packing": "best_fit"},
}


def documents(count: int) -> list[npt.NDArray[np.uint16]]:
    """Return documents that repeat a phrase of 2 to 6 tokens after the id 1."""
    random = np.random.default_rng(0)
    found = []
    for size in random.integers(4, 60, count):
        phrase = random.integers(2, VOCABULARY, random.integers(2, 7))
        found.append(np.array([1, *np.resize(phrase, size)], np.uint16))
    return found


class HeldOut(training.Callback):
    """Evaluates a model at intervals by tokens, each document alone."""

    def __init__(self, batches: list[training.Batch], every: int) -> None:
        self.batches, self.every, self.curve = batches, every, [(0, float("nan"))]

    def on_step(self, run: training.Run, metrics: dict[str, float]) -> None:
        if run.step % self.every == 0 or not run.unfinished():
            self.curve.append((run.tokens, held_out_loss(run.model, self.batches).loss))


def reached(curve: list[tuple[int, float]], loss: float) -> float:
    """Return the tokens after which a curve is at or below a loss for the first time, interpolated."""
    for (before, high), (after, low) in pairwise(curve[1:]):
        if low <= loss:
            return after if high == low else before + (after - before) * max(0.0, (high - loss) / (high - low))
    return float("nan")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    found = documents(6_000)
    np.save(folder / "tokens.npy", np.concatenate(found[HELD_OUT:]))
    np.save(folder / "tokens.documents.npy", np.cumsum([0, *map(len, found[HELD_OUT:])]))
    starts = np.cumsum([0, *map(len, found[:HELD_OUT])])
    rows = PackedRows(np.concatenate(found[:HELD_OUT]), starts, window=WINDOW, vocab_size=VOCABULARY)
    alone = [RowBatches(rows, ROWS).batch(index) for index in range(rows.rows_per_epoch // ROWS)]
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
    )
    lines = [
        f"Documents of {int(np.median([len(part) for part in found]))} tokens in the median, rows of {WINDOW}, "
        f"{options.steps} steps of {ROWS} rows, AdamW. torch {torch.__version__}.",
        "",
        "| seed | rows | tokens | held-out loss | tokens to the loss of concatenation |",
        "|---|---|---|---|---|",
    ]
    for seed in range(options.seeds):
        target = None
        for name, changes in VARIANTS.items():
            config = training.TrainConfig(
                max_steps=options.steps,
                sequence_length=WINDOW,
                batch_size=ROWS,
                learning_rate=3e-3,
                warmup_steps=10,
                eval_fraction=0.0,
                seed=seed,
                device="cpu",
                **changes,
            )
            curve = HeldOut(alone, 8)
            model, out = LlamaForCausalLM(shape, seed=seed), folder / f"{name}-{seed}"
            result = training.train(model, folder / "tokens.npy", config, out, progress=False, callbacks=[curve])
            loss = curve.curve[-1][1]
            target = loss if target is None else target
            needed = reached(curve.curve, target)
            share = f"{needed:,.0f} ({needed / result.tokens:.0%})"
            lines.append(f"| {seed} | {name} | {result.tokens:,} | {loss:.4f} | {share} |")
    (RESULTS / "packing.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
