"""Continuous batching, bare and through the server's scheduler, and speculative decoding, against one sequence.

python -m bench.serve --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

import torch

from bench import data, measure
from bench.generate import SHAPE
from bench.measure import clock
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.generation.speculative import PromptLookupDraft, generate_speculative
from bpe_llama.model.server.scheduler import Scheduler

FRUIT = ("apple", "red"), ("pear", "green"), ("plum", "blue"), ("lemon", "yellow"), ("cherry", "red"), ("lime", "green")
SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 5
RECORDS = "".join(f'{{"name": "{name}", "colour": "{colour}", "price": 1}}\n' for name, colour in FRUIT)


def plain_decoding(model: LlamaForCausalLM, tokens: int) -> float:
    """Return tokens per second of one sequence, without prefill."""
    engine = Engine(model, 1, 48 + tokens)
    engine.prefill([list(range(5, 37))], [GenerationOptions(max_new_tokens=tokens + 1, temperature=0.0, eos_id=())])
    start = clock()
    while engine.step():
        pass
    return tokens / (clock() - start)


def requests(sequences: int, tokens: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Return prompts and options of different lengths."""
    return [
        (list(range(5 + i, 13 + i + i % 24)), {"max_new_tokens": tokens + i * 7 % tokens, "seed": i, "eos_id": ()})
        for i in range(sequences)
    ]


def continuous_batching(model: LlamaForCausalLM, sequences: int, slots: int, tokens: int) -> float:
    """Return tokens per second of requests of different lengths that wait for free slots; prefill is included."""
    engine, generated = Engine(model, slots, 40 + 2 * tokens), 0
    start = clock()
    for prompt, options in requests(sequences, tokens):
        engine.add_request(prompt, GenerationOptions(**options))
    while engine.has_unfinished_requests():
        generated += len(engine.step())
    return generated / (clock() - start)


def scheduled(model: LlamaForCausalLM, sequences: int, slots: int, tokens: int) -> float:
    """Return the same for the same requests through the scheduler of the server, each read by a task of its own."""
    scheduler = Scheduler(
        {"model": TextGenerator(model, Tokenizer.from_ranks({bytes([i]): i for i in range(256)}))},
        slots=slots,
        max_length=40 + 2 * tokens,
    )

    async def read(prompt: list[int], options: dict[str, Any]) -> int:
        return sum([len(update.new_ids) async for update in scheduler.generate("model", prompt, **options)])

    async def run() -> float:
        scheduler.start()
        start = clock()
        generated = await asyncio.gather(*(read(*request) for request in requests(sequences, tokens)))
        seconds = clock() - start
        await scheduler.shutdown()
        return sum(generated) / seconds

    return asyncio.run(run())


def speculation(
    model: LlamaForCausalLM, prompt: list[int], tokens: int
) -> tuple[Callable[[], float], Callable[[], float], str]:
    """Return functions for plain and speculative decoding of a prompt, and a line on the accepted draft tokens."""
    options: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0.0, "eos_id": ()}
    engine_ids: list[int] = []

    def plain() -> float:
        engine = Engine(model, 1, len(prompt) + tokens)
        start = clock()
        (sequence,) = engine.prefill([prompt], [GenerationOptions(**options)])
        while engine.step():
            pass
        engine_ids[:] = sequence.new_ids
        return tokens / (clock() - start)

    def speculative() -> float:
        start = clock()
        result = generate_speculative(model, prompt, PromptLookupDraft(), **options)
        seconds = clock() - start
        exact = model.dtype == torch.float32  # bfloat16 rounding depends on the number of rows
        if exact and result.new_ids != engine_ids:
            raise SystemExit("the ids of speculative and plain decoding differ; nothing is timed")
        return tokens / seconds

    plain()
    result = generate_speculative(model, prompt, PromptLookupDraft(), **options)
    accepted = (
        f"{result.num_accepted_tokens} of {result.num_draft_tokens} draft tokens accepted, "
        f"{result.num_forward_passes} passes for {len(result.new_ids)} ids"
    )
    return plain, speculative, accepted


def main() -> None:
    """Print the table and append the figures to ``bench/results/generate.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    model = LlamaForCausalLM(SHAPE, seed=0, dtype=getattr(torch, chosen.dtype)).eval()
    runs: dict[str, Callable[[], float]] = {
        "one sequence": lambda: plain_decoding(model, chosen.tokens),
        "64 requests, 32 slots": lambda: continuous_batching(model, 64, 32, chosen.tokens),
        "64 requests, 32 slots, scheduler": lambda: scheduled(model, 64, 32, chosen.tokens),
    }
    accepted: dict[str, str] = {}
    try:
        path = data.smollm2_gguf()
    except data.DataUnavailable as missing:
        print(f"the table omits speculative decoding: {missing}")
    else:
        smollm2 = LlamaForCausalLM.from_pretrained(path, dtype=chosen.dtype, device="cpu")
        for name, text in (("JSON records", RECORDS), ("a sentence five times", SENTENCE)):
            prompt = Tokenizer.from_gguf(path).encode(text)
            plain, speculative, accepted[name] = speculation(smollm2, prompt, 3 * chosen.tokens)
            runs[f"{name}, plain"], runs[f"{name}, prompt-lookup"] = plain, speculative
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(chosen.rounds):
        for name, run in runs.items():
            rates[name].append(run())
    best = {name: max(found) for name, found in rates.items()}
    rows = []
    for name, rate in best.items():
        text = name.partition(",")[0]
        base = f"{text}, plain" if text in accepted else "one sequence"
        rows.append([name, f"{rate:.1f}", f"{rate / best[base]:.2f}x"])
    print(f"\n{chosen.threads} threads, {chosen.dtype}, best of {chosen.rounds} rounds\n")
    print(measure.markdown(["", "tokens/s", "ratio to plain"], rows))
    for name, line in accepted.items():
        print(f"\n{name}: {line}")
    measure.append(
        "generate",
        "serve",
        torch=torch.__version__,
        threads=chosen.threads,
        dtype=chosen.dtype,
        tokens_per_second=rates,
        speculation=accepted,
    )


if __name__ == "__main__":
    main()
