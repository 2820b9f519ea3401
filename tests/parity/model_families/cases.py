"""The configs of each model family that are compared with transformers, and the published sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.parity.model_families.cases_deepseek import DEEPSEEK_CASES
from tests.parity.model_families.cases_gemma import GEMMA_CASES
from tests.parity.model_families.cases_llama4 import LLAMA4_CASES
from tests.parity.model_families.cases_phi import PHI_CASES
from tests.parity.model_families.cases_qwen import QWEN_CASES
from tests.parity.model_families.cases_smol import SMOL_CASES

SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
"""Of every case, unless it says otherwise."""


@dataclass(frozen=True)
class ModelFamily:
    """What is tested of a family.

    Attributes:
        cases: Fields of the configs of transformers beyond `SHAPE`.
        published: For each published model the fields of its ``config.json`` and its number of parameters.
        adapted: Modules that LoRA adapts in the tests.
        refused: Fields that no case may have, and what the error says.
    """

    cases: list[dict[str, Any]]
    published: dict[str, tuple[dict[str, Any], int]]
    adapted: tuple[str, ...] = ("q_proj", "down_proj")
    refused: list[tuple[dict[str, Any], str]] = field(default_factory=list)


MODEL_FAMILIES: dict[str, ModelFamily] = {
    name: ModelFamily(**fields)
    for name, fields in (DEEPSEEK_CASES | GEMMA_CASES | LLAMA4_CASES | PHI_CASES | QWEN_CASES | SMOL_CASES).items()
}
