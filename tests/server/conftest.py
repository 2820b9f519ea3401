"""One server for all tests of this folder: a small model with a trained tokenizer, on a socket of this machine."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator

pytest.importorskip("fastapi", reason="the server is made with FastAPI")
pytest.importorskip("uvicorn", reason="the server runs on uvicorn")

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps", "until", "12"]
WORDS += ["o'clock", "été", "日本", '{"name": "add", "arguments": {"a": 1}}']
CORPUS = [" ".join(random.Random(seed).choices(WORDS, k=14)) + ".\n" for seed in range(60)]
SPECIAL = ["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
TEMPLATE = (
    "<s>{% if tools %}<|system|>Call with <tool_call>{% for t in tools %}{{ t.function.name }} {% endfor %}<|end|>"
    "{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_generator(seed: int = 5) -> TextGenerator:
    tokenizer = Tokenizer.train_from_iterator(CORPUS, vocab_size=340, special_tokens=SPECIAL, progress=False)
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=tokenizer.special_tokens["<s>"],
        eos_token_id=tokenizer.special_tokens["<|end|>"],
    )
    return TextGenerator(LlamaForCausalLM(config, seed=seed).eval(), tokenizer)


def make_caller() -> TextGenerator:
    """Return a generator that was trained on one answer: a call of the tool ``add``."""
    import torch

    generator = make_generator()
    tools = [{"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}]
    prompt = generator.tokenizer.apply_chat_template([{"role": "user", "content": "the fox"}], tools=tools)
    answer = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|end|>'
    ids = torch.tensor([prompt + generator.tokenizer.encode(answer, allowed_special="all")])
    labels = torch.where(torch.arange(ids.shape[1]) < len(prompt), -100, ids)
    optimizer = torch.optim.Adam(generator.model.parameters(), lr=5e-3)
    with torch.enable_grad():
        for _ in range(60):
            loss = generator.model(ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return generator


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    generators: dict[str, TextGenerator]
    scheduler: Any
    app: Any

    @property
    def generator(self) -> TextGenerator:
        return next(iter(self.generators.values()))


def serve(generators: dict[str, TextGenerator], config: Any = None, **options: Any) -> Iterator[Running]:
    """Run a server on a free port until the generator is closed."""
    from bpe_llama.model.server.app import create_app
    from bpe_llama.model.server.page import page_routes
    from bpe_llama.model.server.running import Server
    from bpe_llama.model.server.scheduler import Scheduler
    from bpe_llama.playground.running import bound_socket, url_of

    scheduler = Scheduler(generators, **{"slots": 8} | options)
    app = create_app(scheduler, config, routes=page_routes(scheduler), grace=5)
    started = threading.Event()
    server = Server(app, started.set)
    listening = bound_socket("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    assert started.wait(120), "the server does not start"
    yield Running(url_of(*listening.getsockname()), generators, scheduler, app)
    server.should_exit = True
    thread.join(120)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    import torch

    torch.set_num_threads(1)
    yield from serve({"small": make_generator(), "other": make_generator(seed=6), "caller": make_caller()})


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    """Return a small model over bytes, for tests of the scheduler."""
    from tests.small_models import small_config

    config = small_config(vocab_size=256, max_position_embeddings=1024, eos_token_id=None)
    tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)})
    return TextGenerator(LlamaForCausalLM(config, seed=3).eval(), tokenizer)
