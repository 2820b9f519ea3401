"""Llama 4 beyond what every family is tested for: temperatures, chunks, fused experts, multi-modal folders."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, lora
from bpe_llama.model.backends.layer_parts import has_known_layers
from bpe_llama.model.cache import SlidingWindowCache
from bpe_llama.model.layers.attention_backends import Visible, backend_named
from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.quantization.layers import QuantizedLinear
from bpe_llama.model.quantization.quantize import KINDS, dequantize, quantize
from bpe_llama.model.training.float8 import use_float8
from bpe_llama.model.training.initial import start_as_identity
from bpe_llama.model.training.report.throughput import expert_loads, flops_per_token
from bpe_llama.model.windows import Chunk, sliding_windows
from tests.parity.model_families.cases import SHAPE
from tests.parity.model_families.cases_llama4 import CHUNKED, FULL, LLAMA4_CASES, SMALL
from tests.small_models import perturb_vectors

pytestmark = pytest.mark.usefixtures("quiet_transformers")

IDS = torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(1))
STEEP = SMALL | {"attention_chunk_size": 8, "floor_scale": 3, "attn_scale": 0.7}


def pair(folder: Path, **fields: Any) -> tuple[LlamaForCausalLM, Any]:
    """Return our model and transformers', of which ours was loaded."""
    config = transformers.Llama4TextConfig(**(SHAPE | STEEP | fields))
    torch.manual_seed(0)
    theirs = transformers.Llama4ForCausalLM(config).eval()
    perturb_vectors(theirs)
    theirs.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, device="cpu"), theirs


def padded_on_the_left(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(len(ids), count, dtype=torch.long)
    return torch.cat([zeros, ids], dim=1), torch.cat([zeros, torch.ones_like(ids)], dim=1)


def test_queries_grow_with_their_position(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path)
    expected = theirs(IDS).logits
    assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=0)
    cache = KVCache(ours.config, 2, 40)
    parts = [ours(part, past_key_values=cache).logits for part in torch.split(IDS, 7, dim=1)]
    assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)
    plain = LlamaForCausalLM(ours.config.replace(attn_temperature_tuning=False))
    plain.load_state_dict(ours.state_dict())
    assert (plain(IDS).logits - expected).abs().max() > 0.1


def test_padding_on_the_left_changes_nothing(tmp_path: Path) -> None:
    """Neither chunks nor temperatures count it; transformers' temperatures do."""
    ours, theirs = pair(tmp_path)
    ids, mask = padded_on_the_left(IDS, 5)
    expected = ours(IDS).logits
    assert_close(ours(ids, mask).logits[:, 5:], expected, atol=1e-4, rtol=0)
    assert (theirs(ids, attention_mask=mask).logits[:, 5:] - expected).abs().max() > 0.1
    marks = torch.tensor([[0] * 15 + [1] * 30] * 2)
    apart = torch.cat([ours(part).logits for part in (IDS[:, :10], IDS[:, 10:])], dim=1)
    assert_close(ours(ids, mask, document_ids=marks).logits[:, 5:], apart, atol=1e-4, rtol=0)


def test_a_ring_of_one_chunk_holds_a_model_of_chunks(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, no_rope_layer_interval=9)
    assert set(ours.config.windows) == {Chunk(8)}
    cache = SlidingWindowCache(ours.config, 2, 40, chunk=4)
    assert cache.store.shape[4] == 11
    parts = [ours(part, past_key_values=cache).logits for part in torch.split(IDS, 4, dim=1)]
    assert_close(torch.cat(parts, dim=1), theirs(IDS).logits, atol=1e-4, rtol=0)


def test_chunks_of_documents_in_every_backend() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 40, 16, generator=generator)
    marks = torch.tensor([[0] * 17 + [1] * 23, [0] * 3 + [1] * 37])
    place = torch.arange(40)
    first = torch.tensor([[0] * 17 + [17] * 23, [0] * 3 + [3] * 37])
    chunk = (place - first) // 6
    same = (marks[:, :, None] == marks[:, None]) & (chunk[:, :, None] == chunk[:, None])
    documents = Documents.of(marks, marks, Chunk(6))
    assert torch.equal(documents.mask[:, 0], same & (place <= place[:, None]))
    visible = Visible(causal=True, documents=documents)
    expected = backend_named("eager")(query, key, value, visible)
    for name in ("sdpa", "flex"):
        assert_close(backend_named(name)(query, key, value, visible), expected, atol=1e-5, rtol=0)


