"""Continuous batching: requests, chunks of prompts, the prefix cache and interruptions, against naive generation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence
from tests.model.generation.naive import alone, finish

Make = Callable[..., LlamaForCausalLM]


def test_sequences_of_other_options_keep_them_in_one_batch(model: LlamaForCausalLM) -> None:
    each = [GenerationOptions(max_new_tokens=5, allowed_ids=[i], banned_ids=[9]) for i in (3, 4, 3)]
    engine = Engine(model, slots=3)
    sequences = engine.prefill([[1, 2], [5], [6, 7]], each)
    finish(engine)
    assert [sequence.new_ids for sequence in sequences] == [[3] * 5, [4] * 5, [3] * 5]


@pytest.mark.parametrize("chunk", [1, 3, 20, 64])
def test_prefill_in_chunks_changes_nothing(model: LlamaForCausalLM, ids: Tensor, chunk: int) -> None:
    prompts = [ids[0].tolist(), ids[1, :2].tolist(), ids[2, :11].tolist()]
    options = GenerationOptions(max_new_tokens=8, temperature=0.9, seed=2)
    engine = Engine(model, 3, prefill_chunk=chunk)
    sequences = engine.prefill(prompts, [options] * 3)
    finish(engine)
    assert [sequence.new_ids for sequence in sequences] == [alone(model, prompt, options) for prompt in prompts]


def test_requests_enter_and_leave_a_running_batch(model: LlamaForCausalLM, ids: Tensor) -> None:
    rows = ids.flatten().tolist()
    requests = [
        (rows[i : i + 3 + i % 5], GenerationOptions(max_new_tokens=3 + 7 * i % 11, temperature=i % 2 * 0.7, seed=i))
        for i in range(12)
    ]
    engine, waiting, sequences = Engine(model, slots=4), list(requests), []
    while waiting or engine.running:
        for _ in range(min(2, 4 - len(engine.running), len(waiting))):
            prompt, options = waiting.pop(0)
            sequences += engine.prefill([prompt], [options])
        engine.step()
    for sequence, (prompt, options) in zip(sequences, requests, strict=True):
        assert sequence.new_ids == alone(model, prompt, options)
        assert sequence.finish_reason == "length"
    assert engine.cache.lengths == [0] * 4


def test_waiting_requests_take_free_slots_in_order(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = [GenerationOptions(max_new_tokens=2 + row, temperature=0.0) for row in range(5)]
    engine = Engine(model, slots=2)
    prompts = [ids[row % 3, : 4 + row].tolist() for row in range(5)]
    sequences = [engine.add_request(*request) for request in zip(prompts, options, strict=True)]
    assert (engine.running, engine.waiting) == ([], sequences)
    engine.step()
    assert (engine.running, engine.waiting) == (sequences[:2], sequences[2:])
    engine.abort(sequences[3])
    finish(engine)
    assert (sequences.pop(3).new_ids, engine.waiting) == ([], [])
    for sequence in sequences:
        assert sequence.new_ids == alone(model, sequence.prompt, sequence.options)


def test_a_request_can_be_cut_short(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = GenerationOptions(max_new_tokens=9, temperature=0.0)
    engine = Engine(model, slots=2)
    first, second = engine.prefill([ids[0].tolist(), ids[1, :4].tolist()], [options] * 2)
    engine.abort(first)
    finish(engine)
    assert (first.finish_reason, len(first.new_ids)) == ("stop", 1)
    assert second.new_ids == alone(model, ids[1, :4].tolist(), options)


def test_log_probabilities_are_the_models_own(model: LlamaForCausalLM, ids: Tensor) -> None:
    engine = Engine(model, 2)
    options = GenerationOptions(max_new_tokens=6, temperature=0.5, top_k=3, logprobs=True)
    prompts = [ids[0].tolist(), ids[1, :5].tolist()]
    sequences = engine.prefill(prompts, [options, replace(options, logprobs=False)])
    finish(engine)
    whole = torch.tensor([sequences[0].ids])
    logprobs = model(whole).logits[0, 19:-1].log_softmax(-1).gather(1, whole[0, 20:, None]).flatten()
    assert sequences[0].logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)
    assert sequences[1].logprobs == []


@pytest.mark.parametrize("form", ["full", "int8"])
def test_a_model_that_generated_in_inference_mode_can_be_trained(tiny_model: Make, ids: Tensor, form: str) -> None:
    model = tiny_model(eos_token_id=None, attention_bias=True)
    engine, options = Engine(model, 1, 30, cache=form), GenerationOptions(max_new_tokens=3)
    with torch.inference_mode():
        created_inside = Engine(model, 1, 10, cache=form)
        for either in (engine, created_inside):
            either.prefill([[5, 6, 7]], [options])
            either.reserve(40)
    for either in (engine, created_inside):
        finish(either)
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(weight.grad is not None and not weight.is_inference() for weight in model.parameters())


def test_a_model_made_in_inference_mode_is_like_any_other(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    with torch.inference_mode():
        built = tiny_model(eos_token_id=None)
        built.save_pretrained(tmp_path)
        loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    expected = alone(tiny_model(eos_token_id=None), ids[0].tolist(), options)
    for model in (built, loaded):
        engine = Engine(model, 1)
        (sequence,) = engine.prefill([ids[0].tolist()], [options])
        finish(engine)
        assert sequence.new_ids == expected
        with torch.enable_grad():
            model(ids, labels=ids).loss.backward()
        assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("copies", [1, 2])
def test_failed_prompts_leave_no_prefix_cache(
    model: LlamaForCausalLM, ids: Tensor, monkeypatch: pytest.MonkeyPatch, slots: int, copies: int
) -> None:
    options = GenerationOptions(max_new_tokens=4, temperature=0.0)
    engine = Engine(model, slots * copies, prefill_chunk=4)
    prompt = ids[0].tolist()

    def run() -> None:
        (sequence,) = engine.prefill([prompt], [options])
        finish(engine)
        assert sequence.new_ids == alone(model, prompt, options)

    run()
    with pytest.raises(ValueError, match="input id 97"):  # in the last chunk: what the slot held is overwritten by then
        engine.prefill([[prompt[0], *ids[1, :-2].tolist(), 97]] * slots, [options] * slots, copies)
    assert not engine.running and not any(engine.cache.lengths)
    run()

    def interrupted(*_: object) -> list[int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bpe_llama.model.generation.engine.sample_next_ids", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.prefill([ids[1].tolist()] * slots, [options] * slots, copies)
    assert not engine.running and not any(engine.cache.lengths)
    run()


def test_a_failed_prompt_leaves_other_sequences_running(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    engine = Engine(model, 3)
    (sequence,) = engine.prefill([ids[0].tolist()], [options])
    with pytest.raises(ValueError, match="input id 97"):
        engine.prefill([ids[1].tolist(), [97]], [options] * 2)
    finish(engine)
    assert sequence.new_ids == alone(model, ids[0].tolist(), options)


def test_a_common_prefix_is_not_computed_again(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = GenerationOptions(max_new_tokens=5, temperature=0.7, seed=1)
    engine = Engine(model, slots=2)

    def run(prompt: list[int]) -> int:
        (sequence,) = engine.prefill([prompt], [options])
        finish(engine)
        assert sequence.new_ids == alone(model, prompt, options)
        return sequence.num_cached_tokens

    first = ids[0].tolist()
    assert run(first) == 0
    turn = first + alone(model, first, options) + [9, 8]
    assert run(turn) == 24  # the prompt and four of five new ids: the last was never fed
    assert run(turn) == len(turn) - 1  # one id must be fed to have logits
    assert run([*first[:6], 3, 4]) == 6
    assert run(ids[1].tolist()) == 0


def test_the_prefix_cache_moves_with_its_slot(model: LlamaForCausalLM, ids: Tensor) -> None:
    short, long = (GenerationOptions(max_new_tokens=n, temperature=0.0) for n in (2, 6))
    engine = Engine(model, slots=2)
    engine.prefill([ids[0].tolist(), ids[1].tolist()], [short, long])  # the second takes the first's slot
    while len(engine.running) == 2:
        engine.step()
    (sequence,) = engine.prefill([ids[1].tolist()], [long])
    assert sequence.num_cached_tokens == 19
    finish(engine)
    assert sequence.new_ids == alone(model, ids[1].tolist(), long)


@pytest.mark.parametrize("form", ["full", "int8"])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_prompts_are_prefilled_beside_decoding_sequences(
    model: LlamaForCausalLM, ids: Tensor, form: str, chunk: int
) -> None:
    rows = ids.flatten().tolist()
    requests = [
        (
            rows[i : i + 1 + 5 * i % 11],
            GenerationOptions(max_new_tokens=3 + 7 * i % 11, temperature=i % 2 * 0.7, seed=i),
        )
        for i in range(12)
    ]
    engine, waiting, sequences, most = Engine(model, 4, prefill_chunk=chunk, cache=form), list(requests), [], 0
    while waiting or engine.running:
        fits = waiting[: 4 - len(engine.running)][:3]
        del waiting[: len(fits)]
        sequences += [engine.add_request(prompt, options) for prompt, options in fits]
        before = [(s, len(s.new_ids), s.num_prompt_tokens_left) for s in [*engine.running, *engine.waiting]]
        grown = engine.step()
        most = max(most, sum(unread - s.num_prompt_tokens_left for s, _, unread in before))
        assert grown == [s for s, _, _ in before if not s.num_prompt_tokens_left]
        assert all(len(s.new_ids) == new + (not s.num_prompt_tokens_left) for s, new, _ in before)
    assert most <= chunk + 3
    for sequence, (prompt, options) in zip(sequences, requests, strict=True):
        expected = alone(model, prompt, options)
        assert sequence.finish_reason == "length" and len(sequence.new_ids) == len(expected)
        assert form == "int8" or sequence.new_ids == expected  # rounded: ids may differ
        assert sequence.prefill_seconds > 0 and (len(expected) == 1 or sequence.decode_seconds > 0)


@pytest.mark.parametrize("form", ["full", "int8", "ring"])
def test_logits_of_unequal_prompts_outlive_each_others_passes(tiny_model: Make, ids: Tensor, form: str) -> None:
    model = tiny_model(eos_token_id=None, sliding_window=12)
    prompts = [row[:length] for row, length in zip(ids.repeat(3, 1).tolist(), (1, 6, 1, 13, 1, 2, 2, 4), strict=False)]
    options = [GenerationOptions(max_new_tokens=4 + 3 * row % 7, temperature=0.0) for row in range(len(prompts))]

    def run(engine: Engine, at_once: int) -> list[list[int]]:
        found: list[Sequence] = []
        for start in range(0, len(prompts), at_once):
            found += map(engine.add_request, prompts[start : start + at_once], options[start : start + at_once])
            finish(engine)
        return [sequence.new_ids for sequence in found]

    alone = run(Engine(model, 1, prefill_chunk=4, cache=form), 1)
    assert run(Engine(model, len(prompts), prefill_chunk=4, cache=form), len(prompts)) == alone


class Interruption:
    """Ctrl-C when the engine reaches its n-th line, counted over all that runs inside."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, argument: object) -> Interruption | None:
        if not frame.f_code.co_filename.endswith("engine.py"):
            return None
        self.left -= event == "line"
        if event == "line" and self.left == 0:
            raise KeyboardInterrupt
        return self

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)


