"""Hugging Face folders: round trips, shards, and damaged files."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.quantization.quantize import dequantize, quantize
from tests.small_models import tiny_model as tiny

Make = Callable[..., LlamaForCausalLM]


def shard(folder: Path, parts: int = 3) -> None:
    """Split ``model.safetensors`` into shards with an index, as in large checkpoints."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        save_file({name: tensors[name] for name in names[part::parts]}, folder / file)
        weight_map |= dict.fromkeys(names[part::parts], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_round_trip(tiny_model: Make, ids: Tensor, tmp_path: Path, tied: bool, sharded: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    if sharded:
        shard(tmp_path)
    calls: list[tuple[int, int]] = []
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert loaded.config == model.config.replace(dtype="float32")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert not loaded.training
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_dtype_is_kept_or_chosen(tiny_model: Make, tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path, device="cpu").dtype == torch.bfloat16
    assert LlamaForCausalLM.from_pretrained(tmp_path, dtype="float32").dtype == torch.float32
    assert LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"], config["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_every_wrong_tensor_is_named_at_once(tiny_model: Make, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
    tensors["lm_head.weight"] = torch.zeros(96, 48)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    for part in (
        "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "unexpected: model.layers.0.self_attn.q_proj.bias",
        "misshapen: lm_head.weight is [96, 48], expected [97, 48]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tiny_model: Make, tmp_path: Path, keep: int) -> None:
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_a_file_truncated_while_it_is_read_is_named(tiny_model: Make, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        LlamaForCausalLM.from_pretrained(tmp_path, progress=lambda done, total: os.truncate(path, 4))


def test_a_header_larger_than_its_file_allocates_no_memory(tiny_model: Make, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="damaged"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_missing_files_are_named(tiny_model: Make, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        LlamaForCausalLM.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path / "model")  # as in the folder of a run
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json or params\.json; .*model does"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    shard(tmp_path)
    gone = tmp_path / "model-00002-of-00003.safetensors"
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=gone.name):
        LlamaForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 3}}'])
def test_a_bad_index_is_refused(tiny_model: Make, tmp_path: Path, index: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="not a safetensors index"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_an_index_that_lists_tensors_missing_from_its_shards(tiny_model: Make, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    shard(tmp_path)
    path = tmp_path / "model-00001-of-00003.safetensors"
    tensors = load_file(path)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=gone):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_a_failed_save_keeps_the_old_files(
    tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: Tensor
) -> None:
    old = tiny_model()
    old.save_pretrained(tmp_path)

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("bpe_llama.model.checkpoints.tensor_files.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_model(seed=1).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, old(ids).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "device 'abacus' is not known"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"dtype": "float7"}, "dtype 'float7'"),
    ],
)
def test_bad_options_are_named(tiny_model: Make, tmp_path: Path, options: dict[str, str], message: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path, **options)


def test_an_unknown_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a folder with config\.json"):
        LlamaForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("tied", [False, True])
def test_a_classifier_from_a_causal_lm(tiny_model: Make, ids: Tensor, tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"holds no score\.weight; initialized at random") as caught:
        classifier = LlamaForSequenceClassification.from_pretrained(tmp_path, device="cpu", num_labels=5)
    assert caught[0].filename == __file__
    assert classifier(ids).logits.shape == (3, 5)
    assert all(
        torch.equal(weight, model.state_dict()[f"model.{name}"])
        for name, weight in classifier.model.state_dict().items()
    )
    assert 0.1 < classifier.score.weight.std() < 0.3  # initializer_range is 0.2
    with pytest.warns(UserWarning, match="initialized at random"):
        again = LlamaForSequenceClassification.from_pretrained(tmp_path, device="cpu", num_labels=5)
    assert torch.equal(again.score.weight, classifier.score.weight)
    classifier.save_pretrained(tmp_path / "classifier")
    loaded = LlamaForSequenceClassification.from_pretrained(tmp_path / "classifier", device="cpu")  # and no warning
    assert torch.equal(loaded(ids).logits, classifier(ids).logits)
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight|unexpected: score\.weight"):
        LlamaForCausalLM.from_pretrained(tmp_path / "classifier")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2000}, r"config\.json: num_hidden_layers is 2,000; expected 1, the layers that have"),
        ({"num_local_experts": 4000}, r"config\.json: num_local_experts is 4,000; expected 2, the experts that have"),
        ({"head_dim": 1 << 16}, r"q_proj\.weight is \[32, 32\], expected \[262144, 32\]"),
    ],
)
def test_counts_are_compared_with_the_tensors_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], message: str
) -> None:
    tiny(num_local_experts=2).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | changes))
    if "head_dim" not in changes:
        monkeypatch.setattr(LlamaForCausalLM, "build", lambda *_: pytest.fail("a module is built"))
    with pytest.raises(ValueError, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral", "num_local_experts": 4}, r"num_local_experts is 4; expected 0, the experts that"),
        ({"model_type": "qwen3_moe", "num_local_experts": 4000}, r"num_local_experts is 4,000; ex"),
        ({"model_type": "qwen3_moe", "num_local_experts": 4000, "mlp_only_layers": [0]}, r"missing: .*q_norm\.weight"),
    ],
)
def test_experts_of_a_checkpoint_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """They are not built, unless the config has them in no layer."""
    tiny().save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | changes))
    if "mlp_only_layers" not in changes:
        monkeypatch.setattr(LlamaForCausalLM, "build", lambda *_: pytest.fail("a module is built"))
    with pytest.raises(ValueError, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_pickled_tensors_are_bounded_by_their_file(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(
        ValueError, match=r"model\.bin: describes tensors of 4,398,046,511,104 bytes; expected at most tw"
    ):
        LlamaForCausalLM.from_pretrained(tmp_path)
    torch.save({"a": torch.zeros(1, device="meta")}, path)
    with pytest.raises(ValueError, match=r"model\.bin: expected a table of named tensors"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    (tmp_path / "new").replace(path)
    with pytest.raises(ValueError, match=r"model\.bin: damaged, or .*data\.pkl is compressed; expected it stored"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_a_head_that_differs_from_a_tied_embedding_is_saved(
    tiny_model: Make, ids: Tensor, tmp_path: Path, suffix: str
) -> None:
    """Before, it was left out, and the loaded model had the embedding in its place."""
    model = tiny_model(tie_word_embeddings=True)
    dequantize(quantize(model, "int8", skip=()))
    path = tmp_path / f"model{suffix}"
    with pytest.warns(UserWarning, match="tie_word_embeddings is true, but lm_head.weight differs"):
        save_gguf(model, path) if suffix else model.save_pretrained(path)
    loaded = LlamaForCausalLM.from_pretrained(path, device="cpu")
    assert not loaded.config.tie_word_embeddings
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_a_head_equal_to_a_tied_embedding_stays_tied(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path, device="cpu").config.tie_word_embeddings
