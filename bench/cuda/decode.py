"""Decoding and prompts on a GPU, against transformers and against the card's own copy and product rates.

    python -m bench.cuda.decode                              # 1B and 8B, each format, batch 1 and 64
    python -m bench.cuda.decode --shapes 8b --weights int4 --batches 1 --prompts 128
    python -m bench.cuda.decode --shapes 8b --layers 1 --tokens 4 --bare      # compiles the kernels
    python -m bench.cuda.decode --device cpu --shapes tiny   # that the script itself works

Random weights of the real shapes, drawn on the device. The ids of a graph are first compared with those of plain
decoding, in float32, greedily and with two layers; the exit code is 1 if they differ. A step reads the weights and the
keys and values so far: its share of the bandwidth is those bytes over the time of a step, of what a large copy reads
and writes. A prompt's share is its floating-point operations over its time, of a large product's. transformers has the
same weights. The time of a graph's capture, in which kernels are compiled, is in a column of its own. Rows are printed
as they are measured.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import replace
from typing import Any

import torch

from bench import measure
from bench.cuda.bars import about, beside_bar, copy_bandwidth, product_rate, random_model, require_cuda
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, quantize
from bpe_llama.model.backends.cuda.dispatch import graph_backend
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.cli.speed import bytes_per_token
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

LLAMA_3: dict[str, Any] = {"vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 500_000.0}
TIED = {"tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
    },
    "1b": LLAMA_3
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, **TIED},
    "8b": LLAMA_3
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
FORMATS = ("bfloat16", "int8", "int4")
PASS = 32_768
"""Prompt tokens of all sequences in one pass, which bounds the memory of a pass."""
HEADER = ["", "tokens/s", "of the bandwidth", "against transformers", "against bfloat16", "against batch 1", "capture"]


def check(config: LlamaConfig, device: str) -> bool:
    """Print and return whether a graph and plain decoding give the same ids."""
    two = replace(config, num_hidden_layers=2, max_position_embeddings=160)
    model = random_model(LlamaForCausalLM, two, device, torch.float32)
    prompts = prompts_of(two, 4, 64)
    options = [GenerationOptions(max_new_tokens=64, temperature=0.0, eos_id=())] * 4
    plain, engine = Engine(model, 4, 160, cuda_graph=False), Engine(model, 4, 160)
    expected = plain.prefill(prompts, options)
    while plain.step():
        pass
    found = engine.prefill(prompts, options)
    CudaGraphDecoder(model, engine.cache, graph_backend(model)).run(found)
    equal = [sequence.new_ids for sequence in found] == [sequence.new_ids for sequence in expected]
    said = "equal" if equal else "DIFFERENT"
    print(f"  float32, two layers: the ids of the CUDA graph and of plain decoding are {said}")
    return equal


def prompts_of(config: LlamaConfig, batch: int, length: int) -> list[list[int]]:
    """Return random prompts."""
    prompts: list[list[int]] = torch.randint(
        config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return prompts


def decoded(engine: Engine, prompts: list[list[int]], tokens: int) -> tuple[float, float, float]:
    """Return the seconds of the prompts' pass, of a step, and of the captures."""
    options = [
        GenerationOptions(max_new_tokens=tokens + 1, top_p=0.9, seed=row, eos_id=()) for row in range(len(prompts))
    ]

    def prefilled(length: int | None = None) -> list[Sequence]:
        for sequence in list(engine.running):
            engine.abort(sequence)
        engine.reset_prefix_cache()
        return engine.prefill([prompt[:length] for prompt in prompts], options)

    model = engine.model
    decoder = CudaGraphDecoder(model, engine.cache, graph_backend(model))
    long = sum(map(len, prompts)) > 2 * PASS
    decoder.run(prefilled(16 if long else None))  # captures; a graph of Triton kernels serves all lengths
    captures, prompt, step = decoder.warm_up_seconds, float("inf"), float("inf")
    for _ in range(1 if long else 2):
        sequences = prefilled()
        prompt = min(prompt, sequences[0].prefill_seconds)
        decoder.run(sequences)
        step = min(step, sequences[0].decode_seconds / tokens)
    if decoder.fallback_reason and model.device.type == "cuda":
        print(f"no graph: {decoder.fallback_reason}")
    return prompt, step, captures


def step_of_transformers(model: LlamaForCausalLM, prompts: list[list[int]], tokens: int) -> float:
    """Return the seconds of a step of transformers' generate, with our model's weights in its memory."""
    import transformers

    config = {name: value for name, value in model.config.to_dict().items() if value is not None}
    with torch.device("meta"):
        peer: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    peer.load_state_dict(model.state_dict(), strict=False, assign=True)
    peer.tie_weights()
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config).to(model.device)
    peer = peer.eval()
    ids = torch.tensor(prompts, device=model.device)
    mask, times = torch.ones_like(ids), []
    for new in (2, 1, tokens + 1):  # the first is for warm-up
        start = time.perf_counter()
        peer.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_p=0.9, pad_token_id=0
        )
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return (times[2] - times[1]) / tokens


