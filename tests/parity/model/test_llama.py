"""The model against transformers: random weights in a folder that both load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM
from bpe_llama.model.backends.cpu.dispatch import can_decode
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_cuda_graph
from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence
from bpe_llama.model.generation.speculative import generate_speculative
from bpe_llama.model.layers.rope import RotaryEmbedding, apply_rope
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT
from tests.model.generation.naive import finish
from tests.small_models import perturb_vectors, small_config

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "factor": 4.0,
}
CASES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim of its own": {"head_dim": 20, "num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "another theta and eps": {"rope_theta": 5e5, "rms_norm_eps": 1e-3},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 40},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn, every option": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.2,
            "mscale_all_dim": 0.8,
            "truncate": False,
        }
    },
    "longrope, short": {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 120}},
    "longrope, long": {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 32}},
    "sliding window (Mistral)": {"sliding_window": 7, "num_key_value_heads": 2},
    "experts (Mixtral)": {"num_local_experts": 4, "num_key_value_heads": 2},
    "three experts a token (Mixtral)": {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 9},
}


def config_of(case: str) -> LlamaConfig:
    shape = {"num_hidden_layers": 3, "max_position_embeddings": 128, "pad_token_id": 0}
    return small_config(**(shape | CASES[case]))


@pytest.fixture(params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LlamaForCausalLM, Any]:
    """Return our model and transformers', which has loaded what ours saved."""
    ours = LlamaForCausalLM(config_of(request.param), seed=3).eval()
    perturb_vectors(ours)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return ours, theirs.eval()


def is_length_dependent(model: LlamaForCausalLM) -> bool:
    return model.config.rope["rope_type"] in LENGTH_DEPENDENT


