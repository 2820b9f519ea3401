"""An engine with requests that join and leave, with CUDA graphs and without.

    python -m bench.cuda.engine                               # 32 requests in 16 slots, the shape of Llama 3.2 1B
    python -m bench.cuda.engine --device cpu --shape tiny     # that the script itself works

Two requests join at each step until all have; their prompts and their ends differ. Both engines serve the same requests
by greedy decoding, in bfloat16 and in float32 with two layers, where the ids must be equal.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from bench import measure
from bench.cuda.bars import about, random_model, require_cuda
from bench.cuda.decode import SHAPES
from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions


def served(engine: Engine, requests: int) -> tuple[list[list[int]], float]:
    """Return the new ids of each request, and the seconds of all."""
    vocab_size = engine.model.config.vocab_size
    generator = torch.Generator().manual_seed(1)
    waiting = [
        (
            torch.randint(vocab_size, (16 + 37 * number % 200,), generator=generator).tolist(),
            GenerationOptions(max_new_tokens=24 + 29 * number % 100, temperature=0.0, eos_id=()),
        )
        for number in range(requests)
    ]
    sequences: list[Any] = []
    start = time.perf_counter()
    while waiting or engine.has_unfinished_requests():
        sequences += [engine.add_request(*request) for request in waiting[:2]]
        del waiting[:2]
        engine.step()
    return [sequence.new_ids for sequence in sequences], time.perf_counter() - start


def main() -> None:
    """Print the table; exit with 1 if ids differ where they must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    require_cuda(chosen.device)
    print(about(chosen.device))
    config = LlamaConfig(max_position_embeddings=512, **SHAPES[chosen.shape])
    two = replace(config, num_hidden_layers=2)
    exact = random_model(LlamaForCausalLM, two, chosen.device, torch.float32)
    found = [served(Engine(exact, chosen.slots, cuda_graph=flag), chosen.requests)[0] for flag in (False, True)]
    equal = found[0] == found[1]
    print(f"float32, two layers: the ids are {'equal' if equal else 'DIFFERENT'}\n")
    del exact
    model = random_model(LlamaForCausalLM, config, chosen.device)
    rows, ids = [], []
    for name, flag in (("kernel by kernel", False), ("CUDA graphs", True)):
        engine = Engine(model, chosen.slots, cuda_graph=flag)
        served(engine, chosen.requests)  # captures and compiles
        new_ids, seconds = served(engine, chosen.requests)
        ids.append(new_ids)
        graphs = engine._refreshed.graphs
        captures = "" if graphs is None else f"{graphs.capture_seconds:.1f} s, {len(graphs._steps)} graphs"
        if graphs is not None and graphs.fallback_reason:
            captures = f"none: {graphs.fallback_reason}"
        rows.append([name, f"{sum(map(len, new_ids)) / seconds:,.0f}", f"{seconds:.2f} s", captures])
    print(measure.markdown(["", "tokens/s", "all requests", "captures"], rows))
    same = sum(ours == theirs for ours, theirs in zip(*ids, strict=True))
    print(f"\nbfloat16: {same} of {chosen.requests} requests have the same ids; rounding may change the others")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
