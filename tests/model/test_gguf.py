"""GGUF files: tensor types, names, RoPE row order, configs, splits, refused files, and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama._gguf.header import read_gguf_header
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from bpe_llama.model.checkpoints.assemble import expected_shapes, half_split_rows, interleaved_rows
from bpe_llama.model.checkpoints.gguf import load_gguf
from bpe_llama.model.checkpoints.gguf_tensors import read_tensor
from bpe_llama.model.checkpoints.gguf_write import FORMATS, save_gguf

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files read here")

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rope_theta=50_000.0,
    rms_norm_eps=1e-5,
)
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's conversion, row by row: the oracle of `interleaved_rows`."""
    size = weight.shape[0] // heads
    rows = [
        head * size + pair + half * (size // 2) for head in range(heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return weight[rows]


def write_gguf(path: Path, model: LlamaForCausalLM, leave_out: str = "", **metadata: Any) -> Path:
    """Write a model with the gguf package alone, in float32, by code independent of ours."""
    config = model.config
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    writer.add_block_count(metadata.pop("block_count", config.num_hidden_layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        values = tensor.numpy()
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            target = f"blk.{layer}.{LAYER[part]}"
            if part.endswith(("q_proj", "k_proj")):
                values = permuted(values, config.num_attention_heads if part.endswith("q_proj") else config.kv_heads)
        elif module == "lm_head" and config.tie_word_embeddings:
            continue
        else:
            target = outer[module]
        if target != leave_out:
            writer.add_tensor(f"{target}.{kind}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_weights_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = LlamaForCausalLM(CONFIG.replace(**changes), seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(generator=torch.Generator().manual_seed(1))
    loaded = load_gguf(write_gguf(tmp_path / "m.gguf", model), device="cpu")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert {
        name: getattr(loaded.config, name) for name in ("rope_theta", "head_dim", "kv_heads", "tie_word_embeddings")
    } == {name: getattr(model.config, name) for name in ("rope_theta", "head_dim", "kv_heads", "tie_word_embeddings")}
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_tensor_types_that_the_package_writes(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).normal(size=(48, 256)).astype(np.float32)
    check_format(tmp_path / "t.gguf", name, gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]))


DEQUANTIZED = sorted(kind.name for kind in gguf.quants._type_traits)
"""All tensor types that the package dequantizes; a newer package with more of them fails this test."""


@pytest.mark.parametrize("name", DEQUANTIZED)
def test_random_blocks_of_every_tensor_type(tmp_path: Path, name: str) -> None:
    numbers, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    shape = (48, nbytes * 256 // numbers)
    stored = np.random.default_rng(1).integers(0, 120, size=shape, dtype=np.uint8)  # no byte makes a scale inf
    check_format(tmp_path / "t.gguf", name, stored)


@pytest.mark.parametrize("name", ["IQ2_XXS", "TQ1_0", "MXFP4", "IQ4_NL", "Q1_0", "I8", "F64"])
def test_a_model_of_any_tensor_type_is_loaded_or_the_type_named(tmp_path: Path, name: str) -> None:
    config = CONFIG.replace(hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64)
    save_gguf(LlamaForCausalLM(config, seed=1), tmp_path / "plain.gguf", dtype="float32")
    kind = gguf.GGMLQuantizationType[name]
    numbers, nbytes = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(0)
    writer = copied(tmp_path / "plain.gguf", tmp_path / "m.gguf")
    stored = {}
    for tensor in gguf.GGUFReader(tmp_path / "plain.gguf").tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        else:
            rows, width = tensor.data.shape
            values = draw.integers(0, 60, size=(rows, width * nbytes // numbers), dtype=np.uint8)
            stored[tensor.name] = values
            writer.add_tensor(tensor.name, values, raw_dtype=kind)
    finish(writer)
    if name not in DEQUANTIZED:
        with pytest.raises(ValueError, match=rf"m\.gguf: tensor '.*' has tensor type {name}, which the gguf package"):
            load_gguf(tmp_path / "m.gguf")
        return
    loaded = load_gguf(tmp_path / "m.gguf", device="cpu", dtype="float32").state_dict()
    for theirs, ours in (("token_embd", "model.embed_tokens"), ("blk.0.ffn_up", "model.layers.0.mlp.up_proj")):
        expected = gguf.quants.dequantize(stored[f"{theirs}.weight"], kind)
        np.testing.assert_array_equal(loaded[f"{ours}.weight"].numpy(), expected)


def copied(source: Path, target: Path, **changes: Any) -> Any:
    """Return a writer with the metadata of a file and changes to it."""
    writer = gguf.GGUFWriter(target, "llama")
    for key, value in (read_gguf_header(source).metadata | changes).items():
        if key != "general.architecture" and value is not None:
            kind = gguf.GGUFValueType.UINT16 if key.startswith("split.") else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
    return writer


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split(source: Path, parts: int = 3, **changes: Any) -> list[Path]:
    """Split a file as `llama-gguf-split` does: all metadata in the first part, tensors in their order."""
    tensors = gguf.GGUFReader(source).tensors
    paths = [source.with_name(f"part-{number:05}-of-{parts:05}.gguf") for number in range(1, parts + 1)]
    each = -(-len(tensors) // parts)
    for number, path in enumerate(paths):
        keys = {"split.no": number, "split.count": parts, "split.tensors.count": len(tensors)} | changes
        writer = copied(source, path, **keys) if number == 0 else gguf.GGUFWriter(path, "llama")
        for key, value in keys.items() if number else ():
            writer.add_key_value(key, value, gguf.GGUFValueType.UINT16)
        for tensor in tensors[number * each : (number + 1) * each]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        finish(writer)
    return paths


@pytest.mark.parametrize("experts", [None, 3])
def test_a_model_split_over_files(tmp_path: Path, experts: int | None) -> None:
    save_gguf(LlamaForCausalLM(CONFIG.replace(num_local_experts=experts), seed=1), tmp_path / "m.gguf", dtype="q8_0")
    whole = load_gguf(tmp_path / "m.gguf", device="cpu")
    paths = split(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").unlink()
    for path in paths:
        loaded = LlamaForCausalLM.from_pretrained(path, device="cpu")
        assert loaded.config == whole.config
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    save_gguf(LlamaForCausalLM(CONFIG), tmp_path / "m.gguf")
    first, second, third = split(tmp_path / "m.gguf")
    (tmp_path / "renamed.gguf").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"renamed\.gguf: metadata 'split\.count' is 3: .* ends with -00001-of-00003"):
        load_gguf(tmp_path / "renamed.gguf")
    good, other = second.read_bytes(), third.read_bytes()
    second.write_bytes(other)
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf: metadata 'split\.no' is 2, expected 1"):
        load_gguf(first)
    second.write_bytes(good[:-500])
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf: truncated GGUF file: tensor"):
        load_gguf(first)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"absent: part-00002-of-00003\.gguf"):
        load_gguf(first)
    first, *_ = split(tmp_path / "m.gguf", **{"split.tensors.count": 99})
    with pytest.raises(ValueError, match=r"'split\.tensors\.count' is 99, but the 3 files hold 21"):
        load_gguf(first)


def check_format(path: Path, name: str, stored: np.ndarray[Any, Any]) -> None:
    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("before", np.zeros(5, np.float32))
    writer.add_tensor("t", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(path)
    ours = read_tensor(header, header.tensors["t"], torch.float32)
    theirs = gguf.quants.dequantize(gguf.GGUFReader(path).tensors[1].data, kind)
    assert header.tensors["t"].type_name == name
    assert ours.shape == (48, 256)
    assert np.isfinite(theirs).all()
    np.testing.assert_array_equal(ours.numpy(), theirs)


def test_chunked_reading_equals_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpe_llama.model.checkpoints.gguf_tensors._CHUNK_ELEMENTS", 256 * 7)
    values = np.random.default_rng(0).normal(size=(48, 256)).astype(np.float32)
    check_format(tmp_path / "t.gguf", "Q8_0", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize("shape", [(24,), (24, 5)])
def test_row_orders_are_inverse_and_match_the_conversion(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for heads in (1, 2, 3):
        assert np.array_equal(interleaved_rows(weight, heads).numpy(), permuted(weight.numpy(), heads))
        assert torch.equal(half_split_rows(interleaved_rows(weight, heads), heads), weight)


def test_llama3_rope_factors_become_a_config(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = CONFIG.replace(rope_theta=500_000.0, rope_scaling=rope, max_position_embeddings=131_072)
    scaled = LlamaForCausalLM(config).model.rotary_emb.inv_freq
    plain = LlamaForCausalLM(CONFIG.replace(rope_theta=500_000.0)).model.rotary_emb.inv_freq

    path = write_gguf(tmp_path / "plain.gguf", LlamaForCausalLM(config))
    header = read_gguf_header(path)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "factors.gguf", "llama")
    for key, value in header.metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    loaded = load_gguf(tmp_path / "factors.gguf", device="cpu")
    assert loaded.config.rope_scaling == rope
    torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, scaled, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3', expected 'llama'"),
        ({"leave_out": "blk.1.ffn_up"}, r"missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"leave_out": "token_embd"}, r"'token_embd\.weight' is missing"),
        ({"leave_out": "blk.1.attn_q"}, r"missing: model\.layers\.1\.self_attn\.q_proj\.weight$"),
        ({"block_count": 1}, r"'llama\.block_count' is 1, but the file holds tensors of 2 layers"),
        ({"block_count": 1 << 31}, r"'llama\.block_count' is 2,147,483,648, but"),
        ({"llama.expert_count": 8}, r"'llama\.expert_used_count' is missing"),
        ({"llama.expert_count": 1 << 30, "llama.expert_used_count": 2}, r"1,073,741,824, but .* of no experts"),
        ({"llama.rope.dimension_count": 8}, "rotates 8 of 16 dimensions"),
        ({"llama.rope.scaling.type": "novel"}, "rope scaling 'novel'"),
        ({"llama.logit_scale": 0.5}, r"'llama\.logit_scale' is 0\.5; only 1\.0 is supported"),
        ({"llama.attention.sliding_window": 7}, r"'llama\.attention\.sliding_window' is 7, a key that is not known"),
        ({"llama.attention.causal": False}, r"'llama\.attention\.causal' is False; only True is supported"),
        ({"llama.attention.value_length": 8}, r"'llama\.attention\.value_length' is 8; only 16 is supported"),
    ],
)
def test_unsupported_files_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", LlamaForCausalLM(CONFIG), **options)
    with pytest.raises(ValueError, match=message):
        load_gguf(path, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1 << 20, 0, 32), np.float32), r"'blk\.0\.ffn_up_exps\.weight' has shape \[1048576, 0, 32\]"),
        (np.zeros((3, 1, 32), np.float32), r"'llama\.expert_count' is 2, but the file holds tensors of 2, 3 experts"),
        (None, r"unexpected: stray\.0, stray\.1, .*, stray\.7 and 4 more$"),
    ],
)
def test_memory_is_bounded_by_the_file_not_by_its_counts(
    tmp_path: Path, values: np.ndarray[Any, Any] | None, message: str
) -> None:
    config = CONFIG.replace(num_hidden_layers=1, num_local_experts=None if values is None else 2)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    save_gguf(LlamaForCausalLM(config), tmp_path / "whole.gguf")
    whole = gguf.GGUFReader(tmp_path / "whole.gguf")
    for key, value in read_gguf_header(tmp_path / "whole.gguf").metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in whole.tensors:
        if values is None or tensor.name != "blk.0.ffn_up_exps.weight":
            writer.add_tensor(tensor.name, np.array(tensor.data))
    if values is None:
        for number in range(12):
            writer.add_tensor(f"stray.{number}", np.zeros(1, np.float32))
    else:
        writer.add_tensor("blk.0.ffn_up_exps.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=message):
        load_gguf(tmp_path / "m.gguf", device="cpu")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", LlamaForCausalLM(CONFIG))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated GGUF file: tensor"):
        LlamaForCausalLM.from_pretrained(path)


def test_a_classifier_from_a_gguf_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", LlamaForCausalLM(CONFIG))
    with pytest.raises(ValueError, match="not a LlamaForSequenceClassification, which is made of a"):
        LlamaForSequenceClassification.from_pretrained(path, num_labels=3)


def test_a_chosen_dtype(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", LlamaForCausalLM(CONFIG, seed=1))
    loaded = LlamaForCausalLM.from_pretrained(path, dtype="bfloat16", device="cpu")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}


def test_progress_counts_every_tensor(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = write_gguf(tmp_path / "m.gguf", LlamaForCausalLM(CONFIG))
    load_gguf(path, device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 21) for done in range(1, 22)]


# ---- writing


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "q8_0", "q4_0"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "attention_bias": True}])
def test_the_package_reads_what_we_write(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    model = LlamaForCausalLM(CONFIG.replace(**changes), seed=5)
    path = tmp_path / "out.gguf"
    save_gguf(model, path, dtype=name)
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["llama.block_count"].contents() == 2
    assert len(stored) == len(expected_shapes(model.config))
    heads = {"q_proj": 4, "k_proj": 2}
    weight = model.state_dict()["model.layers.1.self_attn.k_proj.weight"].numpy()
    kind = gguf.GGMLQuantizationType[FORMATS[name]]
    assert stored["blk.1.attn_k.weight"].tensor_type == kind
    assert stored["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(
        gguf.quants.dequantize(stored["blk.1.attn_k.weight"].data, kind),
        gguf.quants.dequantize(gguf.quants.quantize(permuted(weight, heads["k_proj"]), kind), kind),
    )

    loaded = load_gguf(path, device="cpu", dtype="float32")
    assert loaded.config.replace(dtype=None) == model.config.replace(dtype=None)
    worst = {"float32": 0, "float16": 1e-4, "bfloat16": 1e-3, "q8_0": 1e-3, "q4_0": 1e-2}[name]
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, atol=worst, rtol=0)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("name", ["float32", "q8_0"])
def test_a_mixture_of_experts_round_trips(tmp_path: Path, name: str, biases: bool) -> None:
    config = CONFIG.replace(num_local_experts=3, num_experts_per_tok=2, attention_bias=biases)
    model = LlamaForCausalLM(config, seed=5).eval()
    path = tmp_path / "out.gguf"
    save_gguf(model, path, dtype=name)
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert (reader.fields["llama.expert_count"].contents(), reader.fields["llama.expert_used_count"].contents()) == (
        3,
        2,
    )
    assert stored["blk.1.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    for part, ours in (("ffn_gate_exps", "w1"), ("ffn_up_exps", "w3"), ("ffn_down_exps", "w2")):
        tensor = stored[f"blk.1.{part}.weight"]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        experts = [model.state_dict()[f"model.layers.1.block_sparse_moe.experts.{e}.{ours}.weight"] for e in range(3)]
        np.testing.assert_allclose(values, torch.stack(experts).numpy(), atol=0 if name == "float32" else 1e-3)
    loaded = LlamaForCausalLM.from_pretrained(path, device="cpu", dtype="float32")
    assert loaded.config.replace(dtype=None) == model.config.replace(dtype=None)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, atol=0 if name == "float32" else 1e-3, rtol=0)
    if name == "float32":
        ids = torch.arange(20)[None]
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_rope_scaling_round_trips(tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for scaling in (
        {**llama3, "original_max_position_embeddings": 8192},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    ):
        model = LlamaForCausalLM(CONFIG.replace(rope_scaling=scaling))
        save_gguf(model, tmp_path / "m.gguf")
        assert load_gguf(tmp_path / "m.gguf", device="cpu").config.rope_scaling == scaling


def test_a_model_gguf_cannot_express_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot express this config: sliding_window"):
        save_gguf(LlamaForCausalLM(CONFIG.replace(sliding_window=8)), tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="dtype is 'q2_0'; expected auto, float32"):
        save_gguf(LlamaForCausalLM(CONFIG), tmp_path / "m.gguf", dtype="q2_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pattern", ["r50k", "llama3", "qwen2", "smollm", "deepseek_v3"])
def test_a_tokenizer_round_trips(tmp_path: Path, pattern: str) -> None:
    text = "Some words, some more words; 12345 numbers of another 678.\n\tAnd   spaces — naïve 語, she said."
    tokenizer = Tokenizer.train_from_iterator(
        [text] * 3, vocab_size=300, pattern=pattern, special_tokens=["<|endoftext|>"], progress=False
    )
    model = LlamaForCausalLM(CONFIG.replace(vocab_size=300))
    save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer_metadata(tokenizer, chat_template="{{ messages }}"))
    loaded = Tokenizer.from_file(tmp_path / "m.gguf")
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.special_tokens, loaded.eos_id) == (tokenizer.special_tokens, tokenizer.eos_id)
    assert loaded.chat_template == "{{ messages }}"


def test_a_tokenizer_of_another_pattern_is_refused() -> None:
    tokenizer = Tokenizer.train_from_iterator(["abab"], vocab_size=257, pattern=r"\w+|\W+", progress=False)
    with pytest.raises(ValueError, match=r"llama\.cpp has no name for the pattern"):
        tokenizer_metadata(tokenizer)
