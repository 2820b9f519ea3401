"""The prefix cache of requests, and the fairness of prefills, counted in steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.cache import PrefixCache, make_cache
from bpe_llama.model.cache.prefix_cache import BLOCK, block_hashes
from bpe_llama.model.generation.admission import prefill_shares
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence
from tests.model.generation.naive import alone, finish

Make = Callable[..., LlamaForCausalLM]
LONG = [3 + 7 * i % 91 for i in range(250)]


def filled(form: str, dtype: torch.dtype, model: LlamaForCausalLM) -> tuple[list[bytes], PrefixCache, Tensor]:
    """Return hashes of a prompt, a prefix cache that holds it, and its keys and values."""
    cache = make_cache(form, model.config, 3, 128, 16, dtype, torch.device("cpu"))
    for store in cache.stores:
        store.copy_(torch.randint(-99, 99, store.shape, generator=torch.Generator().manual_seed(1)))
    cache.lengths[:] = [100, 90, 0]
    blocks, hashes = PrefixCache(cache, 10**6), block_hashes(LONG[:100])
    blocks.save(hashes, cache, slot=0)
    stored = [store[:, :, 0, :, :96].clone() for store in cache.stores]
    for store in cache.stores:
        store.zero_()
    assert blocks.load(hashes, cache, slot=2) == 96
    assert all(torch.equal(store[:, :, 2, :, :96], part) for store, part in zip(cache.stores, stored, strict=True))
    assert not any(store[:, :, :2].any() or store[:, :, 2, :, 96:].any() for store in cache.stores)
    return hashes, blocks, cache.store


@pytest.mark.parametrize("form, dtype", [("full", torch.float32), ("full", torch.bfloat16), ("int8", torch.bfloat16)])
def test_blocks_come_back_as_they_were(model: LlamaForCausalLM, form: str, dtype: torch.dtype) -> None:
    hashes, blocks, _ = filled(form, dtype, model)
    assert blocks.nbytes == 3 * blocks.block_bytes
    assert blocks.matched([hashes[0], b"other", hashes[2]]) == 1
    blocks.clear()
    assert blocks.matched(hashes) == blocks.nbytes == 0


def test_a_hash_stands_for_the_whole_prefix_and_the_salt() -> None:
    assert block_hashes(LONG[:64]) == block_hashes(LONG[:95]) != block_hashes(LONG[:64], "key")
    assert block_hashes(LONG[:96], known=block_hashes(LONG[:40])) == block_hashes(LONG[:96])
    assert not set(block_hashes(LONG[:96])) & set(block_hashes([5, *LONG[1:96]]))
    assert block_hashes(LONG[:31]) == []


def test_the_least_recently_used_blocks_go_first_and_late_ones_before_early_ones(model: LlamaForCausalLM) -> None:
    cache = make_cache("full", model.config, 1, 250, 16, torch.float32, torch.device("cpu"))
    cache.lengths[0] = 250
    size = PrefixCache(cache, 10**7).block_bytes
    blocks = PrefixCache(cache, 4 * size + 1)
    first, second = block_hashes(LONG[:96]), block_hashes(LONG[100:164])
    blocks.save(first, cache, 0)
    blocks.save(second, cache, 0)
    assert (blocks.matched(first), blocks.matched(second), blocks.nbytes) == (2, 2, 4 * size)
    blocks.load(first, cache, 0)
    blocks.save(block_hashes(LONG[50:82]), cache, 0)
    assert (blocks.matched(first), blocks.matched(second)) == (2, 1)
    long = block_hashes(LONG)
    blocks.save(long, cache, 0)  # more blocks than the pool has
    assert (blocks.matched(long), blocks.matched(second), blocks.nbytes) == (4, 0, 4 * size)


def test_what_has_no_prefix_cache_is_refused(tiny_model: Make) -> None:
    with pytest.raises(ValueError, match="a sliding-window cache overwrites the first tokens"):
        Engine(tiny_model(sliding_window=12), cache="ring", prefix_cache_bytes=10**6)
    with pytest.raises(ValueError, match="the prefix cache has 100 bytes; expected at least a block's 12288"):
        Engine(tiny_model(), prefix_cache_bytes=100)


def run(engine: Engine, prompt: list[int], options: GenerationOptions) -> Sequence:
    sequence = engine.add_request(prompt, options)
    finish(engine)
    return sequence


@pytest.mark.parametrize("form", ["full", "int8"])
def test_ids_do_not_depend_on_hits(tiny_model: Make, form: str) -> None:
    model = tiny_model(eos_token_id=None, max_position_embeddings=256)
    options = GenerationOptions(max_new_tokens=8, temperature=0.8, seed=2)
    engine = Engine(model, 2, prefill_chunk=24, cache=form, prefix_cache_bytes=10**6)
    cached = []
    for prompt in (LONG[:70], LONG[:64], LONG[:100], [*LONG[:50], 9, 9], LONG[1:60]):
        fresh = run(Engine(model, 2, prefill_chunk=24, cache=form), prompt, options)
        assert form == "int8" or fresh.new_ids == alone(model, prompt, options)
        sequence = run(engine, prompt, options)
        assert sequence.new_ids == fresh.new_ids
        cached.append(sequence.num_cached_tokens)
    assert cached == [0, 63, 64, 32, 0]
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-2)
    assert run(engine, LONG[:70], options).num_cached_tokens == 0


def test_rotation_that_depends_on_the_length_is_cached_up_to_the_original_context(tiny_model: Make) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = tiny_model(eos_token_id=None, max_position_embeddings=64, rope_parameters=rope)
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    engine = Engine(model, 2, 200, prefix_cache_bytes=10**6)
    cached = []
    for prompt in (LONG[:90], LONG[:90], LONG[:40], LONG[:41], LONG[:62], LONG[:100]):
        sequence = run(engine, prompt, options)
        assert sequence.new_ids == run(Engine(model, 1, 200), prompt, options).new_ids
        cached.append(sequence.num_cached_tokens)
    assert cached == [0, 0, 0, 32, 32, 0]


def test_requests_wait_for_a_prefix_that_another_prefills(model: LlamaForCausalLM, tiny_model: Make) -> None:
    model = tiny_model(eos_token_id=None, max_position_embeddings=256)
    options = GenerationOptions(max_new_tokens=3, temperature=0.0)
    engine = Engine(model, 4, prefill_chunk=32, prefix_cache_bytes=10**6)
    first = engine.add_request(LONG[:150], options)
    second = engine.add_request([*LONG[:140], 5], options)
    other = engine.add_request([8, 9], options)
    engine.step()
    assert engine.running == [first, other] and engine.waiting == [second]
    engine.abort(first)  # nobody prefills any more what it waits for
    finish(engine)
    assert [s.new_ids for s in (second, other)] == [alone(model, s.prompt, options) for s in (second, other)]
    assert second.num_cached_tokens == 0 and engine.num_prefilled_tokens < 150 + 32


def test_a_failed_sequence_leaves_no_nan_in_its_slot(model: LlamaForCausalLM) -> None:
    def fails(ids: Tensor, scores: Tensor) -> Tensor:
        raise LookupError

    engine = Engine(model, 2, cache="int8", isolate_errors=True)
    bad = engine.add_request([5, 6, 7], GenerationOptions(logits_processor=fails))
    good = engine.add_request([5, 6], GenerationOptions(max_new_tokens=4, temperature=0.0))
    engine.cache.stores[1][:, :, 0] = torch.nan
    assert set(engine.step()) == {bad, good} and engine.running == [good]
    assert bad.finish_reason == "error" and isinstance(bad.error, LookupError) and not bad.new_ids
    finish(engine)
    assert not any(store.isnan().any() for store in engine.cache.stores)
    assert len(good.new_ids) == 4


def test_an_interrupted_step_gives_joined_requests_back(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerationOptions(max_new_tokens=4, temperature=0.0)
    engine = Engine(model, 3)
    sequences = [engine.add_request([5, 6, 7], options) for _ in range(3)]

    def stop(*_: object) -> list[int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bpe_llama.model.generation.engine.sample_next_ids", stop)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert engine.running == sequences[:1] and engine.waiting == sequences[1:]
    finish(engine)
    assert {tuple(s.new_ids) for s in sequences} == {tuple(alone(model, [5, 6, 7], options))}
    assert engine.num_prefilled_tokens == 3


def test_the_sliding_window_cache_shares_a_prefill_of_equal_prompts(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None, sliding_window=12)
    options = [GenerationOptions(max_new_tokens=9, temperature=0.8, seed=seed) for seed in range(3)]
    engine = Engine(model, 2, prefill_chunk=7, cache="ring")  # the third waits for a slot, and prefills itself
    sequences = [engine.add_request(ids[0].tolist(), chosen) for chosen in options]
    finish(engine)
    assert [s.new_ids for s in sequences] == [alone(model, s.prompt, s.options) for s in sequences]
    assert engine.num_prefilled_tokens == 40


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_shares_use_the_chunk_and_starve_nobody(chunk: int) -> None:
    for left in ([900, 0, 20, 300], [5], [0, 0], [300] * 4, [1, 1, 1000], list(range(16))):
        shares = prefill_shares(left, chunk)
        prompts = sum(tokens > 0 for tokens in left)
        assert all((share > 0) == (tokens > 0) and share <= tokens for share, tokens in zip(shares, left, strict=True))
        assert sum(shares) == min(max(chunk, prompts), sum(left))


def test_a_long_prompt_starves_neither_short_ones_nor_decoding(tiny_model: Make) -> None:
    model = tiny_model(eos_token_id=None, max_position_embeddings=512)
    short, long = (GenerationOptions(max_new_tokens=n, temperature=0.0) for n in (2, 40))
    engine = Engine(model, 8, prefill_chunk=16)
    decoding = engine.add_request([4, 5], long)
    engine.step()
    prompt = engine.add_request((LONG * 2)[:400], long)
    engine.step()
    steps = 2
    while prompt.num_prompt_tokens_left:  # short prompts come all the time
        request = engine.add_request([6 + steps % 50, *LONG[:7]], short)
        before = prompt.num_prompt_tokens_left
        assert request in engine.step()  # its first id at once
        steps += 1
        assert before - prompt.num_prompt_tokens_left >= 4 or not prompt.num_prompt_tokens_left
        assert len(decoding.new_ids) == min(steps, 40)
    assert steps <= 2 + 400 / 4
    finish(engine)
    assert prompt.new_ids == alone(model, prompt.prompt, long)


def test_the_block_size_is_what_the_documentation_says() -> None:
    assert BLOCK == 32


@pytest.mark.parametrize("form", ["full", "int8"])  # in one ragged pass, and by the model's modules
def test_log_probabilities_of_a_prompt_come_with_its_chunks(tiny_model: Make, form: str) -> None:
    """A long prompt is scored piece by piece beside others, and never in a pass of its own."""
    model = tiny_model(eos_token_id=None, max_position_embeddings=300)
    scored = GenerationOptions(max_new_tokens=2, temperature=0.0, prompt_logprobs=True, top_logprobs=3)
    plain = GenerationOptions(max_new_tokens=30, temperature=0.0)
    engine = Engine(model, 5, prefill_chunk=16, cache=form, prefix_cache_bytes=10**7)
    whole = model.model.forward
    other = engine.add_request(LONG[100:130], plain)
    while not other.new_ids:
        engine.step()
    engine.add_request(LONG, plain)  # its prefix is cached, but a request that scores the prompt cannot use it
    requests = [engine.add_request(LONG, options) for options in (scored, scored, plain)]
    requests.append(engine.add_request(LONG[:1], scored))
    longest, lengths = 0, list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model, "forward", lambda *a, **o: (lengths.append(a[0].shape[1]), whole(*a, **o))[1])
        while engine.has_unfinished_requests():
            before = engine.num_prefilled_tokens
            engine.step()
            longest = max(longest, engine.num_prefilled_tokens - before)
    assert longest <= 16 and max(lengths, default=0) <= 16
    assert other.new_ids == alone(model, LONG[100:130], plain) or form == "int8"
    logprobs = model(torch.tensor([LONG])).logits[0].log_softmax(-1)
    own = logprobs[range(249), LONG[1:]].tolist()
    for request in requests[:2]:
        assert request.prompt_logprobs[0] is None and request.prompt_top_logprobs[0] == []
        assert request.prompt_logprobs[1:] == pytest.approx(own, abs=1e-5 if form == "full" else 0.1)
        tops = [value for row in request.prompt_top_logprobs[1:] for _, value in row]
        assert len(tops) == 3 * 249
        assert tops == pytest.approx(
            logprobs[:-1].topk(3).values.flatten().tolist(), abs=1e-5 if form == "full" else 0.1
        )
    assert requests[0].num_cached_tokens == 0 and requests[1].num_cached_tokens == 250  # one prefill for both
    assert requests[2].prompt_logprobs == [] and requests[3].prompt_logprobs == [None]


@pytest.mark.parametrize("form", ["full", "int8"])
def test_a_prompt_that_is_prefilled_at_once_is_scored_in_the_same_pass(tiny_model: Make, form: str) -> None:
    model, lengths = tiny_model(eos_token_id=None, max_position_embeddings=300), list[int]()
    scored = GenerationOptions(max_new_tokens=1, temperature=0.0, prompt_logprobs=True)
    whole = model.model.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model, "forward", lambda *a, **o: (lengths.append(a[0].shape[1]), whole(*a, **o))[1])
        sequences = Engine(model, 2, prefill_chunk=16, cache=form).prefill([LONG[:40], LONG[9:30]], [scored] * 2)
    assert max(lengths, default=0) <= 16 and sum(lengths) <= 61  # none where the CPU decoder runs the model
    for sequence in sequences:
        logprobs = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        own = logprobs[range(len(sequence.prompt)), sequence.ids[1:]].tolist()
        assert sequence.prompt_logprobs[1:] == pytest.approx(own[:-1], abs=1e-5 if form == "full" else 0.1)


def test_a_pass_that_is_repeated_scores_a_prompt_once(model: LlamaForCausalLM) -> None:
    scored = GenerationOptions(max_new_tokens=1, temperature=0.0, prompt_logprobs=True)
    engine = Engine(model, 1, prefill_chunk=16)
    (own,) = engine.prefill([LONG[:40]], [scored])
    sequence = engine.add_request(LONG[:40], scored)
    engine.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.prefixes, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    finish(engine)
    assert sequence.prompt_logprobs[1:] == pytest.approx(own.prompt_logprobs[1:], abs=1e-5)
