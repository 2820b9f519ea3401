"""Options of generation: the same ids on every road, values that are refused, text of TextGenerator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import typer
from torch import Tensor

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from bpe_llama.model.cli import app
from bpe_llama.model.generation import sampler_dispatch
from bpe_llama.model.generation.generate import Engine, GenerationOptions, Sequence, generate
from bpe_llama.model.generation.sampler_dispatch import sample_next_ids
from bpe_llama.model.generation.speculative import ModelDraft, generate_speculative
from bpe_llama.model.generation.structured import STRUCTURED
from bpe_llama.model.generation_config import GenerationConfig
from bpe_llama.model.sampling.keywords import GenerationKeywords, SamplerKeywords, TextKeywords
from bpe_llama.model.sampling.ordered import (
    FILTERS,
    LLAMA_CPP_FILTERS,
)
from bpe_llama.model.sampling.params import SamplerParams
from tests.model.generation.naive import finish

Make = Callable[..., LlamaForCausalLM]
V = 97


def halved(ids: Tensor, logits: Tensor) -> Tensor:
    """Halve what is even, and ban the last id."""
    logits = logits.clone()
    logits[:, ::2] *= 0.5
    logits[:, int(ids[0, -1])] = -torch.inf
    return logits


EVERY: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1, "temperature": 0.0},
    {"bad_words": [[5], [60, 61]], "temperature": 1.5},
    {"dry_multiplier": 2.0, "dry_allowed_length": 1, "repetition_penalty": 1.2, "temperature": 0.3},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05, "temperature": 0.7},
    {"top_n_sigma": 1.0, "temperature": 1.5},
    {"mirostat": 2, "mirostat_tau": 3.0, "temperature": 1.2},
    {"mirostat": 1, "mirostat_tau": 3.0, "presence_penalty": 0.5},
    {"filter_order": ["top_k", "temperature", "min_p"], "top_k": 20, "min_p": 0.05, "temperature": 2.0},
    {"logits_processor": halved, "top_k": 9},
    {"logits_processor": [halved, halved], "preset": "llama_cpp", "min_p": 0.1},
    {"penalty_scope": "output", "frequency_penalty": 1.5, "temperature": 1.2},
    {"penalty_scope": "output", "repetition_penalty": 1.5, "xtc_probability": 1.0, "temperature": 1.2},
]


@pytest.mark.parametrize("options", EVERY, ids=lambda options: next(iter(options)))
def test_every_way_to_generate_gives_the_same_ids(
    tiny_model: Make, ids: Tensor, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(eos_token_id=None)
    plain = {name: value for name, value in options.items() if name in ("temperature", "top_k", "min_p")}
    common = {"max_new_tokens": 12, "seed": 4}
    expected = generate(model, ids, **options, **common)
    assert expected.tolist() != generate(model, ids, **plain, **common).tolist()
    rows = expected[:, 20:].tolist()
    chosen = GenerationOptions(**options, **common)

    engine = Engine(model, 3)
    neighbour = GenerationOptions(temperature=0.9, max_new_tokens=4)
    other = engine.add_request([7, 8], neighbour)
    requested = [engine.add_request(ids[row].tolist(), chosen) for row in range(2)]
    finish(engine)
    assert [sequence.new_ids for sequence in requested] == rows[:2]
    assert other.new_ids == generate(model, torch.tensor([[7, 8]]), temperature=0.9, max_new_tokens=4)[0, 2:].tolist()

    found = generate_speculative(model, ids[0], **options, **common)
    assert found.new_ids == rows[0]
    found = generate_speculative(
        model, ids[0], ModelDraft(tiny_model(seed=0, eos_token_id=None), model), **options, **common
    )
    assert found.new_ids == rows[0]
    assert found.num_accepted_tokens > 5

    copies = generate(model, ids[:1], num_return_sequences=2, **options, **common)
    assert copies[0, 20:].tolist() == rows[0]
    second = generate(model, ids[:1], **options, **(common | {"seed": 5}))
    assert copies[1].tolist() == second[0].tolist()

    with pytest.warns(UserWarning, match="generating without a CUDA graph"):
        assert torch.equal(generate(model, ids, cuda_graph=True, **options, **common), expected)

    model.set_attn_implementation("eager")  # the modules in place of the CPU decoder
    assert torch.equal(generate(model, ids, **options, **common), expected)
    monkeypatch.setattr(sampler_dispatch, "_sample_native", sampler_dispatch._sample_with_torch)
    assert torch.equal(generate(model, ids, **options, **common), expected)


def drawn(options: GenerationOptions, logits: Tensor, prompt: list[int], new_ids: list[int]) -> int:
    return sample_next_ids([Sequence(prompt, options, (), list(new_ids))], logits[None])[0]


def test_penalties_over_the_output_leave_the_prompt_alone() -> None:
    logits = torch.tensor([3.0, 2.5, 0.0])
    for name in ("presence_penalty", "frequency_penalty"):
        context = GenerationOptions(temperature=0.0, **{name: 1.0})
        output = GenerationOptions(temperature=0.0, penalty_scope="output", **{name: 1.0})
        assert drawn(context, logits, [0], []) == 1
        assert drawn(output, logits, [0], []) == 0
        assert drawn(output, logits, [0], [0]) == 1
    assert drawn(GenerationOptions(temperature=0.0, repetition_penalty=2.0), logits, [0], []) == 1
    scoped = GenerationOptions(temperature=0.0, repetition_penalty=2.0, penalty_scope="output")
    assert drawn(scoped, logits, [0], []) == 0


def test_log_probabilities_of_prompt_and_likeliest(model: LlamaForCausalLM, ids: Tensor) -> None:
    options = GenerationOptions(max_new_tokens=5, top_logprobs=4, prompt_logprobs=True, temperature=1.3, top_p=0.5)
    engine = Engine(model, 2)
    joined = engine.prefill([ids[0].tolist()], [options])
    requested = engine.add_request(ids[1, :9].tolist(), options)
    finish(engine)
    for sequence in (*joined, requested):
        logprobs = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        length = len(sequence.prompt)
        places = range(len(sequence.ids) - 1)
        own = [float(logprobs[place, sequence.ids[place + 1]]) for place in places]
        tops = [logprobs[place].topk(4) for place in places]
        assert sequence.prompt_logprobs[0] is None
        assert sequence.prompt_logprobs[1:] == pytest.approx(own[: length - 1], abs=1e-4)
        assert sequence.logprobs == pytest.approx(own[length - 1 :], abs=1e-4)
        assert (sequence.prompt_top_logprobs[0], len(sequence.prompt_top_logprobs)) == ([], length)
        found = [*sequence.prompt_top_logprobs[1:], *sequence.top_logprobs]
        assert [[token for token, _ in row] for row in found] == [top.indices.tolist() for top in tops]
        assert [p for row in found for _, p in row] == pytest.approx(
            [p for t in tops for p in t.values.tolist()], abs=1e-4
        )


def test_a_fresh_seed_is_drawn_and_told(model: LlamaForCausalLM, ids: Tensor) -> None:
    seeds = {GenerationOptions(seed=None).seed for _ in range(8)}
    assert len(seeds) == 8
    options = {"max_new_tokens": 16, "temperature": 2.0}
    rows = generate(model, ids[:1].repeat(4, 1), seed=None, **options).tolist()
    assert len(set(map(tuple, rows))) == 4
    assert (
        generate(model, ids[:1], seed=None, **options).tolist()
        != generate(model, ids[:1], seed=None, **options).tolist()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_scope": "prompt"}, "penalty_scope is 'prompt'; expected one of context, output"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1; expected at least 0"),
        ({"dry_multiplier": -0.5}, r"dry_multiplier is -0\.5; expected a finite number of at least 0"),
        ({"dry_base": 0.5}, r"dry_base is 0\.5; expected a finite number of at least 1"),
        ({"dry_penalty_last_n": -2}, "dry_penalty_last_n is -2; expected at least -1"),
        ({"xtc_probability": 1.5}, r"xtc_probability is 1\.5; expected 0 to 1"),
        ({"xtc_threshold": math.nan}, "xtc_threshold is nan; expected 0 to 1"),
        ({"top_n_sigma": math.inf}, "top_n_sigma is inf; expected a finite number of at least 0"),
        ({"mirostat": 3}, r"mirostat is 3; expected 0 \(off\), 1 or 2"),
        ({"mirostat": 2, "top_k": 40}, "top_k is 40, but mirostat 2 takes the place of all filters but"),
        ({"mirostat": 2, "xtc_probability": 0.5}, r"xtc_probability is 0\.5, but mirostat 2"),
        ({"filter_order": ["top_k", "top_a"]}, "filter_order names 'top_a'; expected some of top_n_sigma, temperature"),
        ({"filter_order": ["top_k", "top_k"]}, "filter_order names a filter twice"),
        ({"filter_order": ["top_p"], "top_k": 5}, "top_k is 5, but filter_order leaves it out"),
        ({"bad_words": [[5], []]}, "bad_words holds an empty sequence"),
        ({"top_logprobs": -1}, "top_logprobs is -1; expected at least 0"),
        ({"top_n_sigma": 10**400}, "top_n_sigma is 1.*; expected a finite number of at least 0"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 0.5}, r"seed is 0\.5; expected an integer, or None"),
        ({"no_repeat_ngram_size": 2.0}, r"no_repeat_ngram_size is 2\.0; expected an integer"),
        ({"xtc_probability": "often"}, "xtc_probability is 'often'; expected a number"),
        ({"filter_order": "top_k"}, "filter_order is 'top_k'; expected a sequence"),
        ({"temperature": "warm"}, "temperature is 'warm'; expected a number"),
        ({"max_new_tokens": True}, "max_new_tokens is True; expected an integer"),
        ({"bad_words": ["no"]}, r"bad_words is \['no'\]; expected sequences of ids"),
        ({"bad_words": [5]}, r"bad_words is \[5\]; expected sequences of ids"),
        ({"logits_processor": [5]}, "logits_processor holds 5; expected callables"),
        ({"seed": torch.zeros(2)}, r"seed is tensor\(\[0\., 0\.\]\); expected an integer, or None"),
        ({"max_new_tokens": torch.zeros(2)}, r"max_new_tokens is tensor\(\[0\., 0\.\]\); expected an integer"),
        ({"constraint": "[ab]"}, r"constraint is '\[ab\]'; expected a Constraint or None"),
    ],
)
def test_values_of_another_type_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        GenerationOptions(**options)


def test_what_is_no_prompt_is_named_and_large_numbers_are_numbers(model: LlamaForCausalLM, ids: Tensor) -> None:
    with pytest.raises(TypeError, match=r"input_ids must be a torch\.Tensor, got None"):
        generate(model, None)  # type: ignore[arg-type]
    assert generate(model, ids, max_new_tokens=2, top_n_sigma=10**30).shape[1] == ids.shape[1] + 2


def test_what_a_processor_returns_is_checked(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"returned shape \(97,\); expected shape \(1, 97\)"):
        generate(model, ids, logits_processor=lambda ids, logits: logits[0])
    with pytest.raises(ValueError, match="returned None; expected shape"):
        generate(model, ids, logits_processor=lambda ids, logits: None)
    with pytest.raises(ValueError, match="row 0 of the logits holds NaN, \\+inf or nothing finite, once processors"):
        generate(model, ids, logits_processor=lambda ids, logits: logits * torch.nan)
    with pytest.raises(ValueError, match="bad_words holds id 97, outside the vocabulary of 97"):
        generate(model, ids, bad_words=[[97]])


def test_a_processor_sees_prompt_and_continuation(tiny_model: Make, ids: Tensor) -> None:
    model, seen = tiny_model(eos_token_id=None), list[list[list[int]]]()

    def watch(ids: Tensor, logits: Tensor) -> Tensor:
        assert (logits.dtype, logits.shape, ids.dtype) == (torch.float32, (1, V), torch.int64)
        seen.append(ids.tolist())
        return logits

    out = generate(model, ids[:1], max_new_tokens=4, logits_processor=watch)
    assert seen == [out[:, : 20 + step].tolist() for step in range(4)]
    assert torch.equal(out, generate(model, ids[:1], max_new_tokens=4))


@pytest.fixture
def writer(tiny_model: Make) -> TextGenerator:
    """Return a random model over bytes and a few words."""
    ranks = {bytes([i]): i for i in range(256)} | {b" a": 256, b" no": 257, b"no": 258, b"b\nc": 259}
    tokenizer = Tokenizer.from_ranks(ranks, pattern="cl100k")
    return TextGenerator(tiny_model(vocab_size=260, eos_token_id=None, max_position_embeddings=256), tokenizer)


def test_stop_strings_wait_for_the_least_number_of_tokens(writer: TextGenerator) -> None:
    options: dict[str, Any] = {"allowed_ids": [ord("a")], "max_new_tokens": 9}
    assert writer.generate("x", stop="a", min_new_tokens=6, **options) == "aaaaaa"
    assert writer.last is not None
    assert (len(writer.last.new_ids), writer.last.finish_reason) == (7, "stop")
    assert writer.generate("x", stop="aaa", min_new_tokens=6, **options) == "aaaa"
    assert writer.generate("x", stop="aaa", min_new_tokens=9, **options) == "a" * 9
    assert writer.generate_batch(["x", "y"], stop=["aa"], min_new_tokens=3, **options) == ["aa", "aa"]
    assert "".join(writer.stream("x", stop="aa", min_new_tokens=3, **options)) == "aa"
    assert writer.generate("x", stop="aa", **options) == ""


def test_n_answers_have_a_seed_each(writer: TextGenerator) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 2.0}
    answers = writer.generate("x", n=4, seed=7, **options)
    assert answers == [writer.generate("x", seed=7 + copy, **options) for copy in range(4)]
    assert len(set(answers)) == 4
    assert writer.generate_batch(["x"] * 4, seed=[7, 8, 9, 10], **options) == answers
    assert [sequence.options.seed for sequence in writer.sequences] == [7, 8, 9, 10]
    both = writer.generate_batch(["x", "yz"], n=4, seed=7, **options)
    assert both == [answers, writer.generate("yz", n=4, seed=7, **options)]
    assert (
        len({answer for several in writer.generate_batch(["x"] * 2, n=3, seed=None, **options) for answer in several})
        == 6
    )
    with pytest.raises(ValueError, match="n is 2, but a stream is one answer"):
        list(writer.stream("x", n=2))
    fresh = writer.generate("x", seed=None, **options)
    assert writer.last is not None
    assert writer.generate("x", seed=writer.last.options.seed, **options) == fresh
    assert len(set(writer.generate_batch(["x"] * 4, seed=None, **options))) == 4
    best = writer.generate("x", n=2, num_beams=3, max_new_tokens=6)
    assert best[0] == writer.generate("x", num_beams=3, max_new_tokens=6) != best[1]
    for wrong, message in (
        ({"n": 0}, "n is 0; expected at least 1"),
        ({"n": 3, "num_beams": 2}, "n is 3; expected 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.generate("x", **wrong)
    with pytest.raises(ValueError, match="seed holds 1 numbers for 2 prompts"):
        writer.generate_batch(["x", "y"], seed=[1])


def test_options_may_be_iterators_that_are_read_once(writer: TextGenerator, ids: Tensor) -> None:
    several: dict[str, Any] = {
        "stop": ["z", "y"],
        "bad_words": ["no", "a"],
        "dry_sequence_breakers": ["b", [97]],
        "logits_processor": [halved],
        "allowed_ids": list(range(97, 123)),
        "eos_id": [98],
    }
    plain: dict[str, Any] = {"max_new_tokens": 12, "temperature": 2.0, "dry_multiplier": 0.5}

    def once(*names: str) -> dict[str, Any]:
        return plain | {name: (each for each in several[name]) for name in names}

    asked = plain | several
    assert writer.generate_batch(["x", "q"], n=3, **once(*several)) == writer.generate_batch(["x", "q"], n=3, **asked)
    assert writer.generate("x", n=8, **once(*several)) == writer.generate("x", n=8, **asked)
    assert writer.generate_batch(["x", "q"], choice=iter(["yes", "no"])) == writer.generate_batch(
        ["x", "q"], choice=["yes", "no"]
    )
    beams = {"num_beams": 3, "num_return_sequences": 2}
    of_ids = ("logits_processor", "allowed_ids", "eos_id")
    for more in ({"num_return_sequences": 3}, beams | {"do_sample": True}):
        listed = plain | {name: several[name] for name in of_ids}
        found = generate(writer.model, ids[:2], **more, **once(*of_ids))
        assert torch.equal(found, generate(writer.model, ids[:2], **more, **listed))
        assert not torch.equal(found, generate(writer.model, ids[:2], **more, **plain))
    with pytest.raises(TypeError, match="logits_processor holds 5; expected callables"):
        writer.model.generation_config = GenerationConfig({"top_k": 20})
        writer.generate("x", logits_processor=iter([5]))


def test_bad_words_may_be_text(writer: TextGenerator) -> None:
    options: dict[str, Any] = {"allowed_ids": [257, 258, ord("z")], "max_new_tokens": 60, "temperature": 1.0}
    assert "no" in writer.generate("x", **options)
    assert set(writer.generate("x", bad_words=["no"], **options)) == {"z"}
    assert set(writer.generate("x", bad_words=[[257], [258]], **options)) == {"z"}
    assert "no" in writer.generate("x", bad_words=[[257]], **options)
    with pytest.raises(TypeError, match="bad_words is 'no'; expected a list"):
        writer.generate("x", bad_words="no")
    with pytest.raises(TypeError, match="stop is 3; expected a string or several"):
        writer.generate("x", stop=3)
    with pytest.raises(ValueError, match="bad_words holds ' '; expected words"):
        writer.generate("x", bad_words=[" "])


def test_dry_breakers_are_all_ids_that_hold_them(writer: TextGenerator) -> None:
    options = writer._generation_options({"dry_multiplier": 0.8})
    assert {(ord(part),) for part in '\n:"*'} | {(259,)} == set(map(tuple, options["dry_sequence_breakers"]))
    options = writer._generation_options({"dry_multiplier": 0.8, "dry_sequence_breakers": ["ab"]})
    assert options["dry_sequence_breakers"] == [[97, 98]]
    prompt = "abcdef:abcdef"
    free = writer.generate(prompt, temperature=0.0, max_new_tokens=1, allowed_ids=[*b":q"], logit_bias={58: 9.0})
    kept = writer.generate(
        prompt, temperature=0.0, max_new_tokens=1, allowed_ids=[*b":q"], logit_bias={58: 9.0}, dry_multiplier=5.0
    )
    assert (free, kept) == (":", "q")


def test_banned_ids_may_be_a_tensor(model: LlamaForCausalLM, ids: Tensor) -> None:
    for others in ({"no_repeat_ngram_size": 2}, {"num_beams": 2}, {"num_return_sequences": 2}, {"logprobs": True}):
        listed = generate(model, ids, max_new_tokens=6, temperature=0.0, banned_ids=[3, 40], **others)
        found = generate(model, ids, max_new_tokens=6, temperature=0.0, banned_ids=torch.tensor([3, 40]), **others)
        assert torch.equal(found, listed)


def test_no_padding_where_keys_are_computed_anew(tiny_model: Make) -> None:
    """Beyond the original length LongRoPE turns all keys by other angles: several steps that draw no id."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    scaling["original_max_position_embeddings"] = 600
    model = tiny_model(max_position_embeddings=1200, rope_scaling=scaling)
    ids = torch.arange(2 * 595).reshape(2, 595) % (model.config.vocab_size - 1) + 1
    options = {"max_new_tokens": 12, "temperature": 0.0, "eos_id": ()}
    alone = []
    for row in ids:
        engine = Engine(model, 1, 620)
        (sequence,) = engine.prefill([row.tolist()], [GenerationOptions(**options)])
        while engine.step() or not sequence.finish_reason:
            pass
        alone.append(sequence.new_ids)
    assert generate(model, ids, **options)[:, 595:].tolist() == alone


