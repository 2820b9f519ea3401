"""The classifier against transformers: random weights in a folder that both load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bpe_llama.model import LlamaForSequenceClassification
from tests.small_models import small_config

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

LABELS = {
    "regression": torch.tensor([0.3, -1.0, 2.0]),
    "single": torch.tensor([0, 3, 1]),
    "multi": torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4]),
}


@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_loss(kind: str, side: str, tmp_path: Path) -> None:
    labels_and_padding = {"num_labels": 1 if kind == "regression" else 4, "pad_token_id": 0}
    config = small_config(**labels_and_padding, max_position_embeddings=64)
    ours = LlamaForSequenceClassification(config, seed=1).eval()
    ours.save_pretrained(tmp_path)
    theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, 101, (3, 20), generator=torch.Generator().manual_seed(2))
    pads = slice(None, 8) if side == "left" else slice(12, None)
    ids[1, pads] = 0
    mask = (ids != 0).long()
    labels = LABELS[kind]
    expected = theirs(ids, attention_mask=mask, labels=labels)
    for given in (mask, None):
        out = ours(ids, given, labels)
        assert_close(out.logits, expected.logits, atol=1e-4, rtol=0)
        assert out.loss is not None
        assert_close(out.loss, expected.loss, atol=1e-5, rtol=1e-5)
    again = LlamaForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, ours(ids).logits)
    assert again.config.num_labels == config.num_labels


def test_a_padding_id_that_the_mask_keeps_is_not_the_last_token(tmp_path: Path) -> None:
    """As where EOS is the padding id: before, the text was classified at its EOS."""
    ours = LlamaForSequenceClassification(small_config(num_labels=4, pad_token_id=2), seed=1).eval()
    ours.save_pretrained(tmp_path)
    theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 2, 7, 2], [5, 6, 7, 2, 2], [2, 2, 2, 2, 2]])
    mask = torch.ones_like(ids)
    assert_close(ours(ids, mask).logits, theirs(ids, attention_mask=mask).logits, atol=1e-4, rtol=0)
