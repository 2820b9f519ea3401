"""Meta's and Mistral's folders, written here in their layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification

Make = Callable[..., LlamaForCausalLM]


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Return rows in Meta's order: the two halves of each head interleaved."""
    heads = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return torch.stack([heads[:, 0], heads[:, 1]], dim=2).reshape(weight.shape)


def write_meta(model: LlamaForCausalLM, folder: Path, shards: int, embedding_axis: int, **changes: object) -> None:
    config, whole = model.config, metas_tensors(model, embedding_axis)
    for shard in range(shards):
        part = {
            name: tensor.clone() if axis is None else tensor.chunk(shards, dim=axis)[shard].clone()
            for name, (tensor, axis) in whole.items()
        }
        torch.save(part, folder / f"consolidated.{shard:02}.pth")
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.kv_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size if embedding_axis == 0 else -1,
        "multiple_of": 16,
        "rope_theta": config.rope_theta,
    }
    (folder / "params.json").write_text(json.dumps(params | changes))


def metas_tensors(model: LlamaForCausalLM, embedding_axis: int = 0) -> dict[str, tuple[Tensor, int | None]]:
    """Return each tensor by Meta's name and in its row order, and its sharded axis."""
    config, state = model.config, model.state_dict()
    whole: dict[str, tuple[Tensor, int | None]] = {
        "tok_embeddings.weight": (state["model.embed_tokens.weight"], embedding_axis),
        "norm.weight": (state["model.norm.weight"], None),
        "rope.freqs": (torch.zeros(4), None),
    }
    if not config.tie_word_embeddings:
        whole["output.weight"] = (state["lm_head.weight"], 0)
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"layers.{layer}.", f"model.layers.{layer}."
        for name, target, axis in [
            ("wq", "self_attn.q_proj", 0),
            ("wk", "self_attn.k_proj", 0),
            ("wv", "self_attn.v_proj", 0),
            ("wo", "self_attn.o_proj", 1),
        ]:
            weight = state[f"{ours}{target}.weight"]
            weight = interleaved(weight, config.head_size) if name in ("wq", "wk") else weight
            whole[f"{theirs}attention.{name}.weight"] = (weight, axis)
        experts = range(config.num_local_experts or 0)
        for name, target, axis in [("w1", "gate_proj", 0), ("w2", "down_proj", 1), ("w3", "up_proj", 0)]:
            if not experts:
                whole[f"{theirs}feed_forward.{name}.weight"] = (state[f"{ours}mlp.{target}.weight"], axis)
            for expert in experts:
                weight = state[f"{ours}block_sparse_moe.experts.{expert}.{name}.weight"]
                whole[f"{theirs}feed_forward.experts.{expert}.{name}.weight"] = (weight, axis)
        if experts:
            whole[f"{theirs}feed_forward.gate.weight"] = (state[f"{ours}block_sparse_moe.gate.weight"], None)
        whole[f"{theirs}attention_norm.weight"] = (state[f"{ours}input_layernorm.weight"], None)
        whole[f"{theirs}ffn_norm.weight"] = (state[f"{ours}post_attention_layernorm.weight"], None)
    return whole


def write_mistral(model: LlamaForCausalLM, folder: Path, pieces: int = 1, **changes: object) -> None:
    """Write a folder of mistral-inference: ``consolidated.safetensors``, or several such files."""
    config = model.config
    tensors = {name: tensor.contiguous() for name, (tensor, _) in metas_tensors(model).items() if "rope" not in name}
    names = sorted(tensors)
    for piece in range(pieces):
        file = "consolidated" + (f"-{piece + 1:05}-of-{pieces:05}" if pieces > 1 else "") + ".safetensors"
        save_file({name: tensors[name].clone() for name in names[piece::pieces]}, folder / file)
    params: dict[str, object] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_size,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.kv_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_theta,
    }
    if config.sliding_window:
        params["sliding_window"] = config.sliding_window
    if config.num_local_experts:
        params["moe"] = {"num_experts": config.num_local_experts, "num_experts_per_tok": config.num_experts_per_tok}
    (folder / "params.json").write_text(json.dumps(params | changes))


MISTRALS: dict[str, dict[str, object]] = {
    "plain": {},
    "window": {"sliding_window": 5},
    "wide heads": {"head_dim": 16},
    "tied": {"tie_word_embeddings": True},
    "experts": {"num_local_experts": 3},
}


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("case", MISTRALS)
def test_mistrals_layout(tiny_model: Make, ids: Tensor, tmp_path: Path, case: str, pieces: int) -> None:
    model = tiny_model(rope_theta=1e6, **MISTRALS[case])
    write_mistral(model, tmp_path, pieces)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.sliding_window == model.config.sliding_window
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id) == (1, 2)


