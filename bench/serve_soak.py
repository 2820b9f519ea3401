"""A server under load for a while: clients that cancel, vanish, send too much or nonsense; memory, slots and answers.

Every answer that a client waits for is greedy, and must be what the model gives without a server. At the end no choice
may be left, and the server's memory, after the first fifth of the time, may not have grown by more than 2%.

python -m bench.serve_soak --minutes 30 --clients 32
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from bench import data
from bench.serve_http import STORY, first_line, process
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator

PROMPTS = [f"{STORY * (i % 3)}Night {i}. The" for i in range(12)]
TOKENS = (4, 16, 48)
KINDS = {"whole": 5, "stream": 5, "structured": 2, "cancel": 3, "vanish": 2, "broken": 2, "oversized": 1}
"""The requests of a client, with their weights."""
BROKEN = (
    b"{",
    b'{"prompt": 5}',
    b'{"prompt": "a", "temperature": -1}',
    b'{"prompt": "a", "unknown": 1}',
    b'{"prompt": "a", "model": "none"}',
    b'{"prompt": "' + b"a " * 60_000 + b'"}',  # longer than the context
    b"[" * 50_000,
)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


class Soak:
    """The clients and what they saw."""

    def __init__(self, url: str, expected: dict[tuple[int, int], str], seed: int) -> None:
        self.url, self.expected, self.seed = url, expected, seed
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def client(self, number: int) -> None:
        """Send requests of all kinds until the time is over."""
        draw = random.Random(self.seed * 1000 + number)
        with httpx.Client(base_url=self.url, timeout=300) as client:
            while not self.stop.is_set():
                (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
                try:
                    getattr(self, kind)(client, draw)
                except httpx.HTTPError as error:
                    if not self.stop.is_set():
                        self.wrong.append(f"{kind}: {error!r}")
                self.seen[kind] += 1

    def body(self, draw: random.Random) -> tuple[dict[str, object], str]:
        prompt, tokens = draw.randrange(len(PROMPTS)), draw.choice(TOKENS)
        body = {"prompt": PROMPTS[prompt], "max_tokens": tokens, "temperature": 0}
        return body, self.expected[prompt, tokens]

    def check(self, status: int, text: str, expected: str) -> None:
        if status == 429:
            self.seen["429"] += 1
        elif status != 200 or text != expected:
            self.wrong.append(f"status {status}: {text[:80]!r}, expected {expected[:80]!r}")

    def whole(self, client: httpx.Client, draw: random.Random) -> None:
        body, expected = self.body(draw)
        response = client.post("/v1/completions", json=body)
        text = response.json()["choices"][0]["text"] if response.status_code == 200 else response.text
        self.check(response.status_code, text, expected)

    def stream(self, client: httpx.Client, draw: random.Random) -> None:
        body, expected = self.body(draw)
        text = ""
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
            self.check(response.status_code, text, expected)

    def structured(self, client: httpx.Client, draw: random.Random) -> None:
        """Ask for one of several numbers, by more grammars than the server keeps."""
        body, _ = self.body(draw)
        choice = [str(draw.randrange(200)), "none"]
        response = client.post("/v1/completions", json=body | {"structured_outputs": {"choice": choice}})
        text = response.json()["choices"][0]["text"] if response.status_code == 200 else response.text
        self.check(response.status_code, text, text if text in choice else str(choice))

    def cancel(self, client: httpx.Client, draw: random.Random) -> None:
        """Close a stream after a few events."""
        body, _ = self.body(draw)
        events = draw.randrange(4)
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count >= events:
                    return

    def vanish(self, client: httpx.Client, draw: random.Random) -> None:
        """Send a request, perhaps in part, and close the socket."""
        body, _ = self.body(draw)
        content = json.dumps(body).encode()
        host, port = self.url.removeprefix("http://").split(":")
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        whole = head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(whole[: draw.choice((len(whole), len(whole) // 2, 20))])
            time.sleep(draw.random() / 5)

    def broken(self, client: httpx.Client, draw: random.Random) -> None:
        content = draw.choice(BROKEN)
        response = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        if not 400 <= response.status_code < 500:
            self.wrong.append(f"{content[:40]!r} gets status {response.status_code}")

    def oversized(self, client: httpx.Client, draw: random.Random) -> None:
        response = client.post("/v1/completions", json={"prompt": "x" * (9 << 20)})
        if response.status_code != 413:
            self.wrong.append(f"9 MiB get status {response.status_code}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M")
    args = parser.parse_args()
    model = args.model or data.smollm2_gguf()
    own = TextGenerator(
        LlamaForCausalLM.from_pretrained(model, dtype="float32", device="cpu"), Tokenizer.from_file(model)
    )
    expected = {
        (prompt, tokens): own.generate(text, temperature=0, max_new_tokens=tokens)
        for prompt, text in enumerate(PROMPTS)
        for tokens in TOKENS
    }
    command = [sys.executable, "-m", "bpe_llama.cli", "serve", str(model), "--port", "0", "--dtype", "float32"]
    with process([*command, "--slots", str(args.slots), "--prefix-cache-mb", "64"]) as server:
        url = first_line(server)
        soak = Soak(url, expected, args.seed)
        threads = [threading.Thread(target=soak.client, args=(number,)) for number in range(args.clients)]
        for thread in threads:
            thread.start()
        memory: list[tuple[float, int]] = []
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < args.minutes * 60 and server.poll() is None:
            memory.append((passed, resident_bytes(server.pid)))
            if len(memory) % 10 == 1:
                size, seen = memory[-1][1] >> 20, sum(soak.seen.values())
                print(f"{passed:7.0f} s: {size} MiB, {seen} requests, {len(soak.wrong)} wrong", flush=True)
            time.sleep(max(args.minutes * 60 / 200, 0.2))
        soak.stop.set()
        for thread in threads:
            thread.join()
        left = wait_until_idle(url)
        if server.poll() is not None:
            soak.wrong.append(f"the server ended with {server.returncode}")
        settled = [size for passed, size in memory if passed > args.minutes * 12]
        tenth = max(len(settled) // 10, 1)
        before, after = max(settled[:tenth]), max(settled[-tenth:])
        growth = after / before - 1
        print(f"requests: {dict(soak.seen)}")
        print(
            f"memory: {memory[0][1] >> 20} MiB at the start, {before >> 20} MiB after a fifth of the time, "
            f"{after >> 20} MiB at the end ({growth:+.1%})"
        )
        print(f"choices left: {left}; wrong answers: {len(soak.wrong)}")
        for line in soak.wrong[:10]:
            print(f"  {line}")
    return int(bool(soak.wrong or left or growth > 0.02))


def wait_until_idle(url: str) -> int:
    """Return how many choices are unfinished a while after the last client has gone."""
    left = -1
    for _ in range(100):
        text = httpx.get(f"{url}/metrics").text
        left = int(float(text.split("\nbpe_llama_scheduler_unfinished ")[1].split("\n")[0]))
        if not left:
            break
        time.sleep(0.1)
    return left


if __name__ == "__main__":
    sys.exit(main())
