"""Held-out loss after full fine-tuning with float32 and with bfloat16 weights: SmolLM2-135M-Instruct on prose.

Run `python -m bench.weights_dtype`; it writes `bench/results/weights_dtype.md`. Ten minutes on one core.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from bench import data, measure
from bench.measure import RESULTS
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, training
from bpe_llama.model.training import run

WINDOW, HELD_OUT = 128, 6
VARIANTS = {
    "float32": "float32",
    "bfloat16, stochastic rounding": "bfloat16",
    "bfloat16, round to nearest": "nearest",
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    options = parser.parse_args()
    path = data.smollm2_gguf()
    text = data.corpus("prose", megabytes=2).read_bytes()[:200_000].decode(errors="ignore")
    folder = Path(tempfile.mkdtemp())
    ids = np.array(Tokenizer.from_gguf(path).encode(text), dtype=np.uint16)
    np.save(folder / "tokens.npy", ids[: -HELD_OUT * WINDOW])
    np.save(folder / "held-out.npy", ids[-HELD_OUT * WINDOW :])
    lines = [
        f"SmolLM2-135M-Instruct, {options.steps} steps of {WINDOW} tokens of prose at a learning rate of "
        f"{options.learning_rate:g}, arithmetic in bfloat16; loss on {HELD_OUT * WINDOW} held-out tokens. "
        f"torch {torch.__version__}.",
        "",
        "| weights | held-out loss | bytes per parameter | checkpoint |",
        "|---|---|---|---|",
    ]
    before = training.evaluate(
        LlamaForCausalLM.from_pretrained(path, dtype="float32", device="cpu"), ids[-HELD_OUT * WINDOW :], window=WINDOW
    )
    lines.append(f"| before | {before:.4f} | | |")
    for name, kind in VARIANTS.items():
        dtype = "float32" if kind == "float32" else "bfloat16"
        model = LlamaForCausalLM.from_pretrained(path, dtype=dtype, device="cpu")
        settings = training.TrainConfig(
            max_steps=options.steps,
            sequence_length=WINDOW,
            batch_size=1,
            learning_rate=options.learning_rate,
            warmup_steps=2,
            weight_decay=0.0,
            dtype="bfloat16",
            weights_dtype=dtype,
            device="cpu",
            eval_windows=HELD_OUT,
        )
        nearest = mock.patch.object(run, "optimizer_for", round_to_nearest_adamw)
        with nearest if kind == "nearest" else contextlib.nullcontext():
            result = training.train(
                model, folder / "tokens.npy", settings, folder / kind, eval_file=folder / "held-out.npy", progress=False
            )
        size = sum(file.stat().st_size for file in result.checkpoint.iterdir())
        lines.append(f"| {name} | {result.eval_loss:.4f} | {16 if dtype == 'float32' else 8} | {size / 1e9:.2f} GB |")
        print(lines[-1], flush=True)
    (RESULTS / "weights_dtype.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def round_to_nearest_adamw(model: LlamaForCausalLM, config: training.TrainConfig) -> torch.optim.Optimizer:
    """Return torch's AdamW over bfloat16 weights, which rounds to nearest; `training` has no option for it."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=0.0)


if __name__ == "__main__":
    main()
