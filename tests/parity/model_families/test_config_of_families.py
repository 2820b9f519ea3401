"""Keys of a ``config.json`` that a family reads: defaults as in transformers, other spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.backends.layer_parts import has_known_layers
from bpe_llama.model.checkpoints import average
from tests.parity.model_families.cases import MODEL_FAMILIES, SHAPE
from tests.parity.model_families.cases_smol import SMOL_CASES, YARN

pytestmark = pytest.mark.usefixtures("quiet_transformers")
SPELT_OTHERWISE = ("dtype", "head_dim", "id2label", "label2id", "rope_scaling", "num_labels")
EQUIVALENT = {("phi3", "rope_parameters"), ("qwen2_moe", "sliding_window"), ("deepseek_v2", "num_experts_per_tok")}
"""transformers states a partial_rotary_factor of 1 and a window of 0, which are none, and no experts, which fails."""


@pytest.mark.parametrize("name", MODEL_FAMILIES)
def test_the_defaults_are_those_of_transformers(name: str) -> None:
    theirs = transformers.AutoConfig.for_model(name)
    for key, value in LlamaConfig.from_dict({"model_type": name}).to_dict().items():
        if hasattr(theirs, key) and key not in SPELT_OTHERWISE and (name, key) not in EQUIVALENT:
            assert value == getattr(theirs, key), key


@pytest.mark.parametrize("name", ["smollm3", "ministral"])
def test_the_cpu_decoder_runs_families_of_llama_layers(name: str) -> None:
    fields = SMOL_CASES[name]["cases"][0]
    assert has_known_layers(LlamaForCausalLM(LlamaConfig.from_dict(SHAPE | fields | {"model_type": name})).eval())


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


@pytest.mark.parametrize("name", ["olmo3", "gemma3_text"])
@pytest.mark.filterwarnings("ignore:rope_type 'default' does not read factor:UserWarning")
def test_the_old_name_of_the_rope_type_beside_types_of_layers(name: str, tmp_path: Path) -> None:
    """transformers ignores it there, and saves it beside the new name with the value default."""
    values = SHAPE | {"model_type": name, "head_dim": 16, "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(ValueError, match=f"rope_scaling is .*transformers' {name} does not read 'type'"):
        LlamaConfig.from_dict(values)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values)).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(3, 101, (2, 50), generator=torch.Generator().manual_seed(1))
    assert_close(
        LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0
    )


def test_phi3_and_its_copy_by_transformers_have_one_mean(tmp_path: Path) -> None:
    """transformers 5 states a partial_rotary_factor of 1 for it."""
    ours = LlamaForCausalLM(LlamaConfig.from_dict(SHAPE | {"model_type": "phi3"}), seed=1)
    ours.save_pretrained(tmp_path / "ours")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    mean = average([tmp_path / "ours", tmp_path / "theirs"])
    assert all(torch.equal(weight, mean.state_dict()[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("factor", [{}, {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0}])
def test_an_old_key_of_stablelm_that_says_the_same(factor: dict[str, float]) -> None:
    fields = SHAPE | {"model_type": "stablelm"} | factor
    stated = fields | {"rope_pct": factor.get("partial_rotary_factor", 0.25)}
    config, theirs = LlamaConfig.from_dict(stated), transformers.AutoConfig.for_model(**stated)
    assert LlamaConfig.from_dict(theirs.to_dict()) == config  # has it in rope_parameters
    assert config.rope["partial_rotary_factor"] == theirs.rope_parameters["partial_rotary_factor"] == stated["rope_pct"]
    assert config == LlamaConfig.from_dict(fields) == LlamaConfig.from_dict(config.to_dict())
    with pytest.raises(ValueError, match=r"rope_pct is 0\.75, a key that is not known"):
        LlamaConfig.from_dict(fields | {"rope_pct": 0.75})
