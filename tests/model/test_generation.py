"""Generation against naive generation: batches, padding, chunks, seeds, continuous batching, speculation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence, stream_ids
from bpe_llama.model.generation.sampler_dispatch import _sample_native, _sample_with_torch, sample_next_ids
from bpe_llama.model.generation.speculative import ModelDraft, PromptLookupDraft, generate_speculative

Make = Callable[..., LlamaForCausalLM]


def alone(model: LlamaForCausalLM, prompt: list[int], options: GenerationOptions) -> list[int]:
    """Return the naive continuation: the whole text scored anew for every id, no cache, no batch."""
    from bpe_llama.model.sampling import sample_logits

    ids: list[int] = []
    while len(ids) < options.max_new_tokens:
        history = torch.tensor([prompt + ids])
        logits = model(history).logits[:, -1]
        ids.append(
            int(sample_logits(logits, **options.sampler_options, history_BT=history, seed=options.seed, step=len(ids)))
        )
        if ids[-1] in model.config.eos_token_ids:
            break
    return ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_padded_batch_gives_what_each_prompt_gives_alone(tiny_model: Make, ids: Tensor, temperature: float) -> None:
    model = tiny_model(eos_token_id=[2, 7, 8, 9, 10])
    mask = torch.ones_like(ids)
    mask[1, :7], mask[2, :19] = 0, 0
    out = model.generate(ids, mask, max_new_tokens=25, temperature=temperature, seed=11)
    options = GenerationOptions(max_new_tokens=25, temperature=temperature, seed=11)
    expected = [alone(model, ids[row][mask[row] > 0].tolist(), options) for row in range(3)]
    width = max(map(len, expected))
    assert torch.equal(out[:, :20], ids)
    assert out[:, 20:].tolist() == [row + [0] * (width - len(row)) for row in expected]
    assert out.dtype == torch.int64


def test_the_seed_decides(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    first, second = (model.generate(ids, max_new_tokens=12, temperature=1.5, seed=1) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.generate(ids, max_new_tokens=12, temperature=1.5, seed=2))


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1, 2**64 + 5, -3])
def test_any_seed_is_taken_by_either_sampler(seed: int) -> None:
    logits = torch.randn(2, 97, generator=torch.Generator().manual_seed(1))
    sequences = [Sequence([1], GenerationOptions(temperature=1.5, top_p=1.0, seed=seed + row), ()) for row in range(2)]
    assert _sample_with_torch(sequences, logits) == _sample_native(sequences, logits)


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.4},
        {"logit_bias": {5: 4.0, 9: -3.0}, "presence_penalty": 0.5},
        {"banned_ids": range(0, 97, 2)},
        {"allowed_ids": [3, 8, 13]},
        {"preset": "llama_cpp", "min_p": 0.05, "temperature": 1.5},
        {"preset": "transformers", "top_k": 4},
    ],
    ids=str,
)
def test_everything_a_sampler_knows_reaches_the_draw(tiny_model: Make, ids: Tensor, options: dict[str, Any]) -> None:
    model = tiny_model(eos_token_id=None)
    plain = model.generate(ids[:2, :6], max_new_tokens=8, seed=3)
    out = model.generate(ids[:2, :6], max_new_tokens=8, seed=3, **options)
    assert not torch.equal(out, plain)
    chosen = GenerationOptions(max_new_tokens=8, seed=3, **options)
    assert out[:, 6:].tolist() == [alone(model, row.tolist(), chosen) for row in ids[:2, :6]]
    logits = torch.randn(2, 97, generator=torch.Generator().manual_seed(1))
    sequences = [Sequence([1, 5], replace(chosen, seed=row), ()) for row in range(2)]
    assert sample_next_ids(sequences, logits) == _sample_with_torch(sequences, logits)


def test_sequences_of_other_options_keep_them_in_one_batch(tiny_model: Make) -> None:
    model = tiny_model(eos_token_id=None)
    each = [GenerationOptions(max_new_tokens=5, allowed_ids=[i], banned_ids=[9]) for i in (3, 4, 3)]
    engine = Engine(model, slots=3)
    sequences = engine.prefill([[1, 2], [5], [6, 7]], each)
    while engine.running:
        engine.step()
    assert [sequence.new_ids for sequence in sequences] == [[3] * 5, [4] * 5, [3] * 5]


def test_the_end_is_kept_and_then_padded(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    free = model.generate(ids, max_new_tokens=10, temperature=0.0, eos_id=())[:, 20:]
    end = int(free[1, 3])
    out = model.generate(ids, max_new_tokens=10, temperature=0.0, eos_id=end)[:, 20:]
    for row, expected in zip(out.tolist(), free.tolist(), strict=True):
        cut = expected.index(end) + 1 if end in expected else 10
        assert row == (expected[:cut] + [0] * 10)[: out.shape[1]]
    longer = model.generate(ids, max_new_tokens=10, min_new_tokens=10, temperature=0.0, eos_id=end)[:, 20:]
    assert end not in longer[:, :9] and longer.shape == (3, 10)


@pytest.mark.parametrize("eos_id", [-1, 97, (-97, 1000)])
@pytest.mark.parametrize("search", [{"temperature": 0.0}, {"num_beams": 2}])
def test_an_end_outside_the_vocabulary_ends_and_bars_nothing(
    tiny_model: Make, ids: Tensor, eos_id: object, search: dict[str, object]
) -> None:
    model = tiny_model()
    likeliest = int(model(ids[:1]).logits[0, -1].argmax())
    model.lm_head.weight[96] = 2 * model.lm_head.weight[likeliest]
    free = model.generate(ids, max_new_tokens=5, eos_id=(), **search)
    assert 96 in free
    assert torch.equal(model.generate(ids, max_new_tokens=5, min_new_tokens=5, eos_id=eos_id, **search), free)


@pytest.mark.parametrize("asked", [5, np.int64(5), torch.tensor(5), [5], np.array([5, 6]), torch.tensor([5, 6])])
def test_an_end_may_be_any_kind_of_integer(tiny_model: Make, asked: Any) -> None:
    ends = GenerationOptions(eos_id=asked).ending_ids(tiny_model().config)
    assert ends in ((5,), (5, 6)) and all(type(end) is int for end in ends)


def test_streaming_yields_the_columns(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    columns = list(stream_ids(model, ids, max_new_tokens=6, seed=3))
    assert torch.equal(torch.stack(columns, 1), model.generate(ids, max_new_tokens=6, seed=3)[:, 20:])


@pytest.mark.parametrize("chunk", [1, 3, 20, 64])
def test_prefill_in_chunks_changes_nothing(tiny_model: Make, ids: Tensor, chunk: int) -> None:
    model = tiny_model(eos_token_id=None)
    prompts = [ids[0].tolist(), ids[1, :2].tolist(), ids[2, :11].tolist()]
    options = GenerationOptions(max_new_tokens=8, temperature=0.9, seed=2)
    engine = Engine(model, 3, prefill_chunk=chunk)
    sequences = engine.prefill(prompts, [options] * 3)
    while engine.step():
        pass
    assert [sequence.new_ids for sequence in sequences] == [alone(model, prompt, options) for prompt in prompts]


def test_requests_enter_and_leave_a_running_batch(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
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


def test_waiting_requests_take_free_slots_in_order(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    options = [GenerationOptions(max_new_tokens=2 + row, temperature=0.0) for row in range(5)]
    engine = Engine(model, slots=2)
    prompts = [ids[row % 3, : 4 + row].tolist() for row in range(5)]
    sequences = [engine.add_request(*request) for request in zip(prompts, options, strict=True)]
    assert (engine.running, engine.waiting) == ([], sequences)
    engine.step()
    assert (engine.running, engine.waiting) == (sequences[:2], sequences[2:])
    engine.abort(sequences[3])
    while engine.has_unfinished_requests():
        engine.step()
    assert (sequences.pop(3).new_ids, engine.waiting) == ([], [])
    for sequence in sequences:
        assert sequence.new_ids == alone(model, sequence.prompt, sequence.options)


def test_a_request_can_be_cut_short(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    options = GenerationOptions(max_new_tokens=9, temperature=0.0)
    engine = Engine(model, slots=2)
    first, second = engine.prefill([ids[0].tolist(), ids[1, :4].tolist()], [options] * 2)
    engine.abort(first)
    while engine.step():
        pass
    assert (first.finish_reason, len(first.new_ids)) == ("stop", 1)
    assert second.new_ids == alone(model, ids[1, :4].tolist(), options)


def test_generation_stops_where_the_context_ends(tiny_model: Make, ids: Tensor) -> None:
    out = tiny_model(max_position_embeddings=24).generate(ids, max_new_tokens=50, temperature=0.0, eos_id=())
    assert out.shape == (3, 24)


def test_penalties_apply_to_earlier_ids(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    out = model.generate(ids, max_new_tokens=20, temperature=0.0, frequency_penalty=1e4, eos_id=())
    assert all(len(set(row[20:])) == 20 and not set(row[20:]) & set(row[:20]) for row in out.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 65}, "min_new_tokens is 65"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 0.0}, "top_p"),
        ({"preset": "mine"}, "preset must be"),
        ({"banned_ids": [1, -1]}, "banned_ids holds -1; expected ints"),
        ({"banned_ids": [97]}, "banned_ids holds id 97, outside the vocabulary of 97"),
        ({"attention_mask": torch.zeros(3, 20)}, "row 0 is all padding"),
        ({"attention_mask": torch.ones(3, 19)}, r"\(3, 19\)"),
        ({"attention_mask": torch.ones(3, 20).tril(0)}, "row 0 is not padded on the left"),
    ],
)
def test_bad_requests_are_named(tiny_model: Make, ids: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(ids, **options)


def test_prompts_that_do_not_fit_are_refused(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(max_position_embeddings=20)
    with pytest.raises(ValueError, match="20 ids, which leaves no room in a context of 20"):
        model.generate(ids)
    with pytest.raises(ValueError, match=r"shape \(1, 0\)"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"dtype torch\.float32; expected integers"):
        model.generate(ids[:, :5].float())
    engine = Engine(model, slots=2)
    with pytest.raises(TypeError, match=r"prompt 1 holds 2\.0 at index 1; expected ids, which are ints"):
        engine.prefill([[1], [1, 2.0]], [GenerationOptions()] * 2)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.prefill([[1], []], [GenerationOptions()] * 2)
    with pytest.raises(ValueError, match="3 prompts for 2 free slots"):
        engine.prefill([[1]] * 3, [GenerationOptions()] * 3)
    assert not engine.running
    with pytest.raises(TypeError, match="tempratur"):
        model.generate(ids, tempratur=1.0)


def test_log_probabilities_are_the_models_own(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    engine = Engine(model, 2)
    options = GenerationOptions(max_new_tokens=6, temperature=0.5, top_k=3, logprobs=True)
    prompts = [ids[0].tolist(), ids[1, :5].tolist()]
    sequences = engine.prefill(prompts, [options, replace(options, logprobs=False)])
    while engine.step():
        pass
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
        while either.step():
            pass
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(weight.grad is not None and not weight.is_inference() for weight in model.parameters())


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("copies", [1, 2])
def test_failed_prompts_leave_no_prefix_cache(
    tiny_model: Make, ids: Tensor, monkeypatch: pytest.MonkeyPatch, slots: int, copies: int
) -> None:
    model = tiny_model(eos_token_id=None)
    options = GenerationOptions(max_new_tokens=4, temperature=0.0)
    engine = Engine(model, slots * copies, prefill_chunk=4)
    prompt = ids[0].tolist()

    def run() -> None:
        (sequence,) = engine.prefill([prompt], [options])
        while engine.step():
            pass
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


def test_a_failed_prompt_leaves_other_sequences_running(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    engine = Engine(model, 3)
    (sequence,) = engine.prefill([ids[0].tolist()], [options])
    with pytest.raises(ValueError, match="input id 97"):
        engine.prefill([ids[1].tolist(), [97]], [options] * 2)
    while engine.step():
        pass
    assert sequence.new_ids == alone(model, ids[0].tolist(), options)


def test_copies_share_a_prefill_and_differ_by_seed(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    options = {"max_new_tokens": 7, "temperature": 1.2}
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    out = model.generate(ids, mask, num_return_sequences=3, seed=5, **options)
    assert out.shape == (9, 27)
    for row in range(3):
        for copy in range(3):
            single = model.generate(ids[row : row + 1], mask[row : row + 1], seed=5 + copy, **options)
            assert torch.equal(out[3 * row + copy], single[0])
    with pytest.raises(ValueError, match="copies is 0"):
        model.generate(ids, num_return_sequences=0)


def test_a_common_prefix_is_not_computed_again(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    options = GenerationOptions(max_new_tokens=5, temperature=0.7, seed=1)
    engine = Engine(model, slots=2)

    def run(prompt: list[int]) -> int:
        (sequence,) = engine.prefill([prompt], [options])
        while engine.step():
            pass
        assert sequence.new_ids == alone(model, prompt, options)
        return sequence.num_cached_tokens

    first = ids[0].tolist()
    assert run(first) == 0
    turn = first + alone(model, first, options) + [9, 8]
    assert run(turn) == 24  # the prompt and four of five new ids: the last was never fed
    assert run(turn) == len(turn) - 1  # one id must be fed to have logits
    assert run([*first[:6], 3, 4]) == 6
    assert run(ids[1].tolist()) == 0


def test_the_prefix_cache_moves_with_its_slot(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    short, long = (GenerationOptions(max_new_tokens=n, temperature=0.0) for n in (2, 6))
    engine = Engine(model, slots=2)
    engine.prefill([ids[0].tolist(), ids[1].tolist()], [short, long])  # the second takes the first's slot
    while len(engine.running) == 2:
        engine.step()
    (sequence,) = engine.prefill([ids[1].tolist()], [long])
    assert sequence.num_cached_tokens == 19
    while engine.step():
        pass
    assert sequence.new_ids == alone(model, ids[1].tolist(), long)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("num_speculative_tokens", [1, 3, 8])
def test_speculation_changes_no_id(
    tiny_model: Make, ids: Tensor, temperature: float, num_speculative_tokens: int
) -> None:
    model = tiny_model(eos_token_id=[5, 6, 7])
    options = {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
    for row in range(3):
        prompt = ids[row].tolist()
        expected = alone(model, prompt, GenerationOptions(**options))
        for draft in (
            None,
            PromptLookupDraft(1),
            ModelDraft(tiny_model(num_hidden_layers=1), model),
            ModelDraft(model, model),
        ):
            result = generate_speculative(model, prompt, draft, num_speculative_tokens, **options)
            assert result.new_ids == expected
            assert result.num_accepted_tokens <= result.num_draft_tokens
            # Each pass adds an id of the model's own, but for a last one that ended on a draft token.
            assert result.num_forward_passes - (len(expected) - result.num_accepted_tokens) in (0, 1)
        assert result.num_accepted_tokens == result.num_draft_tokens  # a model accepts all of its own draft tokens


def test_speculation_pays_on_repetitive_text(tiny_model: Make) -> None:
    model = tiny_model(eos_token_id=None)
    for weight in model.parameters():  # a model that always says the next number: each id predicts id + 1
        if weight.ndim == 2 and weight.shape[0] != 97:
            weight.zero_()
    model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, 0))
    result = generate_speculative(
        model, [*range(10, 30), 10, 11], temperature=0.0, max_new_tokens=18, num_speculative_tokens=6
    )
    assert result.new_ids == list(range(12, 30))
    assert result.num_forward_passes <= 4


def test_prompt_lookup_matches_n_grams_of_the_given_lengths() -> None:
    sequence = Sequence([5, 6, 7, 8, 9, 6], GenerationOptions(), ())
    assert PromptLookupDraft()(sequence, 2) == []
    assert PromptLookupDraft(min_ngram=1)(sequence, 2) == PromptLookupDraft(1)(sequence, 2) == [7, 8]
    assert PromptLookupDraft()(Sequence([1, 5, 6, 7, 5, 6, 3, 1, 5, 6], GenerationOptions(), ()), 2) == [7, 5]


def test_speculation_refusals(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="num_speculative_tokens is 0"):
        generate_speculative(model, ids[0], num_speculative_tokens=0)
    with pytest.raises(ValueError, match="draft model has 98 ids, the model 97"):
        ModelDraft(tiny_model(vocab_size=98), model)
    with pytest.raises(ValueError, match="max_ngram is 0 and min_ngram 2"):
        PromptLookupDraft(0)
    engine = Engine(model, 2)
    sequences = engine.prefill([[4], [5]], [GenerationOptions(eos_id=())] * 2)
    with pytest.raises(ValueError, match="runs alone"):
        engine.verify(sequences[0], [1])


@pytest.mark.parametrize("form", ["full", "int8"])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_prompts_are_prefilled_beside_decoding_sequences(tiny_model: Make, ids: Tensor, form: str, chunk: int) -> None:
    model = tiny_model(eos_token_id=None)
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
            while engine.has_unfinished_requests():
                engine.step()
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
        sequences += [engine.add_request(row[:9], chosen) for row, chosen in zip(rows[1:], options[1:3], strict=True)]
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
    tiny_model: Make, ids: Tensor, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    model = tiny_model(eos_token_id=None)
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


def test_an_aborted_prefill_disturbs_no_other_sequence(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    engine = Engine(model, 3, prefill_chunk=4)
    first, second, third = (engine.add_request(row.tolist(), options) for row in ids)
    engine.step()
    engine.abort(first)  # the last takes its slot, prefilled in part
    while engine.running:
        engine.step()
    assert (first.finish_reason, first.new_ids) == ("stop", [])
    assert [s.new_ids for s in (second, third)] == [alone(model, s.prompt, options) for s in (second, third)]
    with pytest.raises(ValueError, match="the prompt has input id 97, outside the vocabulary of 97"):
        engine.add_request([6, 97], options)
    assert not engine.has_unfinished_requests() and engine.step() == []
