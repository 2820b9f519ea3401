"""Decoding speed on a GPU: CUDA graphs of Triton kernels, torch.compile or plain torch, against transformers.

Random weights of the real shapes. The ids of each graph are first compared with those of eager decoding, in float32 and
with two layers, as bfloat16 rounding depends on the kernels. Roofline: weight bytes / memory bandwidth, both measured
in this run. Warm-up is reported separately.

    python -m bench.cuda --shape 8b --batch 1
    python -m bench.cuda --shape 8b --quantize int4
    python -m bench.cuda --shape tiny --device cpu     # that the script itself works
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench import measure
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, quantize
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_triton
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.cli.speed import bytes_per_token, memory_bandwidth
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

LLAMA_3: dict[str, Any] = {"vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 500_000.0}
TIED = {"tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "1b": LLAMA_3 | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, **TIED},
    "8b": LLAMA_3 | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32},
}
HEADS = {"tiny": 4, "1b": 32, "8b": 32}


def check(config: LlamaConfig, prompts: list[list[int]], device: str, backends: list[str | None]) -> None:
    """Exit if CUDA graphs and eager decoding give different ids."""
    two = replace(config, num_hidden_layers=2)
    model = LlamaForCausalLM(two, seed=0, device=device).eval()
    options = [GenerationOptions(max_new_tokens=64, top_p=0.9, seed=row, eos_id=()) for row in range(len(prompts))]
    engine = Engine(model, len(prompts), config.context_length)
    plain = [sequence.new_ids for sequence in _decoded(engine, prompts, options)]
    for backend in backends:
        sequences = _prefilled(engine, prompts, options)
        CudaGraphDecoder(model, engine.cache, backend).run(sequences)
        if [sequence.new_ids for sequence in sequences] != plain:
            raise SystemExit(f"the ids of CUDA graph ({backend}) and eager decoding differ; nothing is timed")


def _prefilled(engine: Engine, prompts: list[list[int]], options: list[GenerationOptions]) -> list[Sequence]:
    """Return the sequences of prompts after prefill, alone in the engine."""
    for sequence in list(engine.running):
        engine.abort(sequence)
    engine.reset_prefix_cache()
    return engine.prefill(prompts, options)


def _decoded(engine: Engine, prompts: list[list[int]], options: list[GenerationOptions]) -> list[Sequence]:
    """Return the same sequences, decoded to their ends step by step."""
    sequences = _prefilled(engine, prompts, options)
    while engine.step():
        pass
    return sequences


def main() -> None:
    """Print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--quantize", choices=quantize.KINDS, help="the layers' weights, not the head's")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    context = chosen.prompt + chosen.tokens + 2
    config = LlamaConfig(
        num_attention_heads=HEADS[chosen.shape], max_position_embeddings=context, **SHAPES[chosen.shape]
    )
    model = LlamaForCausalLM(config, seed=0, dtype=torch.bfloat16, device=chosen.device).eval()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(config.vocab_size, (chosen.batch, chosen.prompt), generator=generator).tolist()
    backends: list[str | None] = [None]
    if chosen.device != "cpu":
        backends += ["inductor"]
        backends += ["triton"] if unsupported_by_triton(model) is None else []
    check(config, prompts[:4], chosen.device, backends)  # of many rows, rounding could change a sampled id
    if chosen.quantize is not None:
        quantize.quantize(model, chosen.quantize)
    options = [
        GenerationOptions(max_new_tokens=chosen.tokens + 1, top_p=0.9, seed=row, eos_id=())
        for row in range(chosen.batch)
    ]
    engine = Engine(model, chosen.batch, context)

    def replayed(decoder: CudaGraphDecoder) -> float:
        sequences = _prefilled(engine, prompts, options)
        before = decoder.warm_up_seconds
        decoder.run(sequences)
        return sequences[0].decode_seconds - (decoder.warm_up_seconds - before)

    decoders = {
        f"CUDA graph, {backend or 'torch'}": CudaGraphDecoder(model, engine.cache, backend) for backend in backends
    }
    runs: dict[str, Callable[[], float]] = {"eager": lambda: _decoded(engine, prompts, options)[0].decode_seconds}
    for name, decoder in decoders.items():
        runs[name] = partial(replayed, decoder)
    for run in runs.values():
        run()

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    try:
        import transformers
    except ImportError:
        print("transformers is not installed; the table omits it")
    else:
        seconds["transformers"] = []
        peer_config = transformers.LlamaConfig(**{k: v for k, v in config.to_dict().items() if v is not None})
        with torch.device(chosen.device):
            peer: Any = transformers.LlamaForCausalLM(peer_config)
        peer = peer.to(torch.bfloat16).eval()
    ids = torch.tensor(prompts, device=chosen.device)
    for _ in range(chosen.rounds):
        for name, run in runs.items():
            seconds[name].append(run())
        if "transformers" in seconds:
            times = []
            for new in (1, chosen.tokens + 1):
                start = time.perf_counter()
                peer.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_p=0.9, pad_token_id=0)
                times.append(time.perf_counter() - start)
            seconds["transformers"].append(times[1] - times[0])
    roofline = bytes_per_token(model) / memory_bandwidth(chosen.device)  # seconds per step
    rows = []
    for name, times in seconds.items():
        best = min(times) / chosen.tokens
        warm_up = f"{decoders[name].warm_up_seconds:.1f} s" if name in decoders else ""
        rows.append([name, f"{chosen.batch / best:.1f}", f"{roofline / best:.0%}", warm_up])
    print(f"\n{measure.machine()}\n")
    print(f"{chosen.shape}, {chosen.quantize or 'bfloat16'}, batch {chosen.batch}, {chosen.prompt} + {chosen.tokens}\n")
    print(measure.markdown(["", "tokens/s", "of the roofline", "warm-up"], rows))


if __name__ == "__main__":
    main()
