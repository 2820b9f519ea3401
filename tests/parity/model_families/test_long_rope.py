"""Phi-3 outgrows the original length of LongRoPE: all keys are computed anew, as by transformers' ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.generation.speculative import generate_speculative
from bpe_llama.model.sampling.sequence import Sequence
from tests.model.generation.naive import alone, finish
from tests.parity.model_families.cases import SHAPE
from tests.parity.model_families.cases_phi import longrope

pytestmark = pytest.mark.usefixtures("quiet_transformers")

ORIGINAL = 40
OPTIONS = GenerationOptions(temperature=0.0, max_new_tokens=20, eos_id=())
BEGIN = torch.arange(3, 36).tolist()  # 33 ids: the eighth new one has the long factors


@pytest.fixture(params=[None, 50])
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> LlamaForCausalLM:
    fields = {"original_max_position_embeddings": ORIGINAL, "rope_parameters": longrope(8)}
    config = transformers.Phi3Config(**(SHAPE | fields | {"sliding_window": request.param}))
    torch.manual_seed(3)
    transformers.Phi3ForCausalLM(config).save_pretrained(tmp_path)
    return LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")


def theirs(folder: Path, prompt: list[int], **options: Any) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([prompt])  # with an explicit mask, since new ids may equal the padding id
    found = model.generate(ids, attention_mask=ids * 0 + 1, do_sample=False, eos_token_id=None, **options)
    return found[0, len(prompt) :].tolist()


def queue(engine: Engine, prompts: list[list[int]], options: list[GenerationOptions]) -> list[Sequence]:
    return [engine.add_request(*request) for request in zip(prompts, options, strict=True)]


@pytest.mark.parametrize(
    ("ours", "cache"), [(None, "full"), (None, "int8"), (50, "full"), (50, "ring")], indirect=["ours"]
)
def test_batches_and_prefill_chunks(ours: LlamaForCausalLM, cache: str, tmp_path: Path) -> None:
    prompts = [torch.arange(3, 3 + length).tolist() for length in (60, 20, 33, 40, 41, 75, 21)]
    expected = [theirs(tmp_path, prompt, max_new_tokens=20) for prompt in prompts]
    made = []
    for joining in (Engine.prefill, queue):
        for chunk in (16, 4096):
            engine = Engine(ours, 8, prefill_chunk=chunk, cache=cache)
            sequences = joining(engine, prompts[:3], [OPTIONS] * 3)
            for _ in range(4):
                engine.step()
            sequences += joining(engine, prompts[3:], [OPTIONS] * 4)
            finish(engine)
            made.append([sequence.new_ids for sequence in sequences])
    if cache == "int8":  # quantized, so the ids may differ from transformers', but not between prefill chunks
        assert made == made[:1] * 4
    else:
        assert made == [expected] * 4


def test_speculation_beams_and_copies(ours: LlamaForCausalLM, tmp_path: Path) -> None:
    plain = theirs(tmp_path, BEGIN, max_new_tokens=20)

    def draft(sequence: Sequence, count: int) -> list[int]:
        return plain[len(sequence.new_ids) :][:count]

    result = generate_speculative(ours, BEGIN, draft, temperature=0.0, max_new_tokens=20, eos_id=())
    assert result.new_ids == plain and result.num_accepted_tokens > 10
    for beams in (2, 3):
        found = beam_search(ours, BEGIN, OPTIONS, num_beams=beams, prefill_chunk=16)[0].new_ids
        assert found == theirs(tmp_path, BEGIN, max_new_tokens=20, num_beams=beams)
    drawn = GenerationOptions(temperature=1.0, max_new_tokens=20, eos_id=(), seed=5)
    engine = Engine(ours, 3, prefill_chunk=16)
    sequences = engine.prefill([BEGIN], [drawn], copies=3)
    finish(engine)
    assert [sequence.new_ids for sequence in sequences] == [
        alone(ours, BEGIN, GenerationOptions(temperature=1.0, max_new_tokens=20, eos_id=(), seed=5 + copy))
        for copy in range(3)
    ]


def test_prefix_cache(ours: LlamaForCausalLM, tmp_path: Path) -> None:
    plain = theirs(tmp_path, BEGIN, max_new_tokens=20)
    engine = Engine(ours, 1, prefill_chunk=16)
    long = BEGIN + plain + BEGIN[:9]
    reused = []
    for prompt in (BEGIN[:10], BEGIN[:20], BEGIN, BEGIN + plain[:12], long, [*long, 5], BEGIN[:12]):
        (sequence,) = engine.prefill([prompt], [OPTIONS])
        finish(engine)
        assert sequence.new_ids == theirs(tmp_path, prompt, max_new_tokens=20), len(prompt)
        reused.append(sequence.num_cached_tokens)
    # BEGIN is recomputed at its end, so longer prompts find its keys with the long factors, and shorter ones do not.
    assert reused == [0, 10, 20, 44, 53, 62, 0]
    # Keys with the long factors stay behind where a long prompt is aborted after its first chunk.
    waiting = engine.add_request(long, OPTIONS)
    engine.step()
    assert waiting.num_prompt_tokens_left == len(long) - 16
    engine.abort(waiting)
    (sequence,) = engine.prefill([BEGIN[:15]], [OPTIONS])
    finish(engine)
    assert sequence.num_cached_tokens == 0 and sequence.new_ids == theirs(tmp_path, BEGIN[:15], max_new_tokens=20)
