"""Held-out loss after the same steps: AdamW here, AdamW in a plain transformers loop, and Muon, over three seeds.

Run `python -m bench.quality`; it writes `bench/results/quality.md`. A quarter of an hour on one core.

The model has 2 million parameters; the corpus is this machine's Python library, as in the demo. Both loops begin with
the same weights and read the same batches.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import measure
from bench.measure import RESULTS
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training
from bpe_llama.model.cli.demo import corpus_files

LENGTH, BATCH = 128, 8
SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    files = [str(path) for path in corpus_files()]
    tokenizer = Tokenizer.train(files, vocab_size=4096, special_tokens=["<|endoftext|>"], progress=False)
    tokenizer.encode_files(files, str(folder / "tokens.npy"), eos=True, progress=False)
    every = max(1, options.steps // 20)
    curves: dict[str, list[list[float]]] = {"AdamW": [], "transformers, AdamW": [], "Muon": []}
    for seed in range(options.seeds):
        config = training.TrainConfig(
            max_steps=options.steps,
            sequence_length=LENGTH,
            batch_size=BATCH,
            learning_rate=1e-3,
            warmup_steps=options.steps // 20,
            eval_every=every,
            eval_windows=64,
            seed=seed,
            device="cpu",
        )
        for name, optimizer in (("AdamW", "adamw"), ("Muon", "muon")):
            out = folder / f"{optimizer}-{seed}"
            changed = dataclasses.replace(config, optimizer=optimizer)
            training.train(model_of(tokenizer, seed), folder / "tokens.npy", changed, out, progress=False)
            lines = training.read_metrics(out / "metrics.jsonl")
            curves[name].append([line["eval_loss"] for line in lines if "eval_loss" in line])
            print(name, seed, curves[name][-1][-1], flush=True)
        curves["transformers, AdamW"].append(plain_loop(tokenizer, folder / "tokens.npy", config))
        print("transformers", seed, curves["transformers, AdamW"][-1][-1], flush=True)
    write(curves, every, options.steps)


def model_of(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """Return a fresh model."""
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.vocab_size, **SHAPE), seed=seed)


def plain_loop(tokenizer: Tokenizer, path: Path, config: training.TrainConfig) -> list[float]:
    """Return the held-out losses of a loop over transformers' model, with the same weights, batches and schedule."""
    start = model_of(tokenizer, config.seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=tokenizer.vocab_size, **SHAPE)).train()
    model.load_state_dict(start.state_dict())
    decayed = [weight for weight in model.parameters() if weight.dim() >= 2]
    rest = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    tokens = training.open_tokens(path)
    held_out = torch.from_numpy(tokens[-max(LENGTH, len(tokens) // 100) :].astype("int64"))
    windows = held_out[: len(held_out) // LENGTH * LENGTH].view(-1, LENGTH)[: config.eval_windows]
    batches = training.TokenBatches(
        tokens[: len(tokens) - len(held_out)],
        window=LENGTH,
        batch_size=BATCH,
        vocab_size=tokenizer.vocab_size,
        seed=config.seed,
    )
    losses = []
    for step in range(config.max_steps):
        ids = torch.from_numpy(batches.batch(step).ids)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(config, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % config.eval_every == 0:
            with torch.no_grad():
                parts = [model(input_ids=part, labels=part).loss.item() for part in torch.split(windows, BATCH)]
            losses.append(sum(parts) / len(parts))
    return losses


def write(curves: dict[str, list[list[float]]], every: int, steps: int) -> None:
    """Write the table: losses at the end, and the share of tokens until the loss of AdamW's end."""
    lines = [
        f"2 million parameters, {steps} steps of {BATCH} x {LENGTH} tokens of Python, float32, learning rate 1e-3; "
        f"held-out loss in nats per token, one column a seed. torch {torch.__version__}, transformers "
        f"{transformers.__version__}.",
        "",
        "| optimizer | "
        + " | ".join(f"seed {seed}" for seed in range(len(curves["AdamW"])))
        + " | tokens to AdamW's loss |",
        "|---|" + "---|" * (len(curves["AdamW"]) + 1),
    ]
    for name, runs in curves.items():
        reached = []
        for run, ours in zip(runs, curves["AdamW"], strict=True):
            first = next((place for place, loss in enumerate(run) if loss <= ours[-1]), None)
            reached.append("not reached" if first is None else f"{(first + 1) * every / steps:.0%}")
        lines.append(f"| {name} | " + " | ".join(f"{run[-1]:.3f}" for run in runs) + f" | {', '.join(reached)} |")
    text = "\n".join(lines)
    print(text)
    (RESULTS / "quality.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