def mask_for(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Return a mask of rows of different lengths, or of equal ones if RoPE depends on the sequence length.

    transformers then rotates all rows for the length of the longest; ours rotates each row for its own length.
    """
    mask = torch.ones_like(ids)
    if not is_length_dependent(model):
        mask[1, :20], mask[2, :59] = 0, 0
    return mask


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 101, (3, 60), generator=torch.Generator().manual_seed(1))


def test_logits_and_loss(pair: tuple[LlamaForCausalLM, Any], ids: Tensor) -> None:
    ours, theirs = pair
    labels = ids.clone()
    labels[:, :9] = -100
    out, expected = ours(ids, labels=labels), theirs(ids, labels=labels)
    assert_close(out.logits, expected.logits, atol=1e-4, rtol=0)
    assert_close(out.loss, expected.loss, atol=1e-5, rtol=0)


def test_cached_logits(pair: tuple[LlamaForCausalLM, Any], ids: Tensor) -> None:
    ours, theirs = pair
    # A cache does not change the logits, unless its keys were rotated for a shorter sequence.
    expected = theirs(ids).logits
    cache, past = KVCache(ours.config, 3, max_length=60), None
    for start, end in [(0, 31), (31, 50), *((i, i + 1) for i in range(50, 60))]:
        logits = ours(ids[:, start:end], past_key_values=cache).logits
        if not is_length_dependent(ours):
            assert_close(logits, expected[:, start:end], atol=1e-4, rtol=0)
        out = theirs(ids[:, start:end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        assert_close(logits, out.logits, atol=1e-4, rtol=0)


def test_padded_logits(pair: tuple[LlamaForCausalLM, Any], ids: Tensor) -> None:
    ours, theirs = pair
    mask = mask_for(ours, ids)
    logits, expected = ours(ids, mask).logits, theirs(ids, attention_mask=mask).logits
    assert_close(logits[mask > 0], expected[mask > 0], atol=1e-4, rtol=0)


def test_greedy_ids(pair: tuple[LlamaForCausalLM, Any], ids: Tensor) -> None:
    ours, theirs = pair
    mask = mask_for(ours, ids)
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False)
    assert ours.generate(ids, mask, max_new_tokens=40, temperature=0.0).tolist() == expected.tolist()


def test_loading_what_transformers_saves(pair: tuple[LlamaForCausalLM, Any], ids: Tensor, tmp_path: Path) -> None:
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    again = LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    assert again.config.rope_parameters == ours.config.rope_parameters
    assert torch.equal(again(ids).logits, ours(ids).logits)


def test_bfloat16_error_is_that_of_rounding(pair: tuple[LlamaForCausalLM, Any], ids: Tensor) -> None:
    ours, theirs = pair
    exact = theirs(ids).logits
    out = ours.to(torch.bfloat16)(ids).logits.float()
    expected = theirs.to(torch.bfloat16)(ids).logits.float()
    # Rounding errors grow through the layers; ours must not exceed the reference's.
    assert (out - exact).square().mean() < 1.5 * (expected - exact).square().mean()


def test_gradients(ids: Tensor, tmp_path: Path) -> None:
    ours = LlamaForCausalLM(config_of("grouped-query"), seed=3)
    ours.save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.enable_grad():
        ours(ids, labels=ids).loss.backward()
        theirs(ids, labels=ids).loss.backward()
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral"])
def test_attention_dropout_is_applied_in_training_alone(kind: str, backend: str, ids: Tensor, tmp_path: Path) -> None:
    case = {"llama": "grouped-query", "mistral": "sliding window (Mistral)", "mixtral": "experts (Mixtral)"}[kind]
    ours = LlamaForCausalLM(config_of(case).replace(attention_dropout=0.4), seed=1)
    ours.save_pretrained(tmp_path)
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    ours.set_attn_implementation(backend)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=backend)
    assert theirs.config.attention_dropout == ours.config.attention_dropout == 0.4
    outs = {}
    for training in (True, False):
        logits = []
        for model in (ours, theirs):
            torch.manual_seed(3)
            logits.append(model.train(training)(ids).logits)
        assert_close(logits[0], logits[1], atol=1e-4, rtol=0)  # the same weights are dropped
        outs[training] = logits[0]
    assert not torch.allclose(outs[True], outs[False], atol=1e-2)
    whole = outs[False].argmax(-1)[:, -1:]
    assert torch.equal(ours.generate(ids, max_new_tokens=1, temperature=0.0, eos_id=())[:, -1:], whole)
    ours.train()
    assert not can_decode(ours) and unsupported_by_cuda_graph(ours, "full") is not None  # which would drop nothing
    ours.set_attn_implementation("flex")
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.4, which flex attention cannot apply"):
        ours(ids)
    with pytest.raises(ValueError, match=r"attention_dropout is 1\.5; expected a probability, 0 to 1"):
        ours.config.replace(attention_dropout=1.5)


def test_attention_weights(ids: Tensor, tmp_path: Path) -> None:
    ours = LlamaForCausalLM(config_of("grouped-query"), seed=3)
    ours.save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    mask = mask_for(ours, ids)
    expected = theirs(ids, attention_mask=mask, output_attentions=True).attentions
    for weights, layer in zip(ours.attention_weights(ids, mask), expected, strict=True):
        present = mask[:, None, :, None].expand_as(weights) > 0  # rows of padding are meaningless
        assert_close(weights[present], layer[present], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["experts (Mixtral)", "three experts a token (Mixtral)"])
def test_the_load_balancing_loss(case: str, ids: Tensor, tmp_path: Path) -> None:
    ours = LlamaForCausalLM(config_of(case).replace(router_aux_loss_coef=0.3), seed=3)
    ours.save_pretrained(tmp_path)
    theirs = transformers.MixtralForCausalLM.from_pretrained(tmp_path, output_router_logits=True)
    padded = mask_for(ours, ids)
    follows_padding = torch.nn.functional.pad(padded, (1, 0))[:, :-1] == 0
    for mask, labels in ((None, ids), (padded, ids.masked_fill(follows_padding, -100))):
        expected = theirs.train()(ids, attention_mask=mask, labels=labels)
        assert_close(ours.train()(ids, mask, labels=labels).loss, expected.loss, atol=1e-5, rtol=0)
        assert_close(ours.loss(ids, labels, mask), expected.loss, atol=1e-5, rtol=0)


def test_partial_rotation() -> None:
    """transformers' llama has no partial rotation; its StableLM has."""
    from transformers.models.stablelm import modeling_stablelm as stablelm

    common = {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5e3, "partial_rotary_factor": 0.25}
    rotary = stablelm.StableLmRotaryEmbedding(transformers.StableLmConfig(**common))
    ours = RotaryEmbedding(LlamaConfig.from_dict(common))
    query, key = torch.randn(2, 1, 4, 20, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7, 27)[None]
    rotated = stablelm.apply_rotary_pos_emb(query[..., :4], key[..., :4], *rotary(query, positions))
    for whole, part in zip((query, key), rotated, strict=True):
        expected = torch.cat([part, whole[..., 4:]], -1)
        assert_close(apply_rope(whole, ours(positions)), expected, atol=1e-5, rtol=0)


SWITCHING = {
    "longrope": LONGROPE | {"original_max_position_embeddings": 40},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
}


@pytest.mark.parametrize("kind", SWITCHING)
@pytest.mark.parametrize("path", ["packed", "modules", "int8", "experts", "window", "ring"])
def test_rotation_does_not_depend_on_prefill_chunks(kind: str, path: str, tmp_path: Path) -> None:
    """Prompts below and above the pretraining context, and one that crosses it while decoding; alone and in batches."""
    context = {"longrope": 128, "dynamic": 40}[kind]
    changes: dict[str, Any] = {"rope_scaling": SWITCHING[kind], "max_position_embeddings": context}
    if path == "experts":
        changes["num_local_experts"] = 4
    if path in ("window", "ring"):
        changes["sliding_window"] = 50
    ours = LlamaForCausalLM(config_of("grouped-query").replace(**changes), seed=3).eval()
    ours.save_pretrained(tmp_path)
    if path == "modules":
        ours.set_attn_implementation("eager")
    prompts = [torch.arange(3, 3 + length).tolist() for length in (60, 20, 33, 75, 41)]
    expected = []
    for prompt in prompts:  # a new model each, since transformers' reuses the last rotation for the next sequence
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        found = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
        expected.append(found[0, len(prompt) :].tolist())
    cache = path if path in ("int8", "ring") else "full"
    options = GenerationOptions(temperature=0.0, max_new_tokens=20, eos_id=())
    made = []

    def queue(engine: Engine, prompts: list[list[int]], options: list[GenerationOptions]) -> list[Sequence]:
        return [engine.add_request(*request) for request in zip(prompts, options, strict=True)]

    for joining in (Engine.prefill, queue):
        for chunk in (16, 4096):
            engine = Engine(ours, 8, prefill_chunk=chunk, cache=cache)
            sequences = joining(engine, prompts[:3], [options] * 3)
            for _ in range(4):
                engine.step()
            sequences += joining(engine, prompts[3:], [options] * 2)
            finish(engine)
            made.append([sequence.new_ids for sequence in sequences])
    if cache == "int8":  # quantized, so the ids may differ from transformers', but not between prefill chunks
        assert made == made[:1] * 4
    else:
        assert made == [expected] * 4


@pytest.mark.parametrize("kind", SWITCHING)
def test_length_dependent_rotation_in_beam_search_speculation_and_prefix_cache(kind: str, tmp_path: Path) -> None:
    context = {"longrope": 128, "dynamic": 40}[kind]
    changes: dict[str, Any] = {"rope_scaling": SWITCHING[kind], "max_position_embeddings": context}
    ours = LlamaForCausalLM(config_of("grouped-query").replace(**changes), seed=3).eval()
    ours.save_pretrained(tmp_path)
    begin = torch.arange(3, 36).tolist()
    options = GenerationOptions(temperature=0.0, max_new_tokens=20, eos_id=())

    def theirs(prompt: list[int], **options: Any) -> list[int]:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        ids = torch.tensor([prompt])  # with an explicit mask, since new ids may equal the padding id
        found = model.generate(ids, attention_mask=ids * 0 + 1, do_sample=False, eos_token_id=None, **options)
        return found[0, len(prompt) :].tolist()

    plain = theirs(begin, max_new_tokens=20)

    def draft(sequence: Sequence, count: int) -> list[int]:
        return plain[len(sequence.new_ids) :][:count]

    result = generate_speculative(ours, begin, draft, temperature=0.0, max_new_tokens=20, eos_id=())
    assert result.new_ids == plain and result.num_accepted_tokens > 10
    found = beam_search(ours, [*begin, *begin], options, num_beams=3, prefill_chunk=16)[0].new_ids
    assert found == theirs([*begin, *begin], max_new_tokens=20, num_beams=3)
    # The prefix cache is reused only if the prefix has the same rotation in both sequences.
    engine = Engine(ours, 1, prefill_chunk=16)
    for prompt in (begin[:10], begin[:20], begin, begin + plain[:12], begin + plain + begin[:9], begin[:12]):
        (sequence,) = engine.prefill([prompt], [options])
        finish(engine)
        assert sequence.new_ids == theirs(prompt, max_new_tokens=20), len(prompt)
