"""Small models whose weights are large enough for mistakes to show, and a compiler of Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bpe_llama.model import LlamaConfig, LlamaForCausalLM


def _config(**changes: Any) -> LlamaConfig:
    values: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return LlamaConfig(**(values | changes))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LlamaForCausalLM]:
    """Return a function that builds small models in evaluation mode."""
    return lambda seed=0, **changes: LlamaForCausalLM(_config(**changes), seed=seed).eval()


@pytest.fixture
def model(tiny_model: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    """Return a small model that knows no end of a text."""
    return tiny_model(eos_token_id=None)


@pytest.fixture
def ids() -> torch.Tensor:
    """Return random ids, (3, 20), none of them a special one."""
    return torch.randint(3, 97, (3, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def compiled_for_hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that compiles a variant of a Triton kernel to machine code, which needs no GPU."""
    from bench.cuda.kernels import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return compiled


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Use `one_thread` in every test of this folder."""
