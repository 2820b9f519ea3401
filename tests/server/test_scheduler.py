"""The engine thread under many requests, against the unserved model: joins, cancels, deadlines, errors, prefixes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama.model import TextGenerator
from bpe_llama.model.adapters import lora
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.server.scheduler import EngineError, QueueFullError, Scheduler, ShuttingDownError, Stream, Update
from tests.server.scheduling import GREEDY, SYSTEM, read, served, serving, text


def test_answers_do_not_depend_on_who_joins_and_leaves(generator: TextGenerator) -> None:
    chance = random.Random(5)
    requests: list[tuple[str, dict[str, Any], int | None]] = []
    for seed in range(64):
        prompt = SYSTEM[: chance.choice([0, 40, 99])] + "".join(chance.choices("abc ", k=chance.randint(1, 60)))
        options = {"max_new_tokens": chance.randint(1, 30), "temperature": chance.choice([0.0, 0.9]), "seed": seed}
        options["stop"] = chance.choice([(), "a", ["zz", "Q"]])
        requests.append((prompt, options, chance.choice([None, None, 1, 5])))

    async def body(scheduler: Scheduler) -> None:
        async def one(prompt: str, options: dict[str, Any], leaves_after: int | None) -> str:
            await asyncio.sleep(chance.random() / 4)
            parts = []
            updates = scheduler.generate("m", prompt, **options, key=prompt[:1])
            async for update in updates:
                parts.append(update.text)
                if leaves_after is not None and len(parts) == leaves_after and update.finish_reason is None:
                    await updates.aclose()  # type: ignore[attr-defined]
                    break
            return "".join(parts)

        found = await asyncio.gather(*(one(*request) for request in requests))
        for (prompt, options, leaves_after), answer in zip(requests, found, strict=True):
            expected = generator.generate(prompt, **options)
            assert expected.startswith(answer) if leaves_after else answer == expected
        await scheduler.run(lambda: None)  # after the last abort
        figures = scheduler.stats()
        assert figures["running"] == figures["waiting"] == figures["unfinished"] == 0
        assert figures["finished_choices"] + figures["aborted_choices"] == 64 and figures["aborted_choices"] > 4
        assert figures["cached_prompt_tokens"] > 300

    served(generator, body, slots=5, prefill_chunk=32)


def test_sizes_out_of_range_are_named(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match=r"generators is \{\}; expected at least one model"):
        Scheduler({})
    for seconds in (-1, 0, float("nan")):
        with pytest.raises(ValueError, match=f"compile_seconds is {seconds}.*; expected above 0"):
            Scheduler({"m": generator}, compile_seconds=seconds)
    with pytest.raises(TypeError, match="compile_seconds must be a number, got '5'"):
        Scheduler({"m": generator}, compile_seconds="5")  # type: ignore[arg-type]
    for options in ({"slots": 0}, {"slots": 10**400}, {"max_queue": -1}, {"prefix_cache_bytes": 10**400}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is -?[0-9.]+; expected"):
            Scheduler({"small": generator}, **options)


def test_requests_and_the_end_need_no_further_thread(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(scheduler: Scheduler) -> None:
        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            [updates] = await read(scheduler, "abc", **GREEDY)
            await scheduler.shutdown()
        assert text(updates) == generator.generate("abc", **GREEDY)

    served(generator, body)


def test_a_cancelled_task_ends_its_request(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        task = asyncio.create_task(read(scheduler, "abc", max_new_tokens=900, logits_processor=slow))
        while not scheduler.stats()["generated_tokens"]:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await scheduler.run(lambda: None)
        assert scheduler.stats()["unfinished"] == 0 and scheduler.stats()["aborted_choices"] == 1

    served(generator, body)


def test_a_full_queue_refuses(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        options = {"max_new_tokens": 900, "logits_processor": slow}
        streams = [await scheduler.submit("m", "abc", **options) for _ in range(4)]
        with pytest.raises(QueueFullError, match=r"the queue is full; retry after \d+ s") as refused:
            await scheduler.submit("m", "abc")
        assert 1 <= refused.value.retry_after <= 60
        with pytest.raises(QueueFullError):
            await read(scheduler, "abc", n=2)
        streams[0].abort()
        streams[0].abort()
        await scheduler.run(lambda: None)
        streams.append(await scheduler.submit("m", "abc"))
        for stream in streams:
            await stream.aclose()

    served(generator, body, slots=2, max_queue=2)


def test_bad_requests_are_refused_before_they_wait(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        for prompt, options, message in [
            ("abc", {"temperature": -1.0}, "temperature must be finite and at least 0"),
            ("", {}, "the prompt is empty"),
            ("a" * 1024, {}, "1024 ids, which leaves no room in a context of 1024"),
            ([3, 256], {}, "id 256, outside the vocabulary of 256"),
            ("abc", {"n": 0}, "n is 0; expected 1 to 272"),
            ("abc", {"timeout": 0}, "timeout is 0; expected above 0"),
        ]:
            with pytest.raises(ValueError, match=message):
                await read(scheduler, prompt, **options)  # type: ignore[arg-type]
        for options, message in (
            ({"n": "2"}, "n must be an int, got '2'"),
            ({"n": 1.5}, r"n must be an int, got 1\.5"),
            ({"timeout": "x"}, "timeout must be a number, got 'x'"),
        ):
            with pytest.raises(TypeError, match=message):
                await scheduler.submit("m", "abc", **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="holds 'x' at index 0"):
            await read(scheduler, ["x"])  # type: ignore[list-item]
        with pytest.raises(KeyError, match="other"):
            await scheduler.submit("other", "abc")
        assert scheduler.stats()["unfinished"] == scheduler.stats()["steps"] == 0

    served(generator, body)


def slow(ids: Tensor, scores: Tensor) -> Tensor:
    time.sleep(0.01)
    return scores


def test_deadlines(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        long = GREEDY | {"max_new_tokens": 400}
        running = asyncio.create_task(read(scheduler, "abc", timeout=3, logits_processor=slow, **long))
        while not scheduler.stats()["generated_tokens"]:
            await asyncio.sleep(0.01)
        (waited,) = await read(scheduler, "def", timeout=0.1, **long)
        assert [(update.finish_reason, update.new_ids) for update in waited] == [("timeout", [])]
        (updates,) = await running
        assert updates[-1].finish_reason == "timeout"
        assert 0 < sum(len(update.new_ids) for update in updates) < 400
        assert generator.generate("abc", **long).startswith(text(updates).rstrip("\ufffd"))
        assert scheduler.stats()["timed_out_choices"] == 2 and scheduler.stats()["unfinished"] == 0

    served(generator, body, slots=1)


def test_an_error_ends_its_request_alone(generator: TextGenerator) -> None:
    def raises(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] > 8:
            raise LookupError("no grammar")
        return scores

    def not_a_number(ids: Tensor, scores: Tensor) -> Tensor:
        return scores * torch.nan if ids.shape[1] > 6 else scores

    async def body(scheduler: Scheduler) -> None:
        good = [asyncio.create_task(read(scheduler, f"good {i}", **GREEDY)) for i in range(4)]
        with pytest.raises(LookupError, match="no grammar"):
            await read(scheduler, "abc", logits_processor=raises, n=2, **GREEDY)
        with pytest.raises(ValueError, match="NaN"):
            await read(scheduler, "abc", logits_processor=not_a_number, **GREEDY)
        for number, task in enumerate(good):
            assert text((await task)[0]) == generator.generate(f"good {number}", **GREEDY)
        assert scheduler.stats()["failed_choices"] == 3 and scheduler.stats()["unfinished"] == 0
        assert scheduler.stats()["engine_errors"] == 0

    served(generator, body, slots=8)


class RustPanic(BaseException):
    """As PyO3's, no Exception."""


