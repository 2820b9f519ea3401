"""Requests of the scheduler that share the keys and values of a common prefix."""

from __future__ import annotations

import asyncio

import pytest

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from bpe_llama.model.server.scheduler import Scheduler
from tests.server.scheduling import GREEDY, SYSTEM, read, served, text
from tests.small_models import small_config


def test_choices_share_one_prefill(generator: TextGenerator) -> None:
    prompt = SYSTEM[:70]

    async def body(scheduler: Scheduler) -> None:
        options = {"max_new_tokens": 9, "temperature": 1.0, "seed": 4}
        choices = await read(scheduler, prompt, n=5, prompt_logprobs=True, logprobs=True, top_logprobs=2, **options)
        assert [text(updates) for updates in choices] == generator.generate(prompt, n=5, **options)
        assert scheduler.stats()["prefilled_tokens"] == 70
        assert all(len(updates[0].prompt_logprobs) == 70 and not updates[1].prompt_logprobs for updates in choices)
        assert all(len(update.logprobs) == len(update.top_logprobs) == 1 for update in choices[2])
        assert {update.num_cached_tokens for update in choices[0]} == {0}
        assert await read(scheduler, prompt, **GREEDY) == await read(scheduler, prompt, **GREEDY)
        assert scheduler.stats()["prefilled_tokens"] == 3 * 70

    served(generator, body, slots=8, prefill_chunk=16, prefix_cache_bytes=0)


def test_a_shared_system_prompt_is_prefilled_once(generator: TextGenerator) -> None:
    prompts = [SYSTEM + f"{number:02} question" for number in range(32)]

    async def body(scheduler: Scheduler) -> None:
        loner = asyncio.create_task(read(scheduler, "someone else", key="other", **GREEDY))
        found = await asyncio.gather(*(read(scheduler, prompt, **GREEDY) for prompt in prompts))
        expected = generator.generate_batch(prompts, **GREEDY)
        assert [text(updates) for (updates,) in found] == expected
        shared = len(SYSTEM) // 32 * 32
        assert scheduler.stats()["prefilled_tokens"] == shared + 32 * (len(prompts[0]) - shared) + len("someone else")
        assert sorted(updates[0].num_cached_tokens for (updates,) in found) == [0] + [shared] * 31
        await loner

    served(generator, body, slots=32, prefill_chunk=40)


@pytest.mark.parametrize("share_prefixes", [False, True])
def test_prefixes_are_shared_within_a_key(generator: TextGenerator, share_prefixes: bool) -> None:
    async def body(scheduler: Scheduler) -> None:
        async def cached(prompt: str, key: str) -> int:
            ((first, *_),) = await read(scheduler, prompt, key=key, **GREEDY)
            return first.num_cached_tokens

        prompt = SYSTEM[:96]
        assert await cached(prompt, "alice") == 0
        assert await cached(prompt, "alice") == 95  # one id must be fed to have logits
        assert await cached(prompt + "more", "alice") == 96
        assert await cached(prompt, "bob") == (95 if share_prefixes else 0)
        together = await asyncio.gather(*(read(scheduler, "x" * 64, key=key, **GREEDY) for key in "abc"))
        cached_tokens = sorted(updates[0].num_cached_tokens for (updates,) in together)
        assert all(tokens >= 63 for tokens in cached_tokens[1:]) if share_prefixes else cached_tokens == [0, 0, 0]

    served(generator, body, share_prefixes=share_prefixes)


def test_the_next_turn_of_a_chat_finds_the_answer_cached(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        prompt = list(range(40))
        (updates,) = await read(scheduler, prompt, **GREEDY | {"max_new_tokens": 60})
        turn = [*prompt, *(new_id for update in updates for new_id in update.new_ids), *range(7)]
        ((first, *_),) = await read(scheduler, turn, **GREEDY)
        assert first.num_cached_tokens == 96  # of 99 fed tokens

    served(generator, body)


def test_the_prefix_cache_stays_within_its_bytes(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        prompts = [letter * 40 + SYSTEM for letter in "abcdef"] * 2
        for prompt in prompts:
            (updates,) = await read(scheduler, prompt, **GREEDY)
            assert text(updates) == generator.generate(prompt, **GREEDY)
            assert scheduler.stats()["cache_bytes"] <= scheduler.stats()["max_cache_bytes"] == 200_000
        assert scheduler.stats()["cache_bytes"] > 150_000

    served(generator, body, prefix_cache_bytes=200_000)


@pytest.mark.parametrize("cache", ["int8", "ring"])
def test_other_forms_of_cache(cache: str) -> None:
    config = small_config(vocab_size=256, max_position_embeddings=1024, eos_token_id=None, sliding_window=24)
    tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)})
    windowed = TextGenerator(LlamaForCausalLM(config, seed=3).eval(), tokenizer)
    if cache == "ring":
        with pytest.raises(ValueError, match="model 'm': a sliding-window cache overwrites the first tokens"):
            Scheduler({"m": windowed}, cache=cache)

    async def body(scheduler: Scheduler) -> None:
        prompts = [SYSTEM + letter for letter in "aabc"]
        found = await asyncio.gather(*(read(scheduler, prompt, n=2, **GREEDY) for prompt in prompts))
        if cache == "ring":
            assert [text(one) for one, _ in found] == [windowed.generate(prompt, **GREEDY) for prompt in prompts]
        assert scheduler.stats()["cached_prompt_tokens"] >= 4 * len(prompts[0])

    served(windowed, body, cache=cache, prefix_cache_bytes=0 if cache == "ring" else 10**6, prefill_chunk=32)
