"""A training step on a GPU: the share of the product's rate, in bfloat16 and float8, against transformers.

    python -m bench.cuda.train                                # a 1B model, 2 rows of 4,096 tokens
    python -m bench.cuda.train --device cpu --shape tiny --length 32     # that the script itself works

A step is forward, backward, clipping and AdamW; weights are float32, products bfloat16 by autocast, or float8 by
torchao. The head's loss is computed in chunks. ``compiled`` compiles the decoder layer, which all layers share;
``recomputed`` keeps no activations of a layer. The operations of a step are those of
`bpe_llama.model.training.report.throughput.flops_per_token`; recomputed ones do not count. Rows are printed as they are
measured, and one that runs out of memory says so.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import measure
from bench.cuda.bars import about, beside_bar, product_rate, random_model, require_cuda
from bench.cuda.decode import SHAPES
from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.float8 import use_float8
from bpe_llama.model.training.optimizers.state import optimizer_for
from bpe_llama.model.training.report.throughput import flops_per_token
from bpe_llama.model.training.step import TensorBatch, batch_loss, gradient_norm

CASES = ("bfloat16", "transformers", "bfloat16 compiled", "float8 compiled", "bfloat16 recomputed", "float8")


def our_step(model: LlamaForCausalLM, case: str, device: str) -> Callable[[Tensor], Tensor]:
    """Return a step of our loop, which returns the loss on the device."""
    model.train()
    if case.startswith("float8"):
        use_float8(model, torch.device(device))
    if "recomputed" in case:
        model.gradient_checkpointing_enable()
    if "compiled" in case:
        for layer in model.model.layers:
            layer.compile()
    optimizer = optimizer_for(model, TrainConfig(learning_rate=1e-4))
    parameters = list(model.parameters())

    def step(ids: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = batch_loss(model, TensorBatch(ids, ids), ids[:, 1:].numel())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, gradient_norm(parameters))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def peer_step(model: LlamaForCausalLM, device: str) -> Callable[[Tensor], Tensor]:
    """Return a step of the loop that transformers' documentation shows, with the same weights."""
    import transformers

    config = {name: value for name, value in model.config.to_dict().items() if value is not None}
    peer: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, use_cache=False))
    peer.load_state_dict(model.state_dict(), strict=False)
    peer = peer.to(device).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step(ids: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = peer(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    require_cuda(chosen.device)
    print(about(chosen.device))
    rate = product_rate(chosen.device)
    print(f"{chosen.shape}, {chosen.rows} x {chosen.length} tokens; product {rate / 1e12:.3g} TFLOP/s in bfloat16\n")
    header = ["", "ms a step", "of the product's rate", "against bfloat16", "GB", "first step", "losses"]
    print(measure.markdown(header, []), flush=True)
    config = LlamaConfig(max_position_embeddings=chosen.length, **SHAPES[chosen.shape])
    seconds: dict[str, float] = {}
    for case in chosen.cases:
        try:
            print("| " + " | ".join([case, *run_case(config, case, chosen, rate, seconds)]) + " |", flush=True)
        except (RuntimeError, ValueError, ImportError) as error:
            print(f"| {case} | does not run: {type(error).__name__}: {str(error).splitlines()[0]} |", flush=True)
        gc.collect()
        if chosen.device == "cuda":
            torch.cuda.empty_cache()


def run_case(
    config: LlamaConfig, case: str, chosen: argparse.Namespace, rate: float, seconds: dict[str, float]
) -> list[str]:
    """Return the cells of a row."""
    device = chosen.device
    model = random_model(LlamaForCausalLM, config, device, torch.float32)
    operations = flops_per_token(model, chosen.length) * chosen.rows * chosen.length
    step = peer_step(model, device) if case == "transformers" else our_step(model, case, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, losses = [], []
    for number in range(chosen.steps + 1):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(config.vocab_size, (chosen.rows, chosen.length), generator=generator).to(device)
        start = time.perf_counter()
        losses.append(float(step(ids)))  # waits for the device
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds[case] = best = min(times[1:])
    of = "bfloat16" if case == "bfloat16" else ""
    share = beside_bar(100 * operations / best / rate, "training", of)
    plain = "bfloat16 compiled" if "compiled" in case else "bfloat16"
    faster = (
        beside_bar(seconds[plain] / best, "training", "float8" if "float8" in case else "") if plain in seconds else ""
    )
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device == "cuda" else ""
    return [f"{1e3 * best:.1f}", share, faster, memory, f"{times[0]:.1f} s", f"{losses[0]:.4f} to {losses[-1]:.4f}"]


if __name__ == "__main__":
    main()
