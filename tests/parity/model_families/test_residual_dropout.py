"""Dropout of what Phi-3, Seed-OSS and StableLM add to hidden states: the same features as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from bpe_llama.model import LlamaForCausalLM
from tests.parity.model_families.cases import SHAPE

pytestmark = pytest.mark.usefixtures("quiet_transformers")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("phi3", {"resid_pdrop": 0.3, "attention_dropout": 0.2}),
        ("seed_oss", {"head_dim": 16, "residual_dropout": 0.3, "attention_dropout": 0.2}),
        ("stablelm", {"hidden_dropout": 0.3}),
        ("stablelm", {"hidden_dropout": 0.3, "use_parallel_residual": True}),
    ],
)
@torch.enable_grad()
def test_a_training_step_with_dropout(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **(SHAPE | fields))
    theirs = transformers.AutoModelForCausalLM.from_config(config).train()
    theirs.save_pretrained(tmp_path)
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu").train()
    ids = torch.randint(3, 101, (2, 30), generator=torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for model in (theirs, ours):
        torch.manual_seed(5)
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        gradients.append(model.model.embed_tokens.weight.grad)
    assert_close(losses[1], losses[0])
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    assert abs(ours.eval()(ids, labels=ids).loss - losses[0]) > 1e-3
