"""Held-out loss by tokens trained: documents concatenated, and packed by best fit with document masks.

Documents are the functions and classes of Python's standard library, in random order. Both runs have one model, seed,
learning rate and number of tokens a step; padding is not counted. The held-out loss is that of each document alone; the
last column is that of windows cut from the concatenation, as a model that was trained so sees it.

Run `python -m bench.packing`; it writes `bench/results/packing.md`. A minute on an idle core.
"""

from __future__ import annotations

import argparse
import ast
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import data
from bench.measure import RESULTS
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training
from bpe_llama.model.training.data.packing import PackedRows
from bpe_llama.model.training.data.rows import RowBatches
from bpe_llama.model.training.evaluate import held_out_loss

WINDOW, ROWS, VOCABULARY, HELD_OUT = 256, 4, 1024, 100
VARIANTS: dict[str, dict[str, Any]] = {
    "concatenated": {"packing": "concatenate"},
    "concatenated, masks": {"packing": "concatenate", "document_mask": True},
    "best fit, masks": {"packing": "best_fit"},
}


def documents(count: int) -> list[str]:
    """Return the text of top-level functions and classes, shuffled."""
    found = []
    for path in data.stdlib_corpus():
        try:
            text = path.read_text(encoding="utf-8")
            nodes = ast.parse(text).body
        except (SyntaxError, ValueError):
            continue
        lines = text.splitlines(keepends=True)
        kinds = (ast.FunctionDef, ast.ClassDef)
        found += ["".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes if isinstance(node, kinds)]
    found = sorted({text for text in found if len(text) > 40})
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))[:count]]


class HeldOut(training.Callback):
    """Evaluates a model at intervals by tokens, each document alone."""

    def __init__(self, batches: list[training.Batch], every: int) -> None:
        self.batches, self.every, self.curve = batches, every, [(0, float("nan"))]

    def on_step(self, run: training.Trainer, metrics: dict[str, float]) -> None:
        if run.step % self.every == 0 or not run.unfinished():
            self.curve.append((run.tokens, held_out_loss(run.model, self.batches).loss))


def reached(curve: list[tuple[int, float]], loss: float) -> float:
    """Return the tokens after which a curve is at or below a loss for the first time, interpolated."""
    for (before, high), (after, low) in pairwise(curve[1:]):
        if low <= loss:
            return after if high == low else before + (after - before) * max(0.0, (high - loss) / (high - low))
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--documents", type=int, default=4_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    texts = documents(options.documents)
    tokenizer = Tokenizer.train_from_iterator(texts, VOCABULARY, special_tokens=["<|endoftext|>"], progress=False)
    ids = [np.array([tokenizer.eos_id or 0, *part], np.uint16) for part in tokenizer.encode_batch(texts)]
    tokens, held_out = np.concatenate(ids[HELD_OUT:]), np.concatenate(ids[:HELD_OUT])
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "tokens.documents.npy", np.cumsum([0, *map(len, ids[HELD_OUT:])]))
    rows = PackedRows(
        held_out, np.cumsum([0, *map(len, ids[:HELD_OUT])]), window=WINDOW, vocab_size=tokenizer.vocab_size
    )
    packed = RowBatches(rows, ROWS)
    alone = [packed.batch(index) for index in range(rows.rows_per_epoch // ROWS)]
    lines = [
        f"{len(texts):,} documents of {int(np.median([len(part) for part in ids]))} tokens in the median, "
        f"{len(tokens):,} in all; rows of {WINDOW}, {options.steps} steps of {ROWS} rows. torch {torch.__version__}.",
        "",
        "| seed | rows | tokens | held-out loss, documents | tokens to concatenation's loss | held-out loss, windows |",
        "|---|---|---|---|---|---|",
    ]
    for seed in range(options.seeds):
        target = None
        for name, changes in VARIANTS.items():
            shape = LlamaConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=64,
                intermediate_size=176,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=WINDOW,
                tie_word_embeddings=True,
            )
            model = training.start_as_identity(LlamaForCausalLM(shape, seed=seed))
            config = training.TrainConfig(
                max_steps=options.steps,
                sequence_length=WINDOW,
                batch_size=ROWS,
                learning_rate=1e-2,
                warmup_steps=options.steps // 20,
                eval_fraction=0.0,
                seed=seed,
                device="cpu",
                **changes,
            )
            curve = HeldOut(alone, max(1, options.steps // 12))
            result = training.train(
                model, folder / "tokens.npy", config, folder / f"{name}-{seed}", progress=False, callbacks=[curve]
            )
            loss = curve.curve[-1][1]
            target = loss if target is None else target
            windows = training.evaluate(model, held_out, window=WINDOW)
            needed = reached(curve.curve, target)
            share = f"{needed:,.0f} ({needed / curve.curve[-1][0]:.0%})"
            lines.append(f"| {seed} | {name} | {result.tokens:,} | {loss:.4f} | {share} | {windows:.4f} |")
            print(lines[-1], result.seconds, flush=True)
    (RESULTS / "packing.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
