"""Models and adapters by their name on the Hugging Face Hub: which files are fetched, and that they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification
from bpe_llama.model.adapters import lora
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from tests.hub_server import Hub, files_of
from tests.small_models import tiny_model

IDS = torch.tensor([[1, 5, 7, 2]])
OTHERS = {
    "README.md": b"read me",
    "tokenizer.json": b"{}",
    "training_args.bin": bytes(3000),
    "rust_model.ot": bytes(3001),
    "original/params.json": b"{}",
    "original/consolidated.00.pth": bytes(3002),
    "model.Q4_0.gguf": b"GGUF" + bytes(3003),
    "model.fp16.safetensors": bytes(3004),
}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]

pytestmark = pytest.mark.usefixtures("one_thread")


def _logits(model: Any) -> torch.Tensor:
    return model(IDS).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one model in several formats: their folders by format."""
    root = tmp_path_factory.mktemp("formats")
    folders = {name: root / name for name in ("whole", "shards", "bin", "bin_shards")}
    for folder in folders.values():
        model.save_pretrained(folder)
    tensors = load_file(folders["whole"] / "model.safetensors")
    halves = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
    for name, suffix, index in (
        ("shards", "safetensors", "model.safetensors.index.json"),
        ("bin_shards", "bin", "pytorch_model.bin.index.json"),
    ):
        (folders[name] / "model.safetensors").unlink()
        weight_map = {}
        for number, half in enumerate(halves, start=1):
            file = f"{index.partition('.')[0]}-0000{number}-of-00002.{suffix}"
            (save_file if suffix == "safetensors" else torch.save)(half, folders[name] / file)  # type: ignore[operator]
            weight_map |= dict.fromkeys(half, file)
        (folders[name] / index).write_text(json.dumps({"weight_map": weight_map}))
    (folders["bin"] / "model.safetensors").unlink()
    torch.save(tensors, folders["bin"] / "pytorch_model.bin")
    return folders


@pytest.mark.parametrize(
    ("held", "weights"),
    [
        (("whole", "bin", "bin_shards"), ["model.safetensors"]),
        (("shards", "bin", "bin_shards"), ["model.safetensors.index.json", *SHARDS]),
        (("bin", "bin_shards"), ["pytorch_model.bin"]),
        (("bin_shards",), ["pytorch_model.bin.index.json", *BIN_SHARDS]),
    ],
)
def test_one_format_is_fetched(
    hub: Hub, saved: dict[str, Path], model: LlamaForCausalLM, held: tuple[str, ...], weights: list[str]
) -> None:
    files = {"generation_config.json": b'{"temperature": 0.7}'}
    for name in reversed(held):
        files |= files_of(saved[name])
    hub.add("org/name", files | OTHERS)
    found = LlamaForCausalLM.from_pretrained("org/name", device="cpu")
    assert hub.fetched() == sorted(["config.json", "generation_config.json", *weights])
    assert torch.equal(_logits(found), _logits(model))
    assert found.generation_config.values == {"temperature": 0.7}
    LlamaForCausalLM.from_pretrained("org/name", device="cpu", local_files_only=True)
    LlamaForCausalLM.from_pretrained("org/name", device="cpu")
    assert hub.fetched() == []


def test_a_shard_that_the_repository_lacks(hub: Hub, saved: dict[str, Path]) -> None:
    files = files_of(saved["shards"])
    del files["model-00002-of-00002.safetensors"]
    hub.add("org/name", files)
    with pytest.raises(FileNotFoundError, match=r"names shards that are absent: model-00002-of-00002\.safetensors"):
        LlamaForCausalLM.from_pretrained("org/name", device="cpu")