def test_a_folder_of_both_layouts(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    write_mistral(model, tmp_path)
    other.save_pretrained(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(ids).logits, other(ids).logits)
    (tmp_path / "model.safetensors").unlink()  # a config without weights remains of the other layout
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"yarn": {"factor": 4}}, r"params\.json: .*yarn is \{'factor': 4\}, a key that is not known"),
        ({"_sliding_window": [9, 5]}, r"_sliding_window is \[9, 5\], a key that is not known"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantization is"),
        ({"hidden_dim": 81}, r"hidden_dim is 81, but feed_forward\.w1\.weight has 80 rows"),
        (
            {"n_kv_heads": 3},
            r"misshapen: model\.layers\.0\.self_attn\.k_proj\.weight is \[16, 48\], expected \[24, 48\]",
        ),
        ({"moe": {"num_experts": 2, "first_k_dense": 1}}, "moe is .*; expected num_experts and"),
        ({"norm_eps": None}, r"params\.json: norm_eps is missing"),
    ],
)
def test_parameters_that_are_not_honoured(
    tiny_model: Make, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_mistral(tiny_model(), tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_missing_files_are_named(tiny_model: Make, tmp_path: Path) -> None:
    write_mistral(tiny_model(), tmp_path, 3)
    (tmp_path / "consolidated-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"absent.*: consolidated-00002-of-00003\.safetensors"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(("shards", "axis", "tied"), [(1, 1, False), (2, 1, False), (2, 0, False), (1, 0, True)])
def test_round_trip(tiny_model: Make, ids: Tensor, tmp_path: Path, shards: int, axis: int, tied: bool) -> None:
    model = tiny_model(vocab_size=98, rope_theta=5e5, tie_word_embeddings=tied)
    write_meta(model, tmp_path, shards, axis)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("width", "layers", "stated", "factor"),
    [(2048, 16, None, 32.0), (3072, 28, None, 32.0), (2048, 16, 8.0, 8.0), (64, 1, None, 8.0)],
)
def test_the_rope_factor(
    tiny_model: Make, tmp_path: Path, width: int, layers: int, stated: float | None, factor: float
) -> None:
    """As transformers' conversion script takes it by the version, which the files do not state."""
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    shape = {"hidden_size": width, "num_hidden_layers": layers, "max_position_embeddings": 131_072, **ONE_HEAD}
    model = tiny_model(**shape, rope_theta=5e5, rope_scaling=rope)
    changes = {"head_dim": 8, "use_scaled_rope": True, "rope_scaling_factor": stated}
    write_meta(model, tmp_path, 1, 0, **changes)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert loaded.config.rope == model.config.rope
    ids = torch.arange(3, 60)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_damage_is_named(tiny_model: Make, tmp_path: Path) -> None:
    write_meta(tiny_model(vocab_size=98), tmp_path, 2, 1)
    with pytest.raises(ValueError, match="holds a LlamaForCausalLM, not a LlamaForSequenceClassification"):
        LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    shard = tmp_path / "consolidated.01.pth"
    good = shard.read_bytes()
    tensors = torch.load(shard, weights_only=True)

    torch.save({name: tensor for name, tensor in tensors.items() if name != "norm.weight"}, shard)
    with pytest.raises(ValueError, match="shard 1 holds other tensors than shard 0"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    torch.save(
        {name: torch.zeros(3, 3) if "layers.2.attention.wq" in name else t for name, t in tensors.items()}, shard
    )
    with pytest.raises(ValueError, match=r"01\.pth: layers\.2\.attention\.wq\.weight is \[3, 3\], but \[24, 48\] in"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    shard.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: damaged"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    shard.write_bytes(good)
    (tmp_path / "params.json").write_text('{"dim": 48}')
    with pytest.raises(ValueError, match=r"params\.json: n_layers is missing"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    shard.unlink()
    (tmp_path / "consolidated.00.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"no consolidated\.\*\.pth"):
        LlamaForCausalLM.from_pretrained(tmp_path)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_only_tensors_are_unpickled(tiny_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_meta(tiny_model(vocab_size=98), tmp_path, 1, 1)
    torch.save({"tok_embeddings.weight": _Harmful()}, tmp_path / "consolidated.00.pth")
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert "ran" not in capsys.readouterr().out
