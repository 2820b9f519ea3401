"""Every model family against transformers: logits, cached ids, training, saving, adapters, every road of generation."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, lora
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_cuda_graph
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.family import FAMILIES
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.quantization.quantize import quantize
from tests.model.generation.naive import alone, finish
from tests.parity.model_families.cases import MODEL_FAMILIES, SHAPE
from tests.small_models import perturb_vectors

pytestmark = pytest.mark.usefixtures("quiet_transformers")

FULL = os.environ.get("BPE_LLAMA_FULL") == "1"  # as `make parity` sets it

EVERY_CASE = [
    pytest.param((name, number), id=f"{name}-{number}")
    for name, family in MODEL_FAMILIES.items()
    for number in range(len(family.cases))
]


def ids_of(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 101, (rows, length), generator=torch.Generator().manual_seed(seed))


def build(name: str, number: int, folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """Return our model and transformers', of which ours was loaded."""
    config = transformers.AutoConfig.for_model(name, **(SHAPE | MODEL_FAMILIES[name].cases[number]))
    torch.manual_seed(number)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    perturb_vectors(theirs)
    theirs.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, device="cpu"), theirs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[LlamaForCausalLM, Any]]:
    """Return `build` in a folder of its own, which builds each case once."""
    return functools.cache(lambda name, number: build(name, number, tmp_path_factory.mktemp("theirs")))


@pytest.fixture(params=EVERY_CASE)
def pair(
    request: pytest.FixtureRequest, built: Callable[[str, int], tuple[LlamaForCausalLM, Any]]
) -> tuple[LlamaForCausalLM, Any]:
    """Return copies, which a test may change."""
    return copy.deepcopy(built(*request.param))


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) - {"llama", "mistral", "mixtral"} == set(MODEL_FAMILIES)
    assert all(len(family.cases) >= 3 for family in MODEL_FAMILIES.values())
    assert all(family.published for family in MODEL_FAMILIES.values())


def test_logits(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = pair
    ids = ids_of(3, 60)
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    mask = torch.ones_like(ids)
    mask[1, :20], mask[2, :53] = 0, 0
    found, expected = ours(ids, mask).logits, theirs(ids, attention_mask=mask).logits
    assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)