@pytest.mark.parametrize("kind", [MemoryError, RustPanic])
def test_a_failing_engine_ends_what_runs_and_goes_on(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    step, calls, submitted = Engine.step, [], threading.Event()

    def failing(engine: Engine) -> Any:
        assert submitted.wait(30)
        calls.append(len(engine.running))
        if len(calls) == 3:
            raise kind("out of memory")
        return step(engine)

    monkeypatch.setattr(Engine, "step", failing)

    async def body(scheduler: Scheduler) -> None:
        first = [await scheduler.submit("m", f"run {i}", **GREEDY) for i in range(3)]  # the third waits
        submitted.set()
        errors = 0
        for number, stream in enumerate(first):
            try:
                assert "".join([u.text async for u in stream]) == generator.generate(f"run {number}", **GREEDY)
            except EngineError as error:
                assert isinstance(error.__cause__, kind)
                errors += 1
        assert errors == calls[2] == 2
        assert text((await read(scheduler, "again", **GREEDY))[0]) == generator.generate("again", **GREEDY)
        assert scheduler.stats()["engine_errors"] == 1 and scheduler.stats()["unfinished"] == 0

    served(generator, body, slots=2)


def test_slots_grow_with_their_sequences(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        small = scheduler.stats()["slot_bytes"]
        answers = [read(scheduler, "abc", **GREEDY | {"max_new_tokens": 900}), read(scheduler, "b" * 700, **GREEDY)]
        (long,), (short,) = await asyncio.gather(*answers)
        assert text(long) == generator.generate("abc", **GREEDY | {"max_new_tokens": 900})
        assert text(short) == generator.generate("b" * 700, **GREEDY)
        assert scheduler.stats()["slot_bytes"] == 2 * small

    served(generator, body, slots=2)
    with pytest.raises(ValueError, match="model 'm': max_length is 2000; expected 1 to the model's context of 1024"):
        Scheduler({"m": generator}, max_length=2000)


def test_slots_grow_with_what_a_grammar_forces(generator: TextGenerator) -> None:
    pytest.importorskip("llguidance", reason="needs bpe_llama[structured]")
    forced = "quick brown fox " * 45

    async def body(scheduler: Scheduler) -> None:
        [updates] = await read(scheduler, "abc", choice=[forced], max_new_tokens=900)
        assert (text(updates), updates[-1].finish_reason) == (forced, "stop")

    served(generator, body, slots=2)


def test_functions_run_between_steps(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        assert await scheduler.run(threading.current_thread) is not threading.current_thread()
        with pytest.raises(ZeroDivisionError):
            await scheduler.run(lambda: 1 / 0)
        ran: list[int] = []
        began, go = threading.Event(), threading.Event()

        async def run(number: int) -> None:
            await scheduler.run(lambda: (began.set(), go.wait(30), ran.append(number)))

        waiting = [asyncio.ensure_future(run(0))]
        await asyncio.to_thread(began.wait, 30)
        waiting += [asyncio.ensure_future(run(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):  # one runs, three wait
            await scheduler.run(lambda: None)
        waiting[2].cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert ran == [0, 1, 3]  # nobody waited for the other

    served(generator, body, max_queue=2)


def test_shutdown_finishes_what_it_can(generator: TextGenerator) -> None:
    async def main(grace: float, new_tokens: int) -> list[list[Update] | BaseException]:
        async with serving(generator, slots=2) as scheduler:
            options = GREEDY | {"logits_processor": slow, "max_new_tokens": new_tokens}
            streams = [await scheduler.submit("m", f"run {number}", **options) for number in range(3)]

            async def one(stream: Stream) -> list[Update]:
                return [update async for update in stream]

            while (now := scheduler.stats())["unfinished"] == 3 and (now["running"] < 2 or not now["generated_tokens"]):
                await asyncio.sleep(0.01)
            await scheduler.shutdown(grace)
            with pytest.raises(ShuttingDownError):
                await scheduler.submit("m", "abc")
            with pytest.raises(ShuttingDownError):
                await scheduler.run(lambda: None)
            return await asyncio.gather(*map(one, streams), return_exceptions=True)

    finished = asyncio.run(main(30.0, 12))
    assert [text(updates) for updates in finished if isinstance(updates, list)] == [
        generator.generate(f"run {number}", **GREEDY) for number in range(3)
    ]
    *cut, waiting = asyncio.run(main(0.0, 900))
    assert all(isinstance(updates, list) and updates[-1].finish_reason == "timeout" for updates in cut)
    assert isinstance(waiting, ShuttingDownError)


def test_a_shutdown_ends_a_prefill_by_an_error(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (time.sleep(0.02), step(engine))[1])

    async def body(scheduler: Scheduler) -> None:
        stream = await scheduler.submit("m", "a" * 900, prompt_logprobs=True, **GREEDY)
        while not scheduler.stats()["prefilled_tokens"]:
            await asyncio.sleep(0.01)
        await scheduler.shutdown(0)
        with pytest.raises(ShuttingDownError):
            await anext(stream)

    served(generator, body, prefill_chunk=8)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system does not tell a thread's time")
def test_an_idle_thread_costs_no_time(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        await read(scheduler, "abc", **GREEDY)
        clock = time.pthread_getcpuclockid(await scheduler.run(threading.get_ident))
        before = time.clock_gettime(clock)
        await asyncio.sleep(0.3)
        assert time.clock_gettime(clock) - before < 0.1
        await scheduler.run(lambda: None)

    served(generator, body)


def test_adapters_are_models_over_shared_weights(generator: TextGenerator) -> None:
    torch.manual_seed(0)
    adapted = lora.add(lora.copy_sharing_weights(generator.model), rank=2, seed=1)
    for name, weight in adapted.named_parameters():
        if name.endswith("lora_B"):
            weight.data.normal_()
    both = {"m": generator, "adapted": TextGenerator(adapted.eval(), generator.tokenizer)}
    expected = {name: each.generate(SYSTEM, **GREEDY) for name, each in both.items()}
    assert expected["m"] != expected["adapted"]

    async def main() -> None:
        scheduler = Scheduler(both, slots=4)
        scheduler.start()

        async def answer(name: str) -> str:
            return "".join([update.text async for update in scheduler.generate(name, SYSTEM, **GREEDY)])

        names = ["m", "adapted"] * 6
        assert await asyncio.gather(*map(answer, names)) == [expected[name] for name in names]
        assert scheduler.stats()["prefilled_tokens"] < 2 * len(SYSTEM) + 8 * 4
        await scheduler.shutdown(0)

    asyncio.run(main())


def test_a_shutdown_in_a_hurry_does_not_wait(generator: TextGenerator) -> None:
    async def body(scheduler: Scheduler) -> None:
        options = GREEDY | {"logits_processor": slow, "max_new_tokens": 900}
        stream = await scheduler.submit("m", "abc", **options)
        await anext(stream)
        ending = asyncio.ensure_future(scheduler.shutdown(60))
        await asyncio.sleep(0.05)
        assert not ending.done()
        scheduler.hurry()
        await asyncio.wait_for(ending, 30)
        assert [update async for update in stream][-1].finish_reason == "timeout"

    served(generator, body)


def test_requests_of_a_closed_event_loop_end(generator: TextGenerator) -> None:
    scheduler = Scheduler({"m": generator})
    scheduler.start()

    async def leave() -> None:
        await scheduler.submit("m", "abc", max_new_tokens=900, logits_processor=slow)

    async def stay() -> list[list[Update]]:
        found = await read(scheduler, "abc", **GREEDY)
        for _ in range(1000):
            if not scheduler.stats()["unfinished"]:
                break
            await asyncio.sleep(0.02)
        assert scheduler.stats()["unfinished"] == 0 and scheduler.stats()["aborted_choices"] == 1
        await scheduler.shutdown(0)
        return found

    asyncio.run(leave())
    assert text(asyncio.run(stay())[0]) == generator.generate("abc", **GREEDY)
