"""Adapters against peft: what either saves the other loads, and the outputs are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, lora

transformers = pytest.importorskip("transformers", reason="parity with peft needs transformers installed")
peft = pytest.importorskip("peft", reason="parity with peft needs peft installed")
# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 101, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LlamaForCausalLM, Any]:
    transformers.utils.logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    ours = LlamaForCausalLM(config, seed=1).eval()
    ours.save_pretrained(tmp_path / "base")
    return ours, transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every trainable matrix numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


@torch.no_grad()
def test_peft_loads_ours(pair: tuple[LlamaForCausalLM, Any], ids: Tensor, tmp_path: Path) -> None:
    ours, theirs = pair
    bare = ours(ids).logits
    shake(lora.add(ours, rank=4, alpha=12, target_modules=("q_proj", "o_proj", "down_proj")))
    lora.save(ours, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert not torch.allclose(ours(ids).logits, bare, atol=1e-2)
    assert_close(ours(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rslora", [False, True])
@torch.no_grad()
def test_we_load_pefts(pair: tuple[LlamaForCausalLM, Any], ids: Tensor, tmp_path: Path, rslora: bool) -> None:
    ours, theirs = pair
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["v_proj", "up_proj"], use_rslora=rslora)
    adapted = peft.get_peft_model(theirs, config).eval()
    shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)
    lora.save(ours, tmp_path / "again")
    first, second = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