@pytest.mark.parametrize("form", ["full", "ring"])
def test_an_interruption_anywhere_loses_and_repeats_nothing(tiny_model: Make, ids: Tensor, form: str) -> None:
    model = tiny_model(eos_token_id=None, sliding_window=12, num_hidden_layers=1)
    rows = ids.tolist()
    options = [GenerationOptions(max_new_tokens=count, temperature=0.7, logprobs=True) for count in (2, 4, 3, 1)]

    def run(line: int) -> tuple[list[list[int]], list[list[float]], int]:
        interruption = Interruption(line)
        engine = Engine(model, 3, prefill_chunk=7, cache=form)

        def until_done(what: Callable[[], Any]) -> Any:
            while True:
                try:
                    with interruption:
                        return what()
                except KeyboardInterrupt:
                    assert interruption.left == 0

        sequences = until_done(lambda: engine.prefill([rows[0][:9]], options[:1]))
        sequences += [engine.add_request(row, chosen) for row, chosen in zip(rows[1:], options[1:3], strict=True)]
        until_done(engine.step)
        until_done(lambda: sequences[1].finish_reason or engine.abort(sequences[1]))
        while engine.running:
            until_done(engine.step)
        sequences += until_done(lambda: engine.prefill([rows[2][:7]], options[3:]))
        return [s.new_ids for s in sequences], [s.logprobs for s in sequences], -interruption.left

    expected, logprobs, lines = run(0)
    assert [len(new_ids) for new_ids in expected] == [2, 0, 3, 1]
    for line in range(1 if form == "full" else 12, lines + 1, 23):
        found = run(line)
        assert found[0] == expected, line
        # To rounding: another step may find a sequence in another slot.
        assert [pytest.approx(row, abs=1e-5) for row in found[1]] == logprobs, line


