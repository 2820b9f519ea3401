"""`resize_token_embeddings` against transformers: the same rows, shapes and config, and folders that it loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from tests.small_models import SMALL

pytestmark = pytest.mark.usefixtures("quiet_transformers")


def pair(folder: Path, **changes: Any) -> tuple[LlamaForCausalLM, Any]:
    """Return a model of 101 ids, and transformers' model with the same weights."""
    model = LlamaForCausalLM(LlamaConfig(**(SMALL | changes)), seed=1)
    model.save_pretrained(folder)
    return model.eval(), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def weights_of(theirs: Any) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in theirs.state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("size", "multiple"), [(90, None), (101, None), (107, None), (107, 64), (None, 16)])
@pytest.mark.parametrize("mean", [True, False])
def test_sizes_and_rows_are_those_of_transformers(
    tied: bool, size: int | None, multiple: int | None, mean: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "transformers")
    model, theirs = pair(tmp_path, tie_word_embeddings=tied)
    torch.manual_seed(0)
    old = weights_of(theirs)
    embedding = theirs.resize_token_embeddings(size, multiple, mean_resizing=mean)
    assert model.resize_token_embeddings(size, multiple, mean_resizing=mean).num_embeddings == embedding.num_embeddings
    assert model.config.vocab_size == theirs.config.vocab_size == embedding.num_embeddings
    assert model.lm_head.out_features == theirs.lm_head.out_features
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    ours = model.state_dict()
    assert ours.keys() == weights_of(theirs).keys()
    for name, weight in weights_of(theirs).items():
        kept = min(101, model.config.vocab_size) if name in ("model.embed_tokens.weight", "lm_head.weight") else None
        assert torch.equal(ours[name][:kept], weight[:kept])
        if kept == 101 and len(weight) > 101 and mean:  # they add noise of 3e-5 of the rows' deviation, 0.2
            torch.testing.assert_close(ours[name][101:], weight[101:], atol=6e-5, rtol=0)
            torch.testing.assert_close(ours[name][101:], old[name].mean(0).expand(len(weight) - 101, -1))
        elif kept == 101 and len(weight) > 101:  # random in both: normal with mean 0 and `initializer_range`
            assert abs(float(ours[name][101:].std()) - 0.2) < 0.03 and abs(float(weight[101:].std()) - 0.2) < 0.03


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_transformers_loads_a_grown_model(tied: bool, kind: str, tmp_path: Path) -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1} if kind == "mixtral" else {}
    model, _ = pair(tmp_path, tie_word_embeddings=tied, **experts)
    model.resize_token_embeddings(120, pieces={110: [3, 4], 119: [7]})
    model.save_pretrained(tmp_path / "grown")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "grown").eval()
    assert theirs.config.vocab_size == 120
    ids = torch.tensor([[5, 110, 119, 100, 101]])
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
