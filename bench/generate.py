"""Decoding speed on the CPU, for several dtypes of the weights, against transformers and llama.cpp in the same run.

The model has the shape of SmolLM2-135M and random weights. Ids are compared before anything is timed, and the rounds
of all candidates are interleaved. Roofline: weight bytes / memory bandwidth, both measured in this run.

    python -m bench.generate --rounds 9 --tokens 32
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import measure
from bench.fetch import DataUnavailable
from bench.llama_cpp import LlamaCpp, save_with_tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, quantize
from bpe_llama.model.cli.speed import bytes_per_token, memory_bandwidth
from bpe_llama.model.generation.generate import Engine, GenerationOptions

SHAPE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=2048,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    initializer_range=0.04,
)
PROMPT = list(range(5, 37))


def ours(model: LlamaForCausalLM, tokens: int) -> tuple[float, list[int]]:
    """Return seconds per decoded token, without prefill, and the ids."""
    engine = Engine(model, 1, len(PROMPT) + tokens + 1)
    (sequence,) = engine.prefill([PROMPT], [GenerationOptions(max_new_tokens=tokens + 1, temperature=0.0, eos_id=())])
    start = time.perf_counter()
    while engine.step():
        pass
    return (time.perf_counter() - start) / tokens, sequence.new_ids


def theirs(model: torch.nn.Module, tokens: int) -> tuple[float, list[int]]:
    """Return the same for transformers: its time for prompt and first token is subtracted."""
    ids = torch.tensor([PROMPT])

    def run(new: int) -> tuple[float, list[int]]:
        start = time.perf_counter()
        out = model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        return time.perf_counter() - start, out[0, len(PROMPT) :].tolist()

    first, _ = run(1)
    whole, new_ids = run(tokens + 1)
    return (whole - first) / tokens, new_ids


def main() -> None:
    """Load the candidates, compare their ids, and time them."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plain = LlamaForCausalLM(SHAPE, seed=0).eval()
    half = LlamaForCausalLM(SHAPE, seed=0, dtype=torch.bfloat16).eval()
    models = {
        "ours float32": plain,
        "ours bfloat16": half,
        "ours int8": quantize.quantize(LlamaForCausalLM(SHAPE, seed=0, dtype=torch.bfloat16).eval(), "int8"),
        "ours int4": quantize.quantize(LlamaForCausalLM(SHAPE, seed=0, dtype=torch.bfloat16).eval(), "int4"),
        "ours int4, int8 head": quantize.quantize(
            quantize.quantize(LlamaForCausalLM(SHAPE, seed=0, dtype=torch.bfloat16).eval(), "int4"), "int8", skip=()
        ),
        "ours int4, head too": quantize.quantize(LlamaForCausalLM(SHAPE, seed=0).eval(), "int4", skip=()),
    }
    run: dict[str, Callable[[], tuple[float, list[int]]]] = {
        name: lambda model=model: ours(model, options.tokens)  # type: ignore[misc]
        for name, model in models.items()
    }
    try:
        import transformers
    except ImportError:
        print("transformers is not installed; the table omits it")
    else:
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with tempfile.TemporaryDirectory() as folder:
            plain.save_pretrained(folder)
            for name, dtype in (("transformers float32", torch.float32), ("transformers bfloat16", torch.bfloat16)):
                peer = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()  # type: ignore[no-untyped-call]
                peer.generation_config.eos_token_id = None
                run[name] = lambda peer=peer: theirs(peer, options.tokens)  # type: ignore[misc]
        if run["ours float32"]()[1] != run["transformers float32"]()[1]:
            raise SystemExit("the ids of ours and transformers differ; nothing is timed")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            save_with_tokenizer(plain, Path(folder) / "model.gguf")
            llama_cpp = stack.enter_context(LlamaCpp(Path(folder) / "model.gguf", options.threads))
        except DataUnavailable as error:
            print(f"the table omits llama.cpp: {error}")
        else:
            run["llama.cpp Q4_0"] = lambda: (llama_cpp.seconds_per_token(options.tokens), [])
        time_all(run, models, options)


def time_all(
    run: dict[str, Callable[[], tuple[float, list[int]]]],
    models: dict[str, LlamaForCausalLM],
    options: argparse.Namespace,
) -> None:
    """Time all candidates, print the table, and append the figures to ``bench/results/generate.jsonl``."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(options.rounds):
        for name, once in run.items():
            seconds[name].append(once()[0])
    bandwidth = memory_bandwidth()
    best = {name: min(times) for name, times in seconds.items()}
    rows = []
    for name, times in seconds.items():
        peer_name = "transformers " + ("float32" if "float32" in name else "bfloat16")
        if "int4" in name or "Q4" in name:
            peer_name = "llama.cpp Q4_0"
        roofline = f"{bytes_per_token(models[name]) / bandwidth / best[name]:.0%}" if name in models else ""
        ratio = f"{best[peer_name] / best[name]:.2f}x" if peer_name in best else ""
        rows.append([name, f"{1 / best[name]:.1f}", f"{1 / statistics.median(times):.1f}", roofline, ratio])
    print(f"\n{options.threads} threads, memory bandwidth {bandwidth / 1e9:.1f} GB/s, {options.rounds} rounds\n")
    header = ["tokens/s", "best", "median", "of the roofline", "ratio to transformers (4 bits: to llama.cpp)"]
    print(measure.markdown(header, rows))
    measure.append(
        "generate",
        "generate",
        torch=torch.__version__,
        threads=options.threads,
        bandwidth=bandwidth,
        seconds_per_token=seconds,
    )


if __name__ == "__main__":
    main()