def test_greedy_ids(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = pair
    for length in (3, 33) if FULL else (3,):
        ids = ids_of(1, length, seed=length)
        expected = theirs.generate(ids, max_new_tokens=40, do_sample=False)  # over every window and original length
        found = ours.generate(ids, max_new_tokens=40, temperature=0.0, eos_id=())
        assert found.tolist() == expected.tolist()


def test_every_road_has_the_same_ids(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, _ = pair
    ids = ids_of(1, 27)
    prompts = [ids_of(1, length, seed=length)[0].tolist() for length in (27, 3, 14)]
    options = [GenerationOptions(temperature=0.0, max_new_tokens=12, eos_id=()) for _ in prompts]

    def drawn(engine: Engine) -> list[list[int]]:
        sequences = engine.prefill(prompts, options)
        finish(engine)
        return [sequence.new_ids for sequence in sequences]

    expected = [alone(ours, prompt, options[0]) for prompt in prompts]
    assert drawn(Engine(ours, 3, 64)) == expected
    assert drawn(Engine(ours, 3, 64, prefill_chunk=4)) == expected
    if unsupported_by_cuda_graph(ours) is None:
        engine = Engine(ours, 3, 64)
        sequences = engine.prefill(prompts, options)
        CudaGraphDecoder(ours, engine.cache, None).run(sequences, 8)
        assert [sequence.new_ids for sequence in sequences] == expected
    cache = KVCache(ours.config, 1, 64)
    parts = [ours(part, past_key_values=cache).logits for part in torch.split(ids, 5, dim=1)]
    assert_close(torch.cat(parts, dim=1), ours(ids).logits, atol=1e-4, rtol=0)


@torch.enable_grad()
def test_a_training_step(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = (model.train() for model in pair)
    ids = ids_of(2, 40)
    expected = theirs(ids, labels=ids).loss
    found = ours.loss(ids, ids)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_close(ours(ids, labels=ids).loss, expected, atol=1e-5, rtol=1e-5)
    for model, loss in ((ours, found), (theirs, expected)):
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits, atol=2e-3, rtol=0)


def test_packed_documents_see_themselves_alone(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, _ = pair
    ids = ids_of(1, 40)
    marks = torch.tensor([[0] * 17 + [1] * 23])
    packed = ours(ids, document_ids=marks).logits
    apart = torch.cat([ours(part).logits for part in (ids[:, :17], ids[:, 17:])], dim=1)
    assert_close(packed, apart, atol=1e-4, rtol=0)


def test_transformers_loads_what_we_save(pair: tuple[LlamaForCausalLM, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    ours.save_pretrained(tmp_path / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert type(again) is type(theirs)
    ids = ids_of(2, 50)
    assert_close(again(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "ours", device="cpu").config == ours.config
    assert LlamaConfig.from_dict(ours.config.to_dict()) == ours.config


@pytest.mark.filterwarnings("ignore")  # of peft
def test_peft_loads_our_adapters(pair: tuple[LlamaForCausalLM, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    ids = ids_of(2, 20)
    bare = ours(ids).logits
    lora.add(ours, rank=4, alpha=8, target_modules=MODEL_FAMILIES[ours.config.model_type].adapted)
    for name, weight in ours.named_parameters():
        if "lora" in name:
            weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    lora.save(ours, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert not torch.allclose(ours(ids).logits, bare, atol=1e-2)
    assert_close(ours(ids).logits, adapted(ids).logits, atol=2e-4, rtol=0)


def test_quantized_and_bfloat16_models_run(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = pair
    ids = ids_of(1, 12)
    exact = theirs(ids).logits
    half = ours.to(torch.bfloat16)
    error = (theirs.to(torch.bfloat16)(ids).logits.float() - exact).abs().mean()
    assert (half(ids).logits.float() - exact).abs().mean() < 1.5 * error
    quantize(half.float(), "int8")
    assert (half(ids).logits - exact).abs().mean() < 0.2 * exact.abs().mean()
    assert half.generate(ids, max_new_tokens=4, eos_id=()).shape == (1, 16)


LARGEST = {"DeepSeek-V2", "DeepSeek-V3", "Qwen3-235B-A22B"}  # ten thousands of modules; each family has smaller ones
PUBLISHED = [
    pytest.param(name, fields, count, id=model)
    for name, family in MODEL_FAMILIES.items()
    for model, (fields, count) in family.published.items()
    if FULL or model not in LARGEST
]


def merged(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return shapes with one tensor for the experts of a layer, and one for gate and up, as transformers has them."""
    experts: dict[str, dict[str, dict[int, tuple[int, ...]]]] = {}
    found = {}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight", key):
            experts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = shape
        else:
            found[key] = shape
    for place, parts in experts.items():
        count = len(parts["gate_proj"])
        assert all(sorted(part) == list(range(count)) and len(set(part.values())) == 1 for part in parts.values())
        (inner, width), up, down = (parts[name][0] for name in ("gate_proj", "up_proj", "down_proj"))
        assert up == (inner, width)
        found |= {f"{place}.gate_up_proj": (count, 2 * inner, width), f"{place}.down_proj": (count, *down)}
    return found


@pytest.mark.parametrize(("name", "fields", "count"), PUBLISHED)
def test_parameters_of_published_models(name: str, fields: dict[str, Any], count: int) -> None:
    config = LlamaConfig.from_dict(fields | {"model_type": name})
    model = LlamaForCausalLM(config, device="meta")
    assert sum(weight.numel() for weight in model.parameters()) == count
    theirs = transformers.AutoConfig.for_model(name, **fields)
    with torch.device("meta"):
        expected = transformers.AutoModelForCausalLM.from_config(theirs)
    shapes = {key: tuple(weight.shape) for key, weight in expected.named_parameters()}
    assert merged({key: tuple(weight.shape) for key, weight in model.named_parameters()}) == shapes


REFUSED = [(name, fields, said) for name, family in MODEL_FAMILIES.items() for fields, said in family.refused]


@pytest.mark.parametrize(("name", "fields", "said"), REFUSED)
def test_configs_that_mix_families_are_refused(name: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LlamaConfig.from_dict(SHAPE | {"model_type": name} | fields)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_with_a_classifier_are_transformers(name: str) -> None:
    known = name in transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    assert FAMILIES[name].has_classifier is known


def test_a_classifier_that_transformers_lacks_is_saved_with_a_warning(tmp_path: Path) -> None:
    judge = LlamaForSequenceClassification(LlamaConfig.from_dict(SHAPE | {"model_type": "granite", "dtype": "float32"}))
    with pytest.warns(UserWarning, match="transformers has no classifier of model_type 'granite'"):
        judge.save_pretrained(tmp_path)
    assert LlamaForSequenceClassification.from_pretrained(tmp_path, device="cpu").config == judge.config
