"""Small models, options and data files that the tests of training share."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet

from bpe_llama import Tokenizer
from bpe_llama._corpus.shards import Shard, TokenShards, begin_shard, write_index
from bpe_llama.model import LlamaForCausalLM, training
from bpe_llama.model.training import Example
from bpe_llama.model.training.checkpoints.checkpoint import (
    TrainState,
    load_optimizer_state,
    load_weights,
    read_state,
)
from tests.small_models import tiny_config

SHAPE: dict[str, Any] = {"num_hidden_layers": 2, "num_key_value_heads": 2, "initializer_range": 0.02}
CONFIG = tiny_config(**SHAPE, tie_word_embeddings=True)

SETTINGS: dict[str, Any] = {
    "sequence_length": 16,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 5,
    "log_every": 1,
    "device": "cpu",
}


def fresh() -> LlamaForCausalLM:
    return LlamaForCausalLM(CONFIG, seed=0)


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> TrainState:
    load_weights(folder, model)
    load_optimizer_state(folder, model, optimizer)
    return read_state(folder)


def losses(out: Path) -> dict[float, float]:
    return {line["step"]: line["loss"] for line in training.read_metrics(out / "metrics.jsonl") if "loss" in line}


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_talks(path: Path, talks: list[list[tuple[str, str]]]) -> Path:
    lines = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    return path


TALK = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "up"}]


SPELT = "<|user|>what<|end|><|assistant|>up<|end|>"


SHAREGPT = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "up"}]


SAME = {
    "messages": {"id": 7, "messages": TALK},
    "text parts": {"messages": [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]},
    "sharegpt": {"conversations": SHAREGPT, "source": "x"},
    "sharegpt with roles": {"conversations": TALK},
    "alpaca": {"instruction": "what", "input": "", "output": "up"},
    "prompt-completion": {"prompt": TALK[:1], "completion": TALK[1:]},
}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows in the form that a name asks for."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def learned_text(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.labels[example.labels >= 0])


FINETUNE_SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "sequence_length": 24,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "log_every": 1,
    "device": "cpu",
}


def fresh_for_text(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny_config(**(SHAPE | {"vocab_size": 270, "intermediate_size": 64} | changes)), seed=0)


def curve(out: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in training.read_metrics(out / "metrics.jsonl") if "loss" in line]


def write_shards(folder: Path, shards: list[list[list[int]]], vocab_size: int = 64, tokenizer: str = "t") -> Path:
    """Write documents, given shard by shard, as `bpe-llama encode-corpus` does."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number, documents in enumerate(shards):
        name = f"shard-{number:05d}.npy"
        with begin_shard(folder, name, "uint16") as file:
            for document in documents:
                file.add(np.array(document, np.uint32), np.array([len(document)]), 0)
        entries.append(Shard(name, file.tokens, len(documents), 0))
    tokens, count = sum(entry.tokens for entry in entries), sum(entry.documents for entry in entries)
    write_index(TokenShards(folder, "uint16", vocab_size, tokenizer, (), (), tokens, count, 0, tuple(entries)))
    return folder


def steps_of(documents: int, seed: int = 0, begin: int = 1) -> list[list[int]]:
    """Return documents that count by a step of their own from `begin`: easy to learn, and each begins alike."""
    random = np.random.default_rng(seed)
    sizes, steps = random.integers(2, 40, documents), random.integers(1, 4, documents)
    return [[begin, *((begin + step * np.arange(1, size)) % 60 + 2)] for size, step in zip(sizes, steps, strict=True)]
