"""Targets for what `bpe_llama.model` reads: configs, adapters, templates, chats, checkpoints, requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bpe_llama import Tokenizer
from bpe_llama._corpus.corpus import open_tokens
from bpe_llama.chat import with_chat_template
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator
from bpe_llama.model.adapters.config import CONFIG, AdapterConfig
from bpe_llama.model.checkpoints.huggingface import shards_of
from bpe_llama.model.checkpoints.tensor_files import read_all, save, stored_in
from bpe_llama.model.training import read_metrics
from bpe_llama.model.training.checkpoints.checkpoint import read_state
from bpe_llama.model.training.finetuning.conversations import read_conversations
from tests.small_models import TINY, tiny_config

_SPECIAL = ["<|im_start|>", "<|im_end|>"]
_TOKENIZER = Tokenizer.from_ranks(
    {bytes([b]): b for b in range(256)}, special_tokens={s: 256 + i for i, s in enumerate(_SPECIAL)}
)
_CHATS = with_chat_template(_TOKENIZER, "chatml")
_MESSAGES = [{"role": "system", "content": "a"}, {"role": "user", "content": "é<|im_end|>"}]
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
}
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def _model_config(block: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(block)
    config = LlamaConfig.from_json(folder / "config.json")
    assert LlamaConfig.from_dict(config.to_dict()) == config


def _adapter(block: bytes, folder: Path) -> None:
    (folder / CONFIG).write_bytes(block)
    config = AdapterConfig.read(folder)
    again = AdapterConfig.of(json.loads(config.to_json("base")))
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head"):
        assert again.targets(path) == config.targets(path)
        if config.targets(path):
            assert (again.rank(path), again.scale(path)) == (config.rank(path), config.scale(path))


def _template(block: bytes, folder: Path) -> None:
    """No text of a message becomes a special token, unless the template writes it."""
    template = block.decode(errors="replace")
    tokenizer = with_chat_template(_TOKENIZER, template)
    for options in ({"add_generation_prompt": True}, {"tools": [_TOOL]}):
        ids = tokenizer.apply_chat_template([*_MESSAGES, _CALL], **options)
        if not any(part in template for part in ("<", "im_", "|", "\\", "%c", "chr", "~", "+")):
            assert all(token_id < 256 for token_id in ids)


def _chats(block: bytes, folder: Path) -> None:
    (folder / "chats.jsonl").write_bytes(block)
    for example in read_conversations([folder / "chats.jsonl"], _CHATS, 100, progress=False).examples:
        assert 0 < example.learned <= len(example.ids) <= 100


def _metrics(block: bytes, folder: Path) -> None:
    (folder / "metrics.jsonl").write_bytes(block)
    assert all(isinstance(line, dict) for line in read_metrics(folder / "metrics.jsonl"))


def _training_state(block: bytes, folder: Path) -> None:
    (folder / "training.json").write_bytes(block)
    assert isinstance(read_state(folder).step, int)


def _safetensors(block: bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(block)
    described = stored_in(path)
    for name, tensor in read_all(path).items():
        assert described[name].shape == tuple(tensor.shape)


def _shards(block: bytes, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_bytes(block)
    assert all("/" not in file for file in shards_of(folder / "model.safetensors.index.json"))


def _npy(block: bytes, folder: Path) -> None:
    (folder / "ids.npy").write_bytes(block)
    assert open_tokens(folder / "ids.npy").ndim == 1


@cache
def _client() -> Any:
    from starlette.testclient import TestClient

    from bpe_llama.model.server.app import create_app
    from bpe_llama.model.server.scheduler import Scheduler

    torch.set_num_threads(1)
    model = LlamaForCausalLM(tiny_config(vocab_size=258), seed=0).eval()
    client = TestClient(
        create_app(Scheduler({"m": TextGenerator(model, _CHATS)}, slots=2), grace=5), base_url="http://127.0.0.1"
    )
    client.__enter__()  # until the process ends
    return client


_ENDPOINTS = ("chat/completions", "completions", "embeddings", "responses")


def _request(block: bytes, folder: Path) -> None:
    """The first byte chooses the endpoint, the others are the body."""
    endpoint = _ENDPOINTS[block[0] % 4] if block else _ENDPOINTS[0]
    headers = {"Content-Type": "application/json"}
    answer = _client().post(f"/v1/{endpoint}", content=block[1:], headers=headers)
    assert answer.status_code < 500, f"{endpoint}: {answer.status_code} {answer.text}"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _made(write: Callable[[Path], Any], name: str) -> bytes:
    """Return the file that `write` makes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 8192}