def test_decoders_that_know_no_chunks_refuse_them(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path)
    assert not has_known_layers(ours)
    with pytest.raises(ValueError, match="a layer has chunks of 8 tokens; expected a sliding window or none"):
        sliding_windows(ours.config.windows)


def test_layers_follow_from_changed_fields() -> None:
    config: Any = LlamaConfig.from_dict(SHAPE | STEEP | {"model_type": "llama4_text"})
    assert config.layer_types == [CHUNKED] * 3 + [FULL] and config.moe_layers == [0, 1, 2, 3]
    changed = config.replace(num_hidden_layers=6, no_rope_layer_interval=2, interleave_moe_layer_step=3)
    assert changed.windows == (Chunk(8), None) * 3
    assert (changed.rotated_layers, changed.moe_layers) == ((True, False) * 3, [2, 5])
    stated = LlamaConfig.from_dict(config.to_dict() | {"moe_layers": [1], "layer_types": [CHUNKED] * 4})
    kept: Any = stated.replace(attention_chunk_size=4)
    assert kept.moe_layers == [1] and kept.windows == (Chunk(4),) * 4
    early: Any = LlamaConfig.from_dict(SHAPE | {"model_type": "llama4_text", "attn_temperature_tuning": 4})
    assert early.attn_temperature_tuning is True


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_chunk_size", None), ("intermediate_size_mlp", 8.5), ("use_qk_norm", 1), ("floor_scale", True)],
)
def test_fields_of_a_wrong_type_are_refused(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{field} is {value!r}; expected"):
        LlamaConfig.from_dict(SHAPE | {"model_type": "llama4_text", field: value})


# ---- experts


@pytest.mark.parametrize("name", ["Llama-4-Scout-17B-16E", "Llama-4-Maverick-17B-128E"])
def test_the_active_parameters_of_published_models(name: str) -> None:
    """Both are published with 17 billion active parameters, the embedding included."""
    fields = LLAMA4_CASES["llama4_text"]["published"][name][0] | {"model_type": "llama4_text"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields), device="meta")
    assert flops_per_token(model, 0) / 6 + 202_048 * 5120 == pytest.approx(17.2e9, rel=0.01)


