"""Small models whose weights are large enough for mistakes to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
def tiny_config() -> Callable[..., LlamaConfig]:
    """Return a maker of small configs: ``tiny_config(attention_bias=True)``."""
    return _config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LlamaForCausalLM]:
    """Return a maker of small models in evaluation mode."""
    return lambda seed=0, **changes: LlamaForCausalLM(_config(**changes), seed=seed).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    """Return random ids, (3, 20), none of them a special one."""
    return torch.randint(3, 97, (3, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    """Run without gradients (a test that needs them says ``torch.enable_grad()``), and on one thread.

    Models this small gain nothing from a second thread and lose much by waiting for it on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
