"""Adapters of a scaled embedding and a scaled head (Granite) against peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bpe_llama.model import LlamaForCausalLM, lora
from tests.parity.lora.written import IDS, saved_by_peft, transformers, with_adapter
from tests.small_models import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"target_modules": ["lm_head", "embed_tokens"], "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "pissa": {"target_modules": ["lm_head"], "init_lora_weights": "pissa"},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 7, 100]},
    "tokens of the head": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 5]}},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_loading_what_peft_saves(kind: str, tied: bool, tmp_path: Path) -> None:
    if tied and kind in ("pissa", "tokens of the head"):
        pytest.skip("refused of a tied head")
    config = transformers.GraniteConfig(
        **(SMALL | {"initializer_range": 0.1}),
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.7,
        logits_scaling=0.3,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path / "base")
    saved_by_peft(fresh(tmp_path), tmp_path / "adapter", **KINDS[kind])
    theirs = with_adapter(fresh(tmp_path), tmp_path / "adapter")
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "base", device="cpu")
    expected, bare = theirs(IDS).logits, ours(IDS).logits
    lora.load(ours, tmp_path / "adapter")
    assert not torch.allclose(expected, bare, atol=1e-2)
    assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=1e-5)
    if lora.why_not_merge(ours) is None:
        lora.merge(ours)
        assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=1e-5)
        lora.unmerge(ours)
        assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=1e-5)


def fresh(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "base").eval()
