"""Names on the Hugging Face Hub beside transformers and peft: one server, equal ids and logits, each other's caches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.adapters import lora
from tests.hub_server import Hub, files_of
from tests.small_models import small_model

pytestmark = pytest.mark.usefixtures("quiet_transformers")

TEXT = "import os  # the same ids"
IDS = torch.tensor([[1, 5, 7, 2]])
Found = tuple[list[int], int | None, Tensor]


def _theirs(**options: Any) -> Found:
    tok = transformers.AutoTokenizer.from_pretrained("org/name", **options)
    model = transformers.AutoModelForCausalLM.from_pretrained("org/name", **options).eval()
    adapted = peft.PeftModel.from_pretrained(model, "org/adapter", **options)
    return tok(TEXT)["input_ids"], tok.eos_token_id, adapted(IDS).logits


def _ours(**options: Any) -> Found:
    tok = Tokenizer.from_pretrained("org/name", **options)
    model = LlamaForCausalLM.from_pretrained("org/name", device="cpu", **options)
    return tok(TEXT)["input_ids"], tok.eos_id, lora.load(model, "org/adapter", **options)(IDS).logits


@pytest.fixture
def served(hub: Hub, tmp_path: Path) -> Hub:
    """Return a server with a model, an adapter and a gated repository."""
    text = Path(os.__file__).read_text("utf-8")
    tok = Tokenizer.train_from_iterator([text], vocab_size=300, special_tokens=["<s>", "</s>"], progress=False)
    small_model(vocab_size=len(tok)).save_pretrained(tmp_path / "model")
    tok.save(tmp_path / "model")
    adapted = lora.add(small_model(vocab_size=len(tok)), rank=2, target_modules=("q_proj", "v_proj"))
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.normal_(generator=torch.Generator().manual_seed(0))
    lora.save(adapted, tmp_path / "adapter", base="org/name")
    hub.add("org/name", files_of(tmp_path / "model"))
    hub.add("org/adapter", files_of(tmp_path / "adapter"))
    hub.add("org/gated", files_of(tmp_path / "model"), gated=True, token="secret")
    return hub


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_equal_results_and_common_caches(served: Hub, tmp_path: Path) -> None:
    def check(load: Callable[..., Found], cache: str, local_files_only: bool) -> None:
        ids, eos, logits = load(cache_dir=tmp_path / cache, local_files_only=local_files_only)
        assert (ids, eos) == (expected[0], expected[1])
        torch.testing.assert_close(logits, expected[2], rtol=1e-5, atol=1e-5)

    expected = _theirs(cache_dir=tmp_path / "theirs")
    assert expected[1] is not None
    check(_ours, "ours", local_files_only=False)
    served.asked.clear()
    check(_ours, "theirs", local_files_only=True)
    assert served.asked == []
    check(_theirs, "ours", local_files_only=True)
    assert served.fetched() == []  # peft asks, all the same, whether files exist


@pytest.mark.parametrize(
    ("name", "options"),
    [("org/none", {}), ("org/name", {"revision": "v2"}), ("org/gated", {}), ("org/none", {"local_files_only": True})],
)
def test_equal_kinds_of_errors(served: Hub, name: str, options: dict[str, Any]) -> None:
    for load in (
        transformers.AutoTokenizer.from_pretrained,
        transformers.AutoModelForCausalLM.from_pretrained,
        Tokenizer.from_pretrained,
        LlamaForCausalLM.from_pretrained,
    ):
        with pytest.raises(OSError):
            load(name, **options)
