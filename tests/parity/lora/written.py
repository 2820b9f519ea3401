"""Adapters that peft writes and reads, over small models that ours and transformers load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from tests.small_models import small_model

transformers = pytest.importorskip("transformers", reason="parity with peft needs transformers installed")
peft = pytest.importorskip("peft", reason="parity with peft needs peft installed")

IDS = torch.randint(3, 101, (2, 12), generator=torch.Generator().manual_seed(1))
Q_V = ["q_proj", "v_proj"]
OF_THE_MODEL = "base_model.model."


Pair = tuple[LlamaForCausalLM, Callable[[], Any]]


def bases(folder: Path, biased: bool = False, tied: bool = False) -> Pair:
    """Return our base model and a function that loads it with transformers, from ``folder / "base"``."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    fields = {"attention_bias": biased, "mlp_bias": biased, "tie_word_embeddings": tied, "pad_token_id": 0}
    ours = small_model(1, **fields, initializer_range=0.1, eos_token_id=None)
    shake(ours, only="bias")
    ours.save_pretrained(folder / "base")
    return ours, lambda: transformers.LlamaForCausalLM.from_pretrained(folder / "base").eval()


@torch.no_grad()
def shake(model: torch.nn.Module, seed: int = 0, only: str = "") -> None:
    """Add noise to all trained weights, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.requires_grad and name.endswith(only):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def saved_by_peft(theirs: Any, folder: Path, seed: int = 0, **options: Any) -> Any:
    """Return peft's model with a new adapter, which is also saved."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
    made = peft.get_peft_model(theirs, config)
    shake(made, seed)
    made.save_pretrained(folder)
    return made.eval()


def with_adapter(theirs: Any, folder: Path, **options: Any) -> Any:
    """Return peft's model with the adapter of a folder."""
    return peft.PeftModel.from_pretrained(theirs, folder, **options).eval()


def greedy(theirs: Any, ids: Tensor, count: int = 8) -> list[list[int]]:
    made = theirs.generate(input_ids=ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return [list(map(int, row)) for row in made]
