"""Servers side by side: requests and tokens a second, and the time to the first token, at 1, 8 and 32 clients.

Each client sends the next request as soon as the last one is answered, over `/v1/completions` with streaming; greedy,
to a fixed number of new tokens. With shared prompts all requests begin with the same long text, as a system prompt.

| server | what |
|---|---|
| bpe_llama | ``bpe-llama serve`` |
| llama_cpp | llama.cpp's server, from the wheel of xllamacpp |
| transformers | ``transformers serve`` |
| plain | FastAPI around transformers' ``generate``, one request at a time |

All servers run at once and are asked in turn, so that a busy machine is busy for all; only one works at a time. The
medians of the rounds are shown. A server that cannot be started, or fails, is named with the reason and left out.
Prompts of all servers have the same text, which no earlier request had; tokens are counted by our tokenizer, so that
servers are compared by the text they produce.

python -m bench.serve_http --requests 32 --tokens 32 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench import data
from bpe_llama import Tokenizer

STORY = "The old lighthouse keeper counted the ships that passed each night and wrote their names in a book. "
LLAMA_CPP = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.port = 2048 * 8, 8, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
params.n_gpu_layers = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""
PLAIN = """
import sys, threading, uvicorn, torch
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
import json
torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
app, lock = FastAPI(), threading.Lock()

@app.post("/v1/completions")
def complete(body: dict):
    def events():
        with lock:
            ids = tokenizer(body["prompt"], return_tensors="pt")
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
            options = dict(max_new_tokens=body["max_tokens"], min_new_tokens=body["max_tokens"], do_sample=False)
            thread = threading.Thread(target=lambda: model.generate(**ids, **options, streamer=streamer))
            thread.start()
            for text in streamer:
                yield "data: " + json.dumps({"choices": [{"text": text}]}) + "\\n\\n"
            thread.join()
        yield "data: [DONE]\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")

uvicorn.run(app, port=int(sys.argv[3]), log_level="warning")
"""


@dataclass
class Server:
    """A running server and what its requests need."""

    url: str
    path: str = "/v1/completions"
    extra: tuple[tuple[str, Any], ...] = ()
    pid: int = 0

    def body(self, prompt: str, tokens: int) -> dict[str, Any]:
        """Return a request of one prompt."""
        chat = {"messages": [{"role": "user", "content": prompt}]} if "chat" in self.path else {"prompt": prompt}
        return {**chat, "max_tokens": tokens, "temperature": 0, "stream": True, **dict(self.extra)}


@dataclass
class Result:
    """The figures of one server at one number of clients."""

    requests: float
    """Per second."""
    tokens: float
    """Per second."""
    first: float
    """Median seconds to the first token."""


@contextlib.contextmanager
def process(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the block ends."""
    with tempfile.TemporaryFile("w+") as log:
        started = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment
        )
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def first_line(started: subprocess.Popen[str], seconds: float = 240) -> str:
    """Return the first line of a program's output that names a URL or an address."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in started.stdout or ():
            lines.put(line.strip())
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while line := lines.get(timeout=seconds):
            if line.startswith("http"):
                return line
    raise RuntimeError("it printed no URL")


def wait_for(url: str, seconds: float = 240) -> None:
    """Wait until a server answers anything."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(url, timeout=5)
            return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


@contextlib.contextmanager
def bpe_llama(folder: Path, gguf: Path, threads: int) -> Iterator[Server]:
    """Run ours."""
    command = [sys.executable, "-m", "bpe_llama.cli", "serve", str(gguf), "--port", "0", "--slots", "32"]
    with process([*command, "--threads", str(threads)]) as started:
        yield Server(first_line(started), extra=(("ignore_eos", True),), pid=started.pid)


@contextlib.contextmanager
def llama_cpp(folder: Path, gguf: Path, threads: int) -> Iterator[Server]:
    """Run llama.cpp's."""
    path = os.pathsep.join([str(data.llama_cpp()), os.environ.get("PYTHONPATH", "")])
    with process([sys.executable, "-c", LLAMA_CPP, str(gguf), str(threads)], PYTHONPATH=path) as started:
        yield Server(first_line(started), extra=(("ignore_eos", True),))


@contextlib.contextmanager
def transformers(folder: Path, gguf: Path, threads: int) -> Iterator[Server]:
    """Run transformers' own."""
    port = free_port()
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(folder), "--port", str(port), "--device", "cpu"]
    with process(command, OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1") as started:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health")
        if started.poll() is not None:
            raise RuntimeError("transformers serve ended")
        yield Server(url, "/v1/chat/completions", (("model", str(folder)),))