def flops_of_prompt(model: LlamaForCausalLM, length: int) -> float:
    """Return the floating-point operations of a prompt, whose last position alone has logits."""
    config = model.config
    matrices = sum(weight.numel() for weight in model.model.layers.parameters() if weight.ndim == 2)
    return 2.0 * length * matrices + 2.0 * length**2 * config.num_hidden_layers * config.hidden_size


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8b", "1b"])
    parser.add_argument("--weights", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 4096], help="beyond the first: bfloat16 alone")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--bare", action="store_true", help="without transformers and the comparison of ids")
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    require_cuda(chosen.device)
    print(about(chosen.device), flush=True)
    bandwidth, rate = copy_bandwidth(chosen.device), product_rate(chosen.device)
    print(f"copy {bandwidth / 1e12:.3g} TB/s, product {rate / 1e12:.3g} TFLOP/s in bfloat16\n")
    print(measure.markdown(HEADER, []), flush=True)
    equal = [run_shape(shape, chosen, bandwidth, rate) for shape in chosen.shapes]
    raise SystemExit(0 if all(equal) else 1)


def run_shape(shape: str, chosen: argparse.Namespace, bandwidth: float, rate: float) -> bool:
    """Print the rows of a shape, and return whether the ids were right."""
    sizes = SHAPES[shape] | ({"num_hidden_layers": chosen.layers} if chosen.layers else {})
    config = LlamaConfig(max_position_embeddings=max(chosen.prompts) + chosen.tokens + 2, **sizes)
    equal = chosen.bare or check(config, chosen.device)
    rates: dict[tuple[str, int, int], float] = {}
    for weights in chosen.weights:
        model = random_model(LlamaForCausalLM, config, chosen.device)
        if weights != "bfloat16":
            quantize.quantize(model, weights)
        cases = [
            (p, b) for p in chosen.prompts for b in chosen.batches if weights == "bfloat16" or p == chosen.prompts[0]
        ]
        for prompt, batch in cases:
            try:
                run_case(model, (shape, weights), (prompt, batch), chosen, (bandwidth, rate), rates)
            except (RuntimeError, ValueError) as error:  # memory, or a kernel that fails: the other rows still count
                print(f"{shape}, {weights}, batch {batch}, {prompt} + {chosen.tokens}: {type(error).__name__}: {error}")
            gc.collect()
            if chosen.device == "cuda":
                torch.cuda.empty_cache()
        del model
    return equal


def run_case(
    model: LlamaForCausalLM,
    of: tuple[str, str],
    case: tuple[int, int],
    chosen: argparse.Namespace,
    ceilings: tuple[float, float],
    rates: dict[tuple[str, int, int], float],
) -> None:
    """Print a row, and a line on the prompt."""
    (shape, weights), (prompt, batch), (bandwidth, rate) = of, case, ceilings
    tokens, config = chosen.tokens, model.config
    prompts = prompts_of(config, batch, prompt)
    engine = Engine(model, batch, prompt + tokens + 2, prefill_chunk=max(PASS // batch, 1))
    prompt_seconds, step, captures = decoded(engine, prompts, tokens)
    rates[weights, batch, prompt] = batch / step
    keys = 2 * batch * (prompt + tokens / 2) * config.num_hidden_layers * config.kv_heads * config.head_size * 2
    share = 100 * (bytes_per_token(model) + keys) / step / bandwidth
    named = f"{shape}, {weights}, batch {batch}, {prompt} + {tokens}"
    peer = plain = one = ""
    if not chosen.bare and weights == "bfloat16" and (prompt, batch) == (chosen.prompts[0], 1):
        peer = beside_bar(step_of_transformers(model, prompts, min(tokens, 64)) / step, "against transformers", shape)
    if weights != "bfloat16" and ("bfloat16", batch, prompt) in rates:
        bar = shape if shape != "8b" or batch != 1 else weights
        plain = beside_bar(rates[weights, batch, prompt] / rates["bfloat16", batch, prompt], "against bfloat16", bar)
    if batch > 1 and (weights, 1, prompt) in rates:
        bar = shape if (weights, prompt, batch) == ("bfloat16", 128, 64) else ""
        one = beside_bar(rates[weights, batch, prompt] / rates[weights, 1, prompt], "against batch 1", bar)
    bar = shape if (weights, batch, prompt) == ("bfloat16", 1, 128) else ""
    cells = [f"{batch / step:,.0f}", beside_bar(share, "decode", bar), peer, plain, one, f"{captures:.1f} s"]
    print("| " + " | ".join([named, *cells]) + " |", flush=True)
    prompt_share = 100 * batch * flops_of_prompt(model, prompt) / prompt_seconds / rate
    bar = shape if (weights, batch) == ("bfloat16", 1) else ""
    said = beside_bar(prompt_share, f"prompt of {prompt}", bar)
    print(f"  {named}: the prompts took {1e3 * prompt_seconds:.1f} ms, {said} of the product's rate", flush=True)


if __name__ == "__main__":
    main()
