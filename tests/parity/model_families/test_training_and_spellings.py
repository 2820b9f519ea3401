"""What the cases of `cases_smol` cannot show: dropout, defaults, other spellings of a ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.backends.dense import is_dense
from tests.parity.model_families.cases import SHAPE
from tests.parity.model_families.cases_smol import SMOL_CASES, YARN

pytestmark = pytest.mark.usefixtures("quiet_transformers")
SPELT_OTHERWISE = ("dtype", "head_dim", "id2label", "label2id", "rope_scaling", "num_labels")


@torch.enable_grad()
def test_a_training_step_with_dropout(tmp_path: Path) -> None:
    config = transformers.SeedOssConfig(**(SHAPE | {"head_dim": 16, "attention_dropout": 0.2, "residual_dropout": 0.3}))
    torch.manual_seed(0)
    theirs = transformers.SeedOssForCausalLM(config).train()
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


@pytest.mark.parametrize("name", SMOL_CASES)
def test_the_defaults_are_those_of_transformers(name: str) -> None:
    theirs = transformers.AutoConfig.for_model(name)
    for key, value in LlamaConfig.from_dict({"model_type": name}).to_dict().items():
        if hasattr(theirs, key) and key not in SPELT_OTHERWISE:
            assert value == getattr(theirs, key), key


@pytest.mark.parametrize("name", SMOL_CASES)
def test_layers_of_their_own_are_not_those_of_the_cpu_decoder(name: str) -> None:
    fields = SMOL_CASES[name]["cases"][0]
    model = LlamaForCausalLM(LlamaConfig.from_dict(SHAPE | fields | {"model_type": name})).eval()
    assert is_dense(model) == (name in ("smollm3", "ministral"))


@pytest.mark.parametrize("theta", [500_000.0, 10_000.0])
@pytest.mark.filterwarnings("ignore:rope_theta is 10000.0, which transformers' olmo3 reads for layers without")
def test_rope_scaling_of_olmo3_beside_the_base(theta: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.Olmo3ForCausalLM(transformers.Olmo3Config(**(SHAPE | {"sliding_window": 5})))
    theirs.save_pretrained(tmp_path)
    values: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    values |= {"rope_theta": theta, "rope_scaling": {key: YARN[key] for key in YARN if key != "rope_theta"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    ids = torch.randint(3, 101, (2, 50), generator=torch.Generator().manual_seed(1))
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
    assert_close(LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(ids).logits, expected, atol=1e-4, rtol=0)


def test_a_base_that_olmo3_reads_for_some_layers_warns() -> None:
    with pytest.warns(UserWarning, match="rope_theta is 10000.0, which transformers' olmo3 reads for layers without"):
        config = LlamaConfig.from_dict(SHAPE | {"model_type": "olmo3", "rope_theta": 10_000.0})
    assert config.rope["rope_theta"] == 10_000.0 and (config.local_rope or {})["rope_theta"] == 500_000.0