@pytest.mark.parametrize("form", ["full", "int8"])
def test_an_interrupted_step_can_be_repeated(
    model: LlamaForCausalLM, ids: Tensor, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)

    def run(interrupted: bool) -> list[list[int]]:
        engine = Engine(model, 3, prefill_chunk=5, cache=form)
        sequences = engine.prefill([ids[0].tolist()], [options])
        sequences += [engine.add_request(row.tolist(), options) for row in ids[1:]]
        while engine.has_unfinished_requests():
            with monkeypatch.context() as patch:
                patch.setattr("bpe_llama.model.generation.engine.sample_next_ids", stop)
                if interrupted:
                    with pytest.raises(KeyboardInterrupt):
                        engine.step()
            engine.step()
        return [sequence.new_ids for sequence in sequences]

    def stop(*_: object) -> list[int]:
        raise KeyboardInterrupt

    assert run(interrupted=True) == run(interrupted=False)


def test_an_aborted_prefill_disturbs_no_other_sequence(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    engine = Engine(model, 3, prefill_chunk=4)
    first, second, third = (engine.add_request(row.tolist(), options) for row in ids)
    engine.step()
    engine.abort(first)  # the last takes its slot, prefilled in part
    finish(engine)
    assert (first.finish_reason, first.new_ids) == ("stop", [])
    assert [s.new_ids for s in (second, third)] == [alone(model, s.prompt, options) for s in (second, third)]
    with pytest.raises(ValueError, match="the prompt has input id 97, outside the vocabulary of 97"):
        engine.add_request([6, 97], options)
    assert not engine.has_unfinished_requests() and engine.step() == []