def test_defaults_of_the_model_hold_where_the_caller_gives_none(model: LlamaForCausalLM, ids: Tensor) -> None:
    greedy = generate(model, ids, max_new_tokens=8, temperature=0.0)
    model.generation_config = GenerationConfig({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20})
    same = {"max_new_tokens": 8, "seed": 3}
    stated = generate(model, ids, **same)
    assert torch.equal(stated, generate(model, ids, temperature=0.6, top_p=0.9, top_k=20, **same))
    assert torch.equal(greedy, generate(model, ids, temperature=0.0, **same))
    assert torch.equal(greedy, generate(model, ids, do_sample=False, **same))
    with pytest.warns(UserWarning, match=r"temperature is 0\.9, but do_sample=False draws nothing"):
        assert torch.equal(greedy, generate(model, ids, do_sample=False, temperature=0.9, **same))
    model.generation_config = GenerationConfig({"do_sample": True})
    defaults = GenerationOptions.for_model(model)
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (1.0, 1.0, 0)
    model.generation_config = GenerationConfig({"top_p": 3.0})
    with pytest.raises(ValueError, match=r"a default of the model's generation_config\.json: top_p"):
        generate(model, ids)
    assert generate(model, ids, top_p=0.5, max_new_tokens=1).shape == (3, 21)
    model.generation_config = GenerationConfig({"top_k": 20, "min_p": 0.1, "temperature": 0.5})
    assert GenerationOptions.for_model(model, mirostat=2).top_k == 0


def test_keywords_are_the_options_of_the_dataclasses() -> None:
    for keywords, params in ((SamplerKeywords, SamplerParams), (GenerationKeywords, GenerationOptions)):
        types = {name: reference.__forward_arg__ for name, reference in keywords.__annotations__.items()}
        assert types == {field.name: field.type for field in fields(params)}
    assert set(FILTERS) == set(LLAMA_CPP_FILTERS)
    of_text = {"stop", "bos", "allowed_special", "reuse", "skip_special_tokens", *STRUCTURED}
    assert set(TextKeywords.__annotations__) == {field.name for field in fields(GenerationOptions)} | of_text


def test_every_option_has_a_flag() -> None:
    flags = {parameter.name for parameter in typer.main.get_command(app).commands["generate"].params}
    renamed = {"banned_ids": "ban", "top_logprobs": "logprobs"}
    without = {"allowed_ids", "logits_processor", "eos_id", "prompt_logprobs", "constraint"}
    for field in fields(GenerationOptions):
        assert (renamed.get(field.name, field.name) in flags) != (field.name in without), field.name