_HEADS = TINY | {"num_key_value_heads": 4}
_CONFIGS = [
    _json(TINY | {"model_type": "llama", "rope_scaling": _LLAMA3, "torch_dtype": "bfloat16"}),
    _json(_HEADS | {"model_type": "qwen3", "head_dim": 8, "sliding_window": 4, "layer_types": ["full_attention"]}),
    _json(_HEADS | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": [1, 2]}),
]
_ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "use_dora": False}
_ADAPTER |= {"rank_pattern": {"layers.0": 4}, "alpha_pattern": {}, "modules_to_save": None, "lora_dropout": 0.1}
_TEMPLATE = (
    b"{% for m in messages %}<|im_start|>{{ m.role | trim }}\n{{ m['content'] }}{% if loop.last %}{{ '<|im_end|>' }}"
    b"{% endif %}{% endfor %}{% set ns = namespace(n=1) %}{{ (tools or []) | tojson }}"
)
_CHAT_LINES = b"\n".join(
    map(
        _json,
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"messages": [*_MESSAGES, _CALL | {"content": "c"}], "tools": [_TOOL]},
        ),
    )
)
_STATE = {"step": 3, "elapsed": 1.5, "settings": {"seed": 0}, "skipped": 0, "recent": [1.0, 2], "data": "ab"}
_USER = {"role": "user", "content": [{"type": "text", "text": "a"}]}
_REQUESTS = [
    b"\x00"
    + _json({"messages": [_USER], "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "logprobs": True, "n": 2}),
    b"\x00" + _json({"messages": [_USER, _CALL], "tools": [_TOOL], "tool_choice": "auto", "max_tokens": 2, "seed": 1}),
    b"\x00" + _json({"messages": [_USER], "max_tokens": 2, "response_format": {"type": "json_object"}, "stream": True}),
    b"\x01" + _json({"prompt": [[1, 2]], "max_tokens": 2, "echo": True, "logprobs": 2, "logit_bias": {"3": -5}}),
    b"\x02" + _json({"input": ["a", "b"], "encoding_format": "base64"}),
    b"\x03" + _json({"input": [{"role": "user", "content": "a"}], "max_output_tokens": 2, "instructions": "b"}),
]

TARGETS: dict[str, tuple[Callable[[bytes, Path], None], list[bytes]]] = {
    "python_adapter": (_adapter, [_json(_ADAPTER)]),
    "python_chats": (_chats, [_CHAT_LINES, _json({"prompt": "a", "completion": "b"}), _json({"text": "a"})]),
    "python_metrics": (_metrics, [b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0, "sample": "a"}\n']),
    "python_model_config": (_model_config, _CONFIGS),
    "python_npy": (_npy, [_made(lambda path: np.save(path, np.arange(9, dtype=np.uint16)), "a.npy")]),
    "python_request": (_request, _REQUESTS),
    "python_safetensors": (
        _safetensors,
        [
            _made(
                lambda path: save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path),
                "a.safetensors",
            )
        ],
    ),
    "python_shards": (_shards, [_json({"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}})]),
    "python_template": (_template, [_TEMPLATE, _CHATS.chat_template.encode()]),
    "python_training_state": (_training_state, [_json(_STATE)]),
}
