"""Prefill speed on the CPU against transformers, in float32 and bfloat16, interleaved.

The model has random weights and the shape of SmolLM2-135M, or of four layers of Llama 3.2 1B with 8,192 tokens.
Both fill a cache and choose one id, which must be the same in float32. With one thread CPU time is measured, as other
load does not add to it.

    python -m bench.prefill --length 512 --threads 1
    python -m bench.prefill --length 512 --threads 1 --shape 1b
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers

from bench import measure
from bench.generate import SHAPE
from bench.measure import clock
from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions

WIDE = LlamaConfig(
    vocab_size=8192,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=4,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)


def main() -> None:
    """Print the table and append the figures to ``bench/results/generate.jsonl``."""
    parser = measure.parser(__doc__)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--shape", choices=("smollm2", "1b"), default="smollm2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    shape = WIDE if chosen.shape == "1b" else SHAPE
    prompt = [5 + 7 * i % (shape.vocab_size - 5) for i in range(chosen.length)]
    options = GenerationOptions(max_new_tokens=1, temperature=0.0, eos_id=())

    runs: dict[str, Callable[[], int]] = {}
    for dtype in ("float32", "bfloat16"):
        model = LlamaForCausalLM(shape, seed=0, dtype=getattr(torch, dtype)).eval()
        engine = Engine(model, 1, chosen.length + 1)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            peer: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()  # type: ignore[no-untyped-call]

        def ours(engine: Engine = engine) -> int:
            engine.reset_prefix_cache()
            return engine.prefill([prompt], [options])[0].new_ids[0]

        def theirs(peer: Any = peer) -> int:
            with torch.inference_mode():
                logits = peer(torch.tensor([prompt]), use_cache=True, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

        runs[f"ours {dtype}"], runs[f"transformers {dtype}"] = ours, theirs
    first = {name: run() for name, run in runs.items()}  # warms up, too
    if first["ours float32"] != first["transformers float32"]:
        raise SystemExit("the ids of ours and transformers differ; nothing is timed")

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(chosen.rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    rows = []
    for dtype in ("float32", "bfloat16"):
        both = [seconds[f"{who} {dtype}"] for who in ("ours", "transformers")]
        ratio = statistics.median(their / our for our, their in zip(*both, strict=True))
        rows.append([dtype, *(f"{chosen.length / min(times):.0f}" for times in both), f"{ratio:.2f}x"])
    print(
        f"\n{chosen.shape}, {chosen.length} tokens, {chosen.threads} threads, best of {chosen.rounds} rounds; "
        "ratio: median of rounds\n"
    )
    print(measure.markdown(["tokens/s", "ours", "transformers", "ratio"], rows))
    figures = {"shape": chosen.shape, "length": chosen.length, "threads": chosen.threads, "seconds": seconds}
    measure.append("generate", "prefill", **figures)


if __name__ == "__main__":
    main()
