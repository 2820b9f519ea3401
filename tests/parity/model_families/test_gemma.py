"""What Gemma alone has: scaled embeddings, norms around 1, soft caps on every road, multi-modal folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, Gemma2TextScaledWordEmbedding

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, lora
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_triton
from bpe_llama.model.backends.forward import decoder_for
from bpe_llama.model.evaluation.scoring import Row, score_rows
from bpe_llama.model.families.gemma import scaled_embedding
from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.layers import attention_backends
from bpe_llama.model.layers.loss import chunked_next_token_loss, next_token_loss
from bpe_llama.model.layers.norm import ZeroCenteredRMSNorm
from bpe_llama.model.quantization.quantize import quantize
from bpe_llama.model.training.distillation import distillation_loss
from bpe_llama.model.training.step import TensorBatch
from tests.model.generation.naive import finish
from tests.parity.lora.written import saved_by_peft, shake
from tests.parity.model_families.cases import SHAPE
from tests.parity.model_families.cases_gemma import GEMMA_CASES, LINEAR, LOCAL
from tests.parity.model_families.test_model_families import build, ids_of

pytestmark = pytest.mark.usefixtures("quiet_transformers")

CAPPED = SHAPE | GEMMA_CASES["gemma2"]["cases"][0] | {"model_type": "gemma2"}


UNREAD = {"transformers_version", "cache_implementation", "hidden_act", "sliding_window_size"} | {
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "rope_local_base_freq",
}
"""Keys that transformers 5 stores and does not compute with; of Gemma 1 it reads ``hidden_act``."""


@pytest.fixture
def capped() -> LlamaForCausalLM:
    """Return a Gemma 2 of which the caps, 2 for scores and 3 for logits, bind."""
    return LlamaForCausalLM(LlamaConfig.from_dict(CAPPED | {"initializer_range": 0.5}), seed=3).eval()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LlamaForCausalLM, Any]:
    return build("gemma2", 0, tmp_path / "theirs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm_and_embedding_round_as_in_transformers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2304, generator=generator).to(dtype)
    ours, theirs = ZeroCenteredRMSNorm(2304, 1e-6).to(dtype), Gemma2RMSNorm(2304, 1e-6).to(dtype)
    ours.weight.normal_(generator=generator)
    theirs.weight.copy_(ours.weight)
    assert torch.equal(ours(x), theirs(x))
    config = LlamaConfig(vocab_size=8, hidden_size=2304, num_attention_heads=8)
    table, reference = scaled_embedding(config).to(dtype), Gemma2TextScaledWordEmbedding(8, 2304, 0, 2304**0.5)
    table.weight.normal_(generator=generator)
    reference = reference.to(dtype)
    reference.weight.copy_(table.weight)
    ids = torch.arange(8)[None]
    assert table(ids).dtype == dtype
    assert torch.equal(table(ids), reference(ids))


@pytest.mark.parametrize("name", list(GEMMA_CASES))
def test_new_norms_multiply_by_one(name: str) -> None:
    model = LlamaForCausalLM(LlamaConfig.from_dict(SHAPE | {"model_type": name, "head_dim": 16}))
    norms = [module for module in model.modules() if isinstance(module, ZeroCenteredRMSNorm)]
    assert len(norms) == {"gemma": 2, "gemma2": 4, "gemma3_text": 6}[name] * 4 + 1
    assert all(not norm.weight.any() for norm in norms)


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
def test_every_attention_backend_caps_scores(
    pair: tuple[LlamaForCausalLM, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    ours.set_attn_implementation(backend)
    monkeypatch.setattr(attention_backends, "_BLOCK", 3 * 4 * 40 * 16)  # 16 queries at a time
    ids, mask = ids_of(3, 40), torch.ones(3, 40, dtype=torch.long)
    mask[1, :9] = 0
    expected = theirs(ids, attention_mask=mask).logits
    assert_close(ours(ids, mask).logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)
    marks = torch.tensor([[0] * 17 + [1] * 23] * 3)
    apart = torch.cat([theirs(part).logits for part in (ids[:, :17], ids[:, 17:])], dim=1)
    assert_close(ours(ids, document_ids=marks).logits, apart, atol=1e-4, rtol=0)
    uncapped = LlamaForCausalLM(ours.config.replace(attn_logit_softcapping=None)).eval()
    uncapped.load_state_dict(ours.state_dict())
    assert (uncapped(ids).logits - ours(ids).logits).abs().max() > 0.01


def test_attention_weights_are_those_of_capped_scores(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = pair
    ids = ids_of(2, 12)
    expected = theirs(ids, output_attentions=True).attentions
    for found, weights in zip(ours.attention_weights(ids), expected, strict=True):
        assert_close(found, weights, atol=1e-5, rtol=0)


def test_dropout_of_capped_attention_weights(capped: LlamaForCausalLM) -> None:
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    visible = attention_backends.Visible(causal=True)
    drawn = []
    for backend in (attention_backends.sdpa, attention_backends.eager):
        torch.manual_seed(5)
        drawn.append(backend(query, key, torch.ones(1, 2, 6, 8), visible, 0.5, 2.0))
    assert_close(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], torch.ones_like(drawn[0]))


def test_no_road_drops_the_cap_of_logits(capped: LlamaForCausalLM) -> None:
    ids = ids_of(1, 30)
    logits = capped(ids).logits
    assert 2.0 < logits.abs().max() <= 3.0  # not far from the cap, which binds
    assert capped.lm_head(capped.model(ids)).abs().max() > 5.0
    logprobs = logits[0].log_softmax(-1)
    own = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]

    engine = Engine(capped, 1)
    options = GenerationOptions(max_new_tokens=3, temperature=0.0, prompt_logprobs=True, logprobs=True, eos_id=())
    (sequence,) = engine.prefill([ids[0].tolist()], [options])
    finish(engine)
    assert sequence.prompt_logprobs[1:] == pytest.approx(own.tolist(), abs=1e-4)
    assert sequence.logprobs[0] == pytest.approx(float(logprobs[-1].max()), abs=1e-4)

    (score,) = score_rows(capped, [Row(ids[0].numpy(), first=1)])
    assert score.nats == pytest.approx(-float(own.sum()), abs=1e-3)

    (found, *_) = beam_search(capped, ids[0].tolist(), GenerationOptions(max_new_tokens=1, eos_id=()), num_beams=2)
    assert found.score == pytest.approx(float(logprobs[-1].max()), abs=1e-4)

    hidden = capped.model(ids)
    expected = next_token_loss(logits, ids)
    for size in (None, 4):
        assert_close(chunked_next_token_loss(hidden, capped.logits, ids, size), expected)
    assert_close(capped.loss(ids, ids), expected)
    batch = TensorBatch(ids, ids)
    assert float(distillation_loss(capped, alpha=1.0)(capped, batch, 29)) == pytest.approx(0.0, abs=1e-5)
    assert_close(distillation_loss(capped, alpha=0.0)(capped, batch, 29), expected)

    assert decoder_for(capped) is not None  # so the engine above decoded natively
    assert unsupported_by_triton(capped) is not None
    quantize(capped, "int8", skip=())
    assert type(capped.lm_head).__name__ == "Int8Linear"
    assert (capped(ids).logits - logits).abs().mean() < 0.2


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_classifiers_have_no_cap(name: str, tmp_path: Path) -> None:
    fields = SHAPE | GEMMA_CASES[name]["cases"][0] | {"num_labels": 3, "final_logit_softcapping": 0.1}
    config = transformers.AutoConfig.for_model(name, **fields)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = LlamaForSequenceClassification.from_pretrained(tmp_path / "theirs", device="cpu")
    ids = ids_of(2, 12)
    assert theirs(ids).logits.abs().max() > 0.1
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    ours.save_pretrained(tmp_path / "ours")
    (saved,) = json.loads((tmp_path / "ours/config.json").read_text())["architectures"]
    assert saved == type(theirs).__name__


@pytest.mark.filterwarnings("ignore")  # of peft
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 7, 60]},
        {"target_modules": ["lm_head", "v_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["embedding", "dora", "rows", "head", "saved head"],
)
def test_adapters_of_embedding_and_head(
    pair: tuple[LlamaForCausalLM, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    ours, theirs = pair
    ids = ids_of(2, 20)
    ids[0, 3:6] = torch.tensor([5, 7, 60])
    bare = ours(ids).logits
    adapted = saved_by_peft(theirs, tmp_path / "adapter", **options)
    expected = adapted(ids).logits
    lora.load(ours, tmp_path / "adapter")
    assert (expected - bare).abs().max() > 0.01
    assert_close(ours(ids).logits, expected, atol=2e-4, rtol=0)
    if "embed_tokens" in options["target_modules"] or "modules_to_save" not in options:
        return
    assert ours(ids).logits.abs().max() <= 3.0


@pytest.mark.filterwarnings("ignore")  # of peft
def test_merged_updates_of_an_embedding_are_the_same(tmp_path: Path) -> None:
    ours, theirs = build("gemma", 1, tmp_path / "theirs")  # untied
    lora.add(ours, rank=4, alpha=8, target_modules=("embed_tokens",))
    shake(ours, 1, only=("lora_embedding_A", "lora_embedding_B"))
    ids = ids_of(2, 20)
    before = ours(ids).logits
    lora.save(ours, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert_close(before, adapted(ids).logits, atol=2e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(ids).logits, before, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", list(GEMMA_CASES))
def test_resized_embeddings(name: str, tmp_path: Path) -> None:
    ours, theirs = build(name, 0, tmp_path / "theirs")
    ids = ids_of(1, 20)
    before = ours(ids).logits
    table = ours.resize_token_embeddings(110, mean_resizing=False)
    assert ours.lm_head.weight is table.weight
    assert_close(ours(ids).logits[..., :101], before, atol=1e-6, rtol=0)
    theirs.resize_token_embeddings(110, mean_resizing=False)
    theirs.get_input_embeddings().weight.data.copy_(table.weight)
    added = torch.tensor([[5, 105, 109, 101]])
    assert_close(ours(added).logits, theirs(added).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", list(GEMMA_CASES))
def test_config_files_of_transformers_4(name: str) -> None:
    for fields, _ in GEMMA_CASES[name]["published"].values():
        config = LlamaConfig.from_dict(fields | {"model_type": name})
        theirs = transformers.AutoConfig.for_model(name, **fields)
        assert config.hidden_act == getattr(theirs, "hidden_activation", theirs.to_dict().get("hidden_act"))
        again = transformers.AutoConfig.for_model(**config.to_dict())
        for key, value in theirs.to_dict().items():
            assert key in UNREAD or again.to_dict()[key] == value, key
    config = LlamaConfig.from_dict(
        GEMMA_CASES["gemma3_text"]["published"]["Gemma 3 4B, text"][0] | {"model_type": "gemma3_text"}
    )
    assert (config.rope, config.local_rope, config.context_length) == (LINEAR, LOCAL, 131_072)


def test_keys_that_transformers_does_not_read_warn() -> None:
    with pytest.warns(UserWarning, match="hidden_act is 'silu', but transformers' gemma2 reads hidden_activation"):
        config = LlamaConfig.from_dict(CAPPED | {"hidden_act": "silu"})
    assert config.hidden_act == "gelu_pytorch_tanh"
    gemma3 = SHAPE | {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}
    with pytest.warns(UserWarning, match="attn_logit_softcapping is 50.0, but transformers' gemma3_text"):
        assert LlamaConfig.from_dict(gemma3).attn_logit_softcapping is None


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small Gemma 3 with a vision tower."""
    folder = tmp_path_factory.mktemp("multimodal")
    text = SHAPE | GEMMA_CASES["gemma3_text"]["cases"][0]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=100,
        boi_token_index=98,
        eoi_token_index=99,
    )
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def _copied(source: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    values = json.loads((source / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(values))
    tensors = load_file(source / "model.safetensors")
    names = {name: name.replace("language_model.model.", "model.language_model.") for name in tensors}
    names = {name: new if new != name else f"model.{name}" for name, new in names.items()}
    save_file({names[name]: tensor for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def test_the_text_model_of_a_multimodal_folder(multimodal: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(multimodal).eval()
    assert type(theirs).__name__ == "Gemma3ForConditionalGeneration"
    ids = ids_of(2, 50) % 97
    expected: Tensor = theirs(ids).logits
    renamed = _copied(multimodal, tmp_path / "renamed", eos_token_id=[1, 106 - 50])  # names within transformers
    for folder in (multimodal, renamed):
        with pytest.warns(UserWarning) as caught:
            ours = LlamaForCausalLM.from_pretrained(folder, device="cpu")
        assert [str(warning.message) for warning in caught] == [
            "model_type is 'gemma3', a multi-modal model: its text model is read, without vision_tower and "
            "multi_modal_projector"
        ]
        assert_close(ours(ids).logits, expected, atol=1e-4, rtol=0)
    assert ours.end_ids == (1, 56)
    ours.save_pretrained(tmp_path / "text")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    assert_close(again(ids).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_config": {"model_type": "llama"}}, "text_config is .*; expected an object with model_type"),
        ({"text_config": 3}, "text_config is 3; expected an object"),
        ({"text_config": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping is 30.0, which transformers' ge"),
        ({"audio_config": {"hidden_size": 8}}, "audio_config is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
    ],
)
@pytest.mark.filterwarnings("ignore:model_type is 'gemma3'")
def test_multimodal_configs_that_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LlamaConfig.from_dict({"model_type": "gemma3", "vision_config": {}} | changes)


def test_vision_tensors_of_a_text_folder_are_refused(multimodal: Path, tmp_path: Path) -> None:
    text = json.loads((multimodal / "config.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(text))
    save_file(load_file(multimodal / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected: multi_modal_projector"):
        LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
