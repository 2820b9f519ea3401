"""Files of strangers: bytes flipped, values of JSON replaced. Each reader answers with an error that names the file."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama._corpus.corpus import open_corpus
from bpe_llama.cli.decode import _read_ids
from bpe_llama.model import LlamaForCausalLM, lora
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.training import TrainConfig
from bpe_llama.model.training.checkpoints.checkpoint import (
    TrainState,
    find_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
)
from bpe_llama.model.training.report.metrics import read_metrics
from tests.model.checkpoints.test_huggingface import shard
from tests.model.checkpoints.test_meta import write_meta, write_mistral
from tests.small_models import tiny_model

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2.5, 100_000, 10**9, 2**63, 10**30, 10**400, 1e-320, 1e308),
    *(math.nan, math.inf, -math.inf, "", "x", "1", "../x", "\ud800", [], [1], [[]], [None], [math.nan], {}, {"a": 1}),
]
"""Values that replace those of a JSON file."""
MORE = {
    "config.json": """head_dim sliding_window num_local_experts num_experts layer_types partial_rotary_factor num_labels
        original_max_position_embeddings id2label model_type rope_scaling""",
    "params.json": "head_dim sliding_window moe max_seq_len use_scaled_rope rope_scaling_factor hidden_dim",
    "generation_config.json": """temperature top_k top_p min_p repetition_penalty max_new_tokens max_length
        bad_words_ids suppress_tokens stop_strings eos_token_id do_sample""",
    "adapter_config.json": """rank_pattern alpha_pattern modules_to_save trainable_token_indices layers_to_transform
        exclude_modules use_dora layers_pattern""",
}
"""Keys that a file lacks and that get such values, too."""


def models(folder: Path) -> None:
    model = tiny_model(rope_scaling={"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0})
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text("{}")


def pickled(folder: Path) -> None:
    model = tiny_model()
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def shards(folder: Path) -> None:
    tiny_model().save_pretrained(folder)
    shard(folder)


def gguf(folder: Path) -> None:
    save_gguf(tiny_model(num_local_experts=2), folder / "model.gguf")


def checkpoint(folder: Path) -> None:
    model = tiny_model()
    save_checkpoint(folder, model, torch.optim.SGD(model.parameters()), TrainState(3, 1.0, TrainConfig().to_dict()))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')


def adapter(folder: Path) -> None:
    lora.save(lora.add(tiny_model()), folder)


def arrays(folder: Path) -> None:
    np.save(folder / "ids.npy", np.arange(50, dtype=np.uint16))
    np.save(folder / "ids.documents.npy", np.array([0, 7, 50]))


def load_model(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, device="cpu")
    model(torch.tensor([[1, 2, 3]]))


def load_gguf(folder: Path) -> None:
    LlamaForCausalLM.from_pretrained(folder / "model.gguf", device="cpu")


def load_checkpoint(folder: Path) -> None:
    found = find_checkpoint(folder)
    assert found is not None
    read_state(found)
    read_metrics(folder / "metrics.jsonl")
    load_weights(found, tiny_model())


def load_arrays(folder: Path) -> None:
    open_corpus(folder / "ids.npy", 64)
    _read_ids(None, folder / "ids.npy")


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object], int]] = {
    "adapter": (adapter, lambda folder: lora.load(tiny_model(), folder), 40),
    "arrays": (arrays, load_arrays, 50),
    "bin": (pickled, load_model, 40),
    "checkpoint": (checkpoint, load_checkpoint, 40),
    "gguf": (gguf, load_gguf, 40),
    "meta": (lambda folder: write_meta(tiny_model(), folder, 2, 0), load_model, 60),
    "mistral": (lambda folder: write_mistral(tiny_model(), folder), load_model, 40),
    "model": (models, load_model, 90),
    "shards": (shards, load_model, 40),
}
"""By name: what writes the files into a folder, what reads them, and the number of mutations."""


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*above, key)
        yield from places(value[key], (*above, key))


def replaced(path: Path, draw: random.Random) -> str:
    described = json.loads(path.read_text())
    described |= dict.fromkeys(set(MORE.get(path.name, "").split()) - described.keys())
    chosen = draw.choice(sorted(places(described), key=str))
    inner = described
    for key in chosen[:-1]:
        inner = inner[key]
    inner[chosen[-1]] = draw.choice(NASTY)
    return json.dumps(described)


def flipped(path: Path, draw: random.Random) -> bytes:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 2, 8])):
        place = draw.choice([draw.randrange(len(content)), draw.randrange(min(300, len(content)))])
        content[place] = draw.choice([0, 255, draw.randrange(256), *b"(),'{}:9<>|OVSU "])
    return bytes(content[: draw.choice([len(content)] * 9 + [draw.randrange(len(content))])])


@pytest.mark.parametrize("reader", READERS)
def test_a_mutated_file_is_read_or_named_in_the_error(reader: str, tmp_path: Path) -> None:
    write, read, count = READERS[reader]
    write(tmp_path)
    draw = random.Random(reader)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "optimizer.safetensors")
    for number in range(count):
        path = files[number % len(files)]
        before = path.read_bytes()
        is_json = path.suffix == ".json" and draw.random() < 0.8
        path.write_bytes(replaced(path, draw).encode() if is_json else flipped(path, draw))
        change = f"{number}: {path.name} {path.read_bytes()[:2000]!r}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(tmp_path)
            except (ValueError, OSError) as error:
                assert str(tmp_path) in str(error), f"{error!r} names no file; {change}"
            except Exception as error:
                raise AssertionError(f"{error!r} of {change}") from error
        path.write_bytes(before)
