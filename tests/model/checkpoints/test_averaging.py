"""Means of checkpoints against NumPy, in all layouts that are read; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification
from bpe_llama.model.checkpoints import average
from bpe_llama.model.families.deepseek_v3 import DeepseekV3Config
from tests.model.checkpoints.test_huggingface import shard

Make = Callable[..., LlamaForCausalLM]


@pytest.fixture
def folders(tiny_model: Make, tmp_path: Path) -> list[Path]:
    """Three models, of which one is sharded, one a pickle and one has no prefix in its names."""
    made = [tmp_path / name for name in ("one", "two", "three")]
    for seed, folder in enumerate(made):
        tiny_model(seed).save_pretrained(folder)
    shard(made[0])
    tensors = load_file(made[1] / "model.safetensors")
    torch.save({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, made[1] / "pytorch_model.bin")
    (made[1] / "model.safetensors").unlink()
    return made


def numpy_mean(tiny_model: Make, name: str, weights: list[float] | None) -> np.ndarray[Any, Any]:
    parts = [tiny_model(seed).state_dict()[name].double().numpy() for seed in range(3)]
    return np.asarray(np.average(parts, axis=0, weights=weights))


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.5, 0.25, 4.0]])
def test_the_mean_is_numpys(tiny_model: Make, folders: list[Path], weights: list[float] | None) -> None:
    calls: list[tuple[int, int]] = []
    model = average(folders, weights, progress=lambda done, total: calls.append((done, total)))
    assert isinstance(model, LlamaForCausalLM) and not model.training and model.config.vocab_size == 97
    assert calls[-1] == (30, 30) and len(calls) == 30
    for name, weight in model.state_dict().items():
        assert np.array_equal(weight.numpy(), numpy_mean(tiny_model, name, weights).astype(np.float32)), name


def test_dtypes(tiny_model: Make, tmp_path: Path) -> None:
    tiny_model(0).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_model(1).save_pretrained(tmp_path / "single")
    parts = [tiny_model(0).to(torch.bfloat16).lm_head.weight.double(), tiny_model(1).lm_head.weight.double()]
    for folders, dtype in ((("half", "single"), torch.bfloat16), (("single", "half"), torch.float32)):
        mean = average([tmp_path / folder for folder in folders])
        assert mean.dtype == dtype and torch.equal(mean.lm_head.weight, (sum(parts) / 2).to(dtype))
    wide = average([tmp_path / "half", tmp_path / "single"], dtype="float64")
    assert torch.equal(wide.lm_head.weight, sum(parts) / 2)


def test_float32_buffers_of_other_models_stay_float32(tmp_path: Path) -> None:
    """Before, a router's bias was rounded to the dtype of the weights, which changes the experts that are chosen."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 97}
    experts = {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    model = LlamaForCausalLM(DeepseekV3Config(**sizes, **experts), dtype=torch.bfloat16)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    model.get_buffer(name).copy_(torch.tensor([1.001, 2.002, 3.003, 4.004]))
    model.save_pretrained(tmp_path)
    assert torch.equal(average([tmp_path]).get_buffer(name), model.get_buffer(name))


def test_one_checkpoint_is_its_own_mean_and_tied_heads_stay_tied(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    mean = average([tmp_path, tmp_path, tmp_path], [0.1, 0.2, 0.7])
    assert mean.lm_head.weight is mean.model.embed_tokens.weight
    for name, weight in average([str(tmp_path)]).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


def test_classifiers(tiny_model: Make, tmp_path: Path) -> None:
    judges = [LlamaForSequenceClassification(tiny_model().config.replace(num_labels=3), seed=seed) for seed in (0, 1)]
    for seed, judge in enumerate(judges):
        judge.save_pretrained(tmp_path / str(seed))
    mean = average([tmp_path / "0", tmp_path / "1"], model_class=LlamaForSequenceClassification)
    torch.testing.assert_close(mean.score.weight, (judges[0].score.weight + judges[1].score.weight) / 2)
    tiny_model().save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"causal: holds no score\.weight"):
        average([tmp_path / "causal", tmp_path / "0"], model_class=LlamaForSequenceClassification)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 1e-3}, r"other: rms_norm_eps is 0\.001, but 1e-06 in .*one; expected checkpoints of one"),
        ({"num_hidden_layers": 2}, "other: num_hidden_layers is 2, but 3 in"),
        ({"vocab_size": 98}, "other: vocab_size is 98, but 97 in"),
        ({"tie_word_embeddings": True}, "other: tie_word_embeddings is True, but False in"),
        ({"eos_token_id": 5}, "other: eos_token_id is 5, but 2 in"),
    ],
)
def test_other_configs_are_named(
    tiny_model: Make, folders: list[Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    tiny_model(**changes).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        average([*folders, tmp_path / "other"])


def test_other_tensors_weights_and_files_are_named(tiny_model: Make, folders: list[Path], tmp_path: Path) -> None:
    tensors = load_file(folders[2] / "model.safetensors")
    for changed, message in (
        (tensors | {"model.norm.weight": torch.zeros(47)}, r"three: .* misshapen: model\.norm\.weight is \[47\]"),
        (tensors | {"model.more": torch.zeros(1)}, r"three: .* unexpected: model\.more"),
        (tensors | {"model.norm.weight": torch.full((48,), torch.inf)}, r"model\.norm\.weight: the mean of .*three is"),
    ):
        save_file(changed, folders[2] / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            average(folders)
    for weights, message in (([1, 2], "2 weights for 3"), ([1, 2, float("nan")], "three: its weight is nan")):
        with pytest.raises(ValueError, match=message):
            average(folders, weights)
    for wrong in ([], str(folders[0])):
        with pytest.raises(ValueError, match="expected a list of at least one folder"):
            average(wrong)
    with pytest.raises(ValueError, match=r"model\.gguf: a file; expected a Hugging Face folder"):
        (tmp_path / "model.gguf").touch()
        average([folders[0], tmp_path / "model.gguf"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        average([folders[0], tmp_path / "nowhere"])
