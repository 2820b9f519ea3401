"""Reading a prompt on the CPU: ours against transformers, in float32 and bfloat16, taking turns.

The model has SmolLM2-135M's shape and random weights; both fill a cache and choose one id, the same in float32. With
one thread the processor's time is taken, which other work on the machine lengthens least.

    python -m bench.prefill --length 512 --threads 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers

from bench import measure
from bench.generate import SHAPE
from bench.serve import clock
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions


def main() -> None:
    """Print the table and append the figures to ``bench/results/generate.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    prompt = [5 + 7 * i % 40_000 for i in range(chosen.length)]
    options = GenerationOptions(max_new_tokens=1, temperature=0.0, eos_id=())

    runs: dict[str, Callable[[], int]] = {}
    for dtype in ("float32", "bfloat16"):
        model = LlamaForCausalLM(SHAPE, seed=0, dtype=getattr(torch, dtype)).eval()
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
        raise SystemExit("ours and transformers give different ids; no time is worth printing")

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
    # Best rounds are of the machine's best moments, which the two may not share: the ratio is taken round by round.
    print(f"\n{chosen.length} tokens, {chosen.threads} threads; tokens a second, best of {chosen.rounds};")
    print("the ratio is the median of the rounds'\n")
    print(measure.markdown(["", "ours", "transformers", "ratio"], rows))
    record = measure.machine() | {"bench": "prefill", "threads": chosen.threads, "seconds": seconds}
    with (measure.RESULTS / "generate.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
