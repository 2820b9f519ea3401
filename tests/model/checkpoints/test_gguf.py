"""GGUF files: tensor types, names, RoPE row order, configs, splits and refused files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama._gguf.header import read_gguf_header
from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification
from bpe_llama.model.checkpoints.assemble import half_split_rows, interleaved_rows
from bpe_llama.model.checkpoints.gguf import load_gguf
from bpe_llama.model.checkpoints.gguf_tensors import read_tensor
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from tests.gguf_files import finish
from tests.model.checkpoints.gguf_models import CONFIG, copied, permuted, split, write_gguf

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files read here")


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_weights_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = LlamaForCausalLM(CONFIG.replace(**changes), seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(generator=torch.Generator().manual_seed(1))
    loaded = load_gguf(write_gguf(tmp_path / "m.gguf", model), device="cpu")
    assert loaded.dtype == torch.float32 and not loaded.training
    for name in ("rope_theta", "head_dim", "kv_heads", "tie_word_embeddings"):
        assert getattr(loaded.config, name) == getattr(model.config, name), name
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
    finish(writer)
    header = read_gguf_header(path)
    ours = read_tensor(header.tensors["t"], torch.float32)
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
    writer = copied(path, tmp_path / "factors.gguf")
    for tensor in gguf.GGUFReader(path).tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    finish(writer)

    loaded = load_gguf(tmp_path / "factors.gguf", device="cpu")
    assert loaded.config.rope_scaling == rope
    torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, scaled, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba', expected one of .*llama, .*qwen3"),
        ({"leave_out": "blk.1.ffn_up"}, r"missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"leave_out": "token_embd"}, r"'token_embd\.weight' is missing"),
        ({"leave_out": "blk.1.attn_q"}, r"missing: model\.layers\.1\.self_attn\.q_proj\.weight$"),
        ({"block_count": 1}, r"'llama\.block_count' is 1, but the file holds tensors of 2 layers"),
        ({"architecture": "qwen3"}, r"missing: model\.layers\.0\.self_attn\.[qk]_norm\.weight"),
        ({"block_count": 1 << 31}, r"'llama\.block_count' is 2,147,483,648, but"),
        ({"llama.expert_count": 8}, r"'llama\.expert_used_count' is missing"),
        ({"llama.expert_count": 1 << 10, "llama.expert_used_count": 2}, r"is 1,024, but .* of no experts"),
        (
            {"llama.expert_count": 1 << 30, "llama.expert_used_count": 2},
            r"num_local_experts is 1073741824; exp",
        ),
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
    save_gguf(LlamaForCausalLM(config), tmp_path / "whole.gguf")
    writer = copied(tmp_path / "whole.gguf", tmp_path / "m.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors:
        if values is None or tensor.name != "blk.0.ffn_up_exps.weight":
            writer.add_tensor(tensor.name, np.array(tensor.data))
    if values is None:
        for number in range(12):
            writer.add_tensor(f"stray.{number}", np.zeros(1, np.float32))
    else:
        writer.add_tensor("blk.0.ffn_up_exps.weight", values)
    finish(writer)
    with pytest.raises(ValueError, match=message):
        load_gguf(tmp_path / "m.gguf", device="cpu")


def test_the_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaForCausalLM(CONFIG)
    save_gguf(model, tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    for call in (lambda: load_gguf(tmp_path / "m.gguf"), lambda: save_gguf(model, tmp_path / "again.gguf")):
        with pytest.raises(ImportError, match=r"need gguf: pip install 'bpe_llama\[model\]'"):
            call()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", LlamaForCausalLM(CONFIG))
    tensors = read_gguf_header(path).tensors
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated GGUF file: tensor"):
        LlamaForCausalLM.from_pretrained(path)
    with pytest.raises(ValueError, match=r"m\.gguf: truncated GGUF file: tensor"):  # since its header was read
        [read_tensor(tensor, torch.float32) for tensor in tensors.values()]


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