def test_a_download_that_breaks_between_shards(
    hub: Hub, saved: dict[str, Path], model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the attempts of huggingface_hub
    hub.add("org/name", files_of(saved["shards"]))
    hub.cut["model-00002-of-00002.safetensors"] = 1500
    with pytest.raises(ConnectionError, match=r"lacks .*model-00002-of-00002\.safetensors.* could not be read"):
        LlamaForCausalLM.from_pretrained("org/name", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00002\.safetensors; nothing is fetched"):
        LlamaForCausalLM.from_pretrained("org/name", device="cpu", local_files_only=True)
    hub.cut.clear()
    hub.asked.clear()
    assert torch.equal(_logits(LlamaForCausalLM.from_pretrained("org/name", device="cpu")), _logits(model))
    assert hub.fetched() == ["model-00002-of-00002.safetensors"]


def test_gguf(hub: Hub, model: LlamaForCausalLM, tmp_path: Path) -> None:
    for kind in ("f32", "q8_0"):
        save_gguf(model, tmp_path / f"{kind}.gguf", dtype="float32" if kind == "f32" else kind)
    content = {name: (tmp_path / name).read_bytes() for name in ("f32.gguf", "q8_0.gguf")}
    hub.add("org/one", {"README.md": b"", "f32.gguf": content["f32.gguf"]})
    hub.add("org/two", content)
    assert torch.allclose(_logits(LlamaForCausalLM.from_pretrained("org/one", device="cpu")), _logits(model))
    assert hub.fetched() == ["f32.gguf"]
    assert torch.allclose(_logits(LlamaForCausalLM.from_pretrained("org/two/f32.gguf", device="cpu")), _logits(model))
    assert hub.fetched() == ["f32.gguf"]
    with pytest.raises(ValueError, match=r"org/two: holds several \.gguf files, f32\.gguf, q8_0\.gguf; name one"):
        LlamaForCausalLM.from_pretrained("org/two")


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [
        (["consolidated.safetensors", "consolidated.00.pth"], ["consolidated.safetensors"]),
        (["consolidated.00.pth", "consolidated.01.pth"], ["consolidated.00.pth", "consolidated.01.pth"]),
        (["consolidated-00001-of-00001.safetensors"], ["consolidated-00001-of-00001.safetensors"]),
    ],
)
def test_metas_layout(hub: Hub, weights: list[str], fetched: list[str]) -> None:
    hub.add("org/name", {name: name.encode() for name in ("params.json", "config.json", "a.gguf", *weights)})
    with pytest.raises(ValueError):  # they are stubs
        LlamaForCausalLM.from_pretrained("org/name")
    assert hub.fetched() == sorted([*fetched, "params.json"])


def test_a_repository_without_weights(hub: Hub) -> None:
    hub.add("org/name", {"config.json": b"{}", "flax_model.msgpack": b"x"})
    with pytest.raises(FileNotFoundError, match=r"org/name: holds no config\.json .* but config\.json, flax_model"):
        LlamaForCausalLM.from_pretrained("org/name")
    assert hub.fetched() == []


def test_subfolder_and_classifier(hub: Hub, saved: dict[str, Path], model: LlamaForCausalLM) -> None:
    hub.add("org/name", {f"step-5/{name}": content for name, content in files_of(saved["whole"]).items()})
    found = LlamaForCausalLM.from_pretrained("org/name", device="cpu", subfolder="step-5")
    assert torch.equal(_logits(found), _logits(model))
    with pytest.warns(UserWarning, match=r"holds no score\.weight"):
        judge = LlamaForSequenceClassification.from_pretrained(
            "org/name", device="cpu", subfolder="step-5", num_labels=3
        )
    assert judge.score.out_features == 3


def test_an_adapter(hub: Hub, tmp_path: Path) -> None:
    adapted = lora.add(tiny_model(), rank=2, target_modules=("q_proj",))
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.normal_(generator=torch.Generator().manual_seed(0))
    lora.save(adapted, tmp_path / "adapter", base="org/base")
    files = files_of(tmp_path / "adapter")
    hub.add("org/adapter", files | {"README.md": b"", "adapter_model.bin": bytes(2000)})
    found = lora.load(tiny_model(), "org/adapter")
    assert not torch.equal(_logits(found), _logits(tiny_model()))
    assert hub.fetched() == ["adapter_config.json", "adapter_model.safetensors"]
    assert torch.equal(_logits(found), _logits(adapted))
    hub.add("org/both", {f"a/{name}": content for name, content in files.items()})
    assert torch.equal(_logits(lora.load(tiny_model(), "org/both", "x", subfolder="a")), _logits(adapted))
    with pytest.raises(FileNotFoundError, match=r"org/both: holds no adapter, which is adapter_config\.json with"):
        lora.load(tiny_model(), "org/both")
    with pytest.raises(ValueError, match="holds an adapter and no model; load the model that adapter_config"):
        LlamaForCausalLM.from_pretrained("org/adapter@main", device="cpu", cache_dir=tmp_path / "other")