@contextlib.contextmanager
def plain(folder: Path, gguf: Path, threads: int) -> Iterator[Server]:
    """Run FastAPI around ``generate``."""
    port = free_port()
    with process([sys.executable, "-c", PLAIN, str(folder), str(threads), str(port)]) as _:
        url = f"http://127.0.0.1:{port}"
        wait_for(url)
        yield Server(url)


SERVERS = {"bpe_llama": bpe_llama, "llama_cpp": llama_cpp, "transformers": transformers, "plain": plain}


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def prompts(numbers: Sequence[int], shared: bool, words: int) -> list[str]:
    """Return a prompt of about so many words for each number; they begin alike or differ from the first word on."""
    long = STORY * (words // len(STORY.split()) + 1)
    return [f"{long} Ship number {i} was" if shared else f"Night {i}. {long}"[: len(long)] for i in numbers]


def ask(client: httpx.Client, server: Server, prompt: str, tokens: int, **options: Any) -> tuple[float, str]:
    """Return the seconds to the first text, and the whole text."""
    start, first, parts = time.perf_counter(), 0.0, []
    with client.stream("POST", server.path, json=server.body(prompt, tokens) | options) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {response.read()[:300]!r}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:]).get("choices", ()):
                text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                if text:
                    first = first or time.perf_counter() - start
                    parts.append(text)
    return first, "".join(parts)


def load(server: Server, clients: int, texts: Sequence[str], tokens: int, tokenizer: Tokenizer) -> Result:
    """Return the figures of so many clients that send all prompts."""
    options: dict[str, Any] = {"timeout": 600, "limits": httpx.Limits(max_connections=clients)}
    options["headers"] = {"Connection": "close"}  # llama.cpp closes connections that it could keep
    with httpx.Client(base_url=server.url, **options) as client, ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        answers = list(pool.map(lambda text: ask(client, server, text, tokens), texts))
        seconds = time.perf_counter() - start
    generated = sum(tokenizer.count(text) for _, text in answers)
    return Result(len(texts) / seconds, generated / seconds, median(first for first, _ in answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=32, help="per number of clients; 1 client sends a quarter")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=200, help="of a prompt")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    gguf = data.smollm2_gguf()
    tokenizer = Tokenizer.from_file(gguf)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm2"
        if {"transformers", "plain"} & set(args.servers):
            write_folder(gguf, folder)
        found: dict[tuple[bool, int, str], list[Result]] = {}
        with contextlib.ExitStack() as stack:
            servers: dict[str, Server] = {}
            for name in args.servers:
                with leave_out(name, servers):
                    servers[name] = stack.enter_context(SERVERS[name](folder, gguf, args.threads))
            asked = 0
            for _, shared, clients in product(range(args.rounds), (False, True), args.clients):
                count = max(args.requests if clients > 1 else args.requests // 4, 1)
                texts = prompts(range(asked, asked + count), shared, args.words)
                asked += count
                for name, server in list(servers.items()):
                    with leave_out(name, servers):
                        result = load(server, clients, texts, args.tokens, tokenizer)
                        found.setdefault((shared, clients, name), []).append(result)
                        print(f"{name:<14}{'shared' if shared else 'own':<8}{clients:>4} clients: {result}", flush=True)
        print(f"{'server':<14}{'prompts':<10}{'clients':>8}{'requests/s':>12}{'tokens/s':>10}{'first token':>13}")
        for (shared, clients, name), results in sorted(found.items()):
            rates = [median(getattr(result, field) for result in results) for field in ("requests", "tokens", "first")]
            kind = "shared" if shared else "own"
            print(f"{name:<14}{kind:<10}{clients:>8}{rates[0]:>12.2f}{rates[1]:>10.1f}{rates[2]:>11.3f} s")


@contextlib.contextmanager
def leave_out(name: str, servers: dict[str, Server]) -> Iterator[None]:
    """Take a server out of the comparison, and say why, if the block fails."""
    try:
        yield
    except (RuntimeError, OSError, httpx.HTTPError, data.DataUnavailable) as error:
        servers.pop(name, None)
        print(f"{name:<14}left out: {error}", flush=True)


def write_folder(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer as transformers loads them."""
    from bpe_llama.model import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(gguf, dtype="float32", device="cpu").save_pretrained(folder)
    tokenizer = Tokenizer.from_file(gguf)
    tokenizer.save(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(str(tokenizer.chat_template))
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


if __name__ == "__main__":
    main()