def test_loads_of_experts_are_reported(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, interleave_moe_layer_step=2)
    ours(IDS)
    low, high = expert_loads(ours) or (0.0, 0.0)
    assert 0 <= low <= 1 <= high <= 5


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_quantized(kind: str, tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, interleave_moe_layer_step=2, num_experts_per_tok=2, intermediate_size_mlp=96)
    exact = theirs(IDS).logits
    quantize(ours, kind)
    whole = {path.rpartition(".")[2] for path, part in ours.named_modules() if type(part) is torch.nn.Linear}
    assert whole == {"lm_head", "router"}
    experts = ours.model.layers[1].feed_forward.experts
    assert len(experts) == 5 and isinstance(experts[4].down_proj, QuantizedLinear)
    found = ours(IDS).logits
    assert (found - exact).abs().mean() < (0.1 if kind == "int8" else 0.6) * exact.abs().mean()
    ours(IDS)
    assert expert_loads(ours) is not None
    dequantize(ours)
    assert_close(ours(IDS).logits, found, atol=0.02 if kind == "int8" else 0.5, rtol=0)
    ours.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert_close(again(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=0)


def test_what_is_not_quantized(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path)
    before = ours.state_dict()
    with pytest.raises(ValueError, match=r"a divisor of .*proj's 64 inputs|experts's 64 inputs"):
        quantize(ours, "int4", group_size=128)
    assert ours.state_dict().keys() == before.keys()
    quantize(ours, "int8", skip=("lm_head", "router", "experts"))
    assert ours.model.layers[0].feed_forward.experts.gate_up_proj.dtype == torch.float32
    with pytest.raises(ValueError, match="layers were replaced"):
        ours.save_pretrained(tmp_path / "quantized")


def test_adapters_of_fused_weights_are_refused(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path)
    for targets in (["q_proj", "gate_up_proj"], r".*experts\.down_proj"):
        with pytest.raises(
            ValueError, match=r"experts\.(gate_up|down)_proj has the weights of all experts in one tensor"
        ):
            lora.add(ours, target_modules=targets)
    with pytest.raises(ValueError, match=r"target_parameters is .*, which is not supported"):
        lora.add(ours, target_parameters=["feed_forward.experts.down_proj"])
    for targets in (["down_proj"], "all-linear"):
        with pytest.warns(UserWarning, match=r"experts\.\w+_proj and \d others have .* not adapted, as in peft"):
            lora.add(copy.deepcopy(ours), target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.add(ours)


@pytest.mark.filterwarnings("ignore")  # of peft
def test_peft_loads_adapters_beside_quantized_experts(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path / "base", interleave_moe_layer_step=2)
    lora.add(quantize(ours, "int8"), rank=4, alpha=8, target_modules=["o_proj", "down_proj"])
    lora.save(ours, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    names = {name.removesuffix(".default.weight") for name, _ in adapted.named_parameters() if "lora" in name}
    assert names == {
        f"base_model.model.{name}" for name, _ in ours.named_parameters() if "lora" in name for name in [_peft(name)]
    }


def _peft(name: str) -> str:
    return name.replace(".adapters.default.", ".")


def test_float8_training_is_refused(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path)
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj has the weights of all experts in one tensor"):
        use_float8(ours, ours.device, emulate=True)


def test_layers_start_as_the_identity() -> None:
    config = LlamaConfig.from_dict(SHAPE | STEEP | {"model_type": "llama4_text", "interleave_moe_layer_step": 2})
    model = start_as_identity(LlamaForCausalLM(config)).eval()
    x_BTD = torch.randn(1, 5, 64)
    rotations = model.model.rotations(torch.arange(5)[None])
    for layer, rotation in zip(model.model.layers, rotations, strict=True):
        assert torch.equal(layer(x_BTD, rotation, Visible(causal=True)), x_BTD)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.slow
@torch.enable_grad()
def test_experts_compile_without_a_graph_break(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, num_hidden_layers=2, no_rope_layer_interval=2, num_experts_per_tok=2)
    losses: list[Tensor] = []
    for model in (ours.train(), torch.compile(ours, fullgraph=True, backend="aot_eager")):
        ours.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        losses += [loss.detach(), *(weight.grad.clone() for weight in ours.parameters() if weight.grad is not None)]
    half = len(losses) // 2
    for first, second in zip(losses[:half], losses[half:], strict=True):
        assert_close(first, second, atol=2e-5, rtol=1e-4)
    quantize(ours.eval(), "float8_e4m3")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=0)


# ---- multi-modal folders


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small Llama 4 with a vision model."""
    folder = tmp_path_factory.mktemp("multimodal")
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}
    config = transformers.Llama4Config(
        text_config=SHAPE | STEEP,
        vision_config=vision | sizes | {"image_size": 28, "patch_size": 14},
        image_token_index=100,
        boi_token_index=98,
        eoi_token_index=99,
    )
    torch.manual_seed(0)
    transformers.Llama4ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_the_text_model_of_a_multimodal_folder(multimodal: Path, tmp_path: Path) -> None:
    theirs = transformers.Llama4ForConditionalGeneration.from_pretrained(multimodal).eval()
    ids = IDS % 97
    expected: Tensor = theirs(ids).logits
    with pytest.warns(UserWarning) as caught:
        ours = LlamaForCausalLM.from_pretrained(multimodal, device="cpu")
    assert [str(warning.message) for warning in caught] == [
        "model_type is 'llama4', a multi-modal model: its text model is read, without vision_model and "
        "multi_modal_projector"
    ]
    assert_close(ours(ids).logits, expected, atol=1e-4, rtol=0)
    ours.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "Llama4ForCausalLM"
    assert_close(again(ids).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_config": {"model_type": "llama"}}, "expected an object with model_type 'llama4_text'"),
        ({"audio_config": {"hidden_size": 8}}, "audio_config is"),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "quantization_config is"),
    ],
)
@pytest.mark.filterwarnings("ignore:model_type is 'llama4'")
def test_multimodal_configs_that_are_refused(changes: dict[str, Any], said: str, multimodal: Path) -> None:
    file = json.loads((multimodal / "config.json").read_text())
    with pytest.raises(ValueError, match=said):
        LlamaConfig.from_dict(file | changes)
