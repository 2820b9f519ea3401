"""What the server costs beside its engine: HTTP and streams, structured output, a shared system prompt.

Engine and server run the same model with the same slots and threads, in turn, round after round; the medians are shown.
All prompts of a round are new to both prefix caches. Clients run in this process, so they take time from the server.
The processor time of a token, of engine or server, tells on a busy machine what tokens a second do not (Linux).

python -m bench.serve_overhead --rounds 5 --clients 32 --tokens 64
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

from bench import data
from bench.measure import clock
from bench.serve_http import STORY, Server, ask, bpe_llama
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions

ANY_TEXT: dict[str, Any] = {"structured_outputs": {"regex": r"(.|\n)*"}}
"""A constraint that allows all text, so that the number of tokens stays the same."""


@dataclass
class Rate:
    """What one run took."""

    tokens: float
    """Per second."""
    processor: float
    """Milliseconds of all processors for a token."""


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measured(pid: int, run: Callable[[], int]) -> Rate:
    """Return what a run takes that generates so many tokens in a process."""
    start, begun = clock(), processor_seconds(pid)
    tokens = run()
    return Rate(tokens / (clock() - start), 1000 * (processor_seconds(pid) - begun) / tokens)


def engine_alone(engine: Engine, prompts: list[list[int]], tokens: int) -> int:
    """Return the new tokens of the engine, run without scheduler and text, in a thread of its own as in the server."""
    options = GenerationOptions(max_new_tokens=tokens, temperature=0.0, eos_id=())

    def run() -> None:
        for prompt in prompts:
            engine.add_request(prompt, options)
        while engine.has_unfinished_requests():
            engine.step()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return len(prompts) * tokens


def served(client: httpx.Client, server: Server, prompts: list[str], tokens: int, **options: Any) -> int:
    """Return the new tokens of the server, each prompt sent by a client of its own."""

    def one(prompt: str) -> int:
        body = server.body(prompt, tokens) | options
        if body["stream"]:
            return tokens if ask(client, server, prompt, tokens, **options)[1] else 0
        response = client.post(server.path, json=body).raise_for_status().json()
        return int(response["usage"]["completion_tokens"])

    with ThreadPoolExecutor(len(prompts)) as pool:
        return sum(pool.map(one, prompts))


def prefilled_tokens(client: httpx.Client) -> int:
    """Return how many prompt tokens the server has computed."""
    lines = client.get("/metrics").text.splitlines()
    name = "bpe_llama_scheduler_prefilled_tokens_total "
    return int(float(next(line for line in lines if line.startswith(name)).split()[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=40, help="of a prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    gguf = data.smollm2_gguf()
    tokenizer = Tokenizer.from_file(gguf)
    torch.set_num_threads(args.threads)
    model = LlamaForCausalLM.from_pretrained(gguf, dtype="float32", device="cpu")
    engine = Engine(model, args.clients, 512, prefix_cache_bytes=256 << 20)
    count = 0

    def prompts() -> list[str]:
        nonlocal count
        text = " ".join((STORY * 20).split()[: args.words])
        count += args.clients
        return [f"Night {count - number}. {text}" for number in range(args.clients)]

    limits = httpx.Limits(max_connections=args.clients)
    with (
        bpe_llama(Path(), gguf, args.threads) as server,
        httpx.Client(base_url=server.url, timeout=600, limits=limits) as client,
    ):
        size = args.tokens
        runs: dict[str, tuple[int, Callable[[], int]]] = {
            "engine alone": (
                os.getpid(),
                lambda: engine_alone(engine, [tokenizer.encode(prompt) for prompt in prompts()], size),
            ),
            "HTTP": (server.pid, lambda: served(client, server, prompts(), size, stream=False)),
            "HTTP, streamed": (server.pid, lambda: served(client, server, prompts(), size)),
            "HTTP, structured": (server.pid, lambda: served(client, server, prompts(), size, stream=False, **ANY_TEXT)),
        }
        rates: dict[str, list[Rate]] = {name: [] for name in runs}
        for number in range(args.rounds + 1):
            for name, (pid, run) in runs.items():
                rate = measured(pid, run)
                if number:  # the first round warms up
                    rates[name].append(rate)
        for name, found in rates.items():
            tokens, processor = median(rate.tokens for rate in found), median(rate.processor for rate in found)
            each = " ".join(f"{rate.tokens:.0f}" for rate in found)
            print(f"{name:<18}{tokens:>8.1f} tokens/s ({each}), {processor:.1f} ms of processors a token", flush=True)

        system = "You are the keeper of a lighthouse. " + STORY * (1000 // len(tokenizer.encode(STORY)))
        before = prefilled_tokens(client)
        path, generated = "/v1/chat/completions", 8

        def chat(number: int) -> tuple[int, int]:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Who was ship {number}?"}]
            usage = client.post(path, json={"messages": messages, "max_tokens": generated}).json()["usage"]
            return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

        with ThreadPoolExecutor(args.clients) as pool:
            found_tokens = list(pool.map(chat, range(args.clients)))
        total, cached = map(sum, zip(*found_tokens, strict=True))
        computed = prefilled_tokens(client) - before
        print(
            f"{args.clients} chats at once with a system prompt of {len(tokenizer.encode(system)):,} tokens: "
            f"{total:,} prompt tokens, {cached:,} cached, {computed:,} computed, {computed / args.clients:.0f} a chat"
        )


if __name__ == "__main__":
    main()
