"""Structured output: exact in distribution, fast-forwarded, in batches with free requests; errors and refusals."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import pickle
import re
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama import Tokenizer
from bpe_llama.model import TextGenerator
from bpe_llama.model.backends.cuda.dispatch import options_unsupported_by_cuda_graph
from bpe_llama.model.generation import engine as engine_module
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.generate import stream_ids
from bpe_llama.model.generation.sampler_dispatch import sample_next_ids
from bpe_llama.model.generation.speculative import ModelDraft, PromptLookupDraft, generate_speculative
from bpe_llama.model.generation.structured import MAX_GRAMMAR_BYTES
from bpe_llama.model.sampling.constraint import constraint_bias
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence
from tests.small_models import tiny_model

pytest.importorskip("llguidance", reason="needs bpe_llama[structured]")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = '{"name": "Ada", "age": 36, "kind": "mathematician"} aba abb aba abb bb bb ba the quick brown fox ' * 3
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["mathematician", "programmer"]},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
END = "<|end|>"


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    """Return a random model with ten ids more than its tokenizer."""
    tokenizer = Tokenizer.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<s>", END], progress=False)
    model = tiny_model(seed=3, vocab_size=tokenizer.vocab_size + 10, max_position_embeddings=512)
    model.generation_config = model.generation_config.__class__({"eos_token_id": tokenizer.special_tokens[END]})
    return TextGenerator(model, tokenizer)


def test_texts_follow_the_laws_of_the_model_renormalised(generator: TextGenerator) -> None:
    """The definition: every sequence of tokens of a finite language, with the product of renormalised probabilities."""
    language = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab ", repeat=n)]
    tokenizer, end = generator.tokenizer, generator.tokenizer.special_tokens[END]
    tokens = {i: tokenizer.id_to_bytes(i).decode() for i in range(300) if set(tokenizer.id_to_bytes(i)) <= set(b"ab ")}
    assert len(tokens) > 4
    prompt = generator.encode("the quick")

    expected: Counter[tuple[int, ...]] = Counter()

    def extend(ids: tuple[int, ...], text: str, probability: float) -> None:
        allowed = [i for i, token in tokens.items() if any(word.startswith(text + token) for word in language)]
        allowed += [end] if text in language else []
        if allowed == [end]:  # nothing else may follow, so the sequence ends without it
            expected[ids] += probability
            return
        logits_V = generator.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
        for i, share in zip(allowed, (logits_V[allowed] / 1.5).softmax(-1).tolist(), strict=True):
            if i == end:
                expected[(*ids, end)] += probability * share
            else:
                extend((*ids, i), text + tokens[i], probability * share)

    extend((), "", 1.0)
    assert math.isclose(sum(expected.values()), 1.0, rel_tol=1e-9)
    draws = 2000
    options = {"temperature": 1.5, "top_p": 1.0, "max_new_tokens": 8, "eos_id": end}
    texts = generator.generate(prompt, n=draws, regex="[ab ]{1,3}", **options)
    assert set(texts) <= set(language)
    found = Counter(tuple(sequence.new_ids) for sequence in generator.sequences)
    assert set(found) <= set(expected)
    common = [ids for ids, share in expected.items() if share * draws >= 5]
    rest = [ids for ids in expected if ids not in common]
    groups = [[ids] for ids in common] + ([rest] if rest else [])
    chi_square = 0.0
    for group in groups:
        wanted = draws * sum(expected[ids] for ids in group)
        chi_square += (sum(found[ids] for ids in group) - wanted) ** 2 / max(wanted, 1e-9)
    freedom = len(groups) - 1
    assert freedom > 8
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)  # seeds are fixed, so this never varies


CASES: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"json_schema": json.dumps(PERSON)},
    {"regex": r"(the quick brown|the quick red) fox [0-9]{2}"},
    {"choice": ["mathematician", "programmer", "mathematics", "é😀 日本"]},
    {"grammar": 'start: "the " animal " and " animal\nanimal: "fox" | "quick brown fox" | /[a-c]{1,4}d/'},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: next(iter(case)))
@pytest.mark.parametrize("options", [{}, {"penalty_scope": "output", "repetition_penalty": 1.3}, {"top_n_sigma": 1.0}])
def test_forced_ids_are_those_that_sampling_draws(
    generator: TextGenerator, case: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[object] = []
    run, spared = Engine._run, 0

    def counted(self: Engine, ids: Any, *rest: Any, **more: Any) -> Tensor:
        passes.append(ids)
        return run(self, ids, *rest, **more)

    monkeypatch.setattr(Engine, "_run", counted)
    for seed in range(3):
        options |= {"seed": seed, "max_new_tokens": 150, "temperature": 1.0}
        passes.clear()
        text = generator.generate("Say ", **case, **options)
        fast, last = len(passes), generator.last
        assert last is not None
        passes.clear()
        one_by_one = generator.generate("Say ", logprobs=True, **case, **options)
        assert generator.last is not None
        assert (text, last.new_ids) == (one_by_one, generator.last.new_ids)
        spared += len(passes) - fast
        assert len(generator.last.logprobs) == len(last.new_ids)
        if last.finish_reason == "stop":
            check(case, text)
    assert spared > 0


def check(case: dict[str, Any], text: str) -> None:
    ((option, given),) = case.items()
    if option == "json_schema":
        found = json.loads(text)
        assert list(found) == ["name", "kind"] and found["kind"] in ("mathematician", "programmer")
    elif option == "choice":
        assert text in given
    else:
        pattern = (
            given
            if option == "regex"
            else "the (fox|quick brown fox|[a-c]{1,4}d) and (fox|quick brown fox|[a-c]{1,4}d)"
        )
        assert re.fullmatch(pattern, text)


def test_logprobs_are_of_the_model_alone(generator: TextGenerator) -> None:
    prompt = generator.encode("Say ")
    generator.generate(prompt, choice=["fox", "bb"], top_logprobs=3, seed=1)
    assert generator.last is not None
    new_ids = generator.last.new_ids
    logprobs_TV = generator.model(torch.tensor([prompt + new_ids])).logits[0].log_softmax(-1)
    wanted = [float(logprobs_TV[len(prompt) - 1 + place, i]) for place, i in enumerate(new_ids)]
    assert generator.last.logprobs == pytest.approx(wanted, abs=1e-4)
    assert any(i not in dict(top) for i, top in zip(new_ids, generator.last.top_logprobs, strict=True))


def test_constrained_and_free_requests_share_a_batch(generator: TextGenerator) -> None:
    model = generator.model
    asked: list[dict[str, Any]] = [{}, CASES[0], {"temperature": 0.0}, CASES[2], {"regex": "[0-9]{1,5}"}, CASES[3]]
    requests = [generator.request("Say ", {"seed": 5, "max_new_tokens": 40} | options) for options in asked]
    alone = []
    for request in requests:
        engine = Engine(model, 1, 256)
        sequence = engine.add_request(request.prompt, request.options)
        while engine.has_unfinished_requests():
            engine.step()
        alone.append((sequence.new_ids, sequence.finish_reason))
    for slots, chunk in ((6, 512), (2, 512), (3, 4)):
        engine = Engine(model, slots, 256, prefill_chunk=chunk)
        sequences = [engine.add_request(request.prompt, request.options) for request in requests]
        while engine.has_unfinished_requests():
            engine.step()
        assert [(s.new_ids, s.finish_reason) for s in sequences] == alone
    for cache in ("int8", "ring"):  # by the modules of llama.py
        windowed = tiny_model(seed=3, vocab_size=model.config.vocab_size, max_position_embeddings=512, sliding_window=8)
        engine = Engine(windowed, 3, 256, prefill_chunk=5, cache=cache)
        sequences = [engine.add_request(request.prompt, request.options) for request in requests]
        while engine.has_unfinished_requests():
            engine.step()
        assert [s.finish_reason for s in sequences[3:]] == ["stop"] * 3
        check(CASES[2], generator.tokenizer.decode(sequences[3].new_ids))


def test_n_answers_and_batches_have_states_of_their_own(generator: TextGenerator) -> None:
    several = generator.generate("Say ", n=4, seed=3, max_new_tokens=80, **CASES[0])
    each = [generator.generate("Say ", seed=3 + copy, max_new_tokens=80, **CASES[0]) for copy in range(4)]
    assert several == each and len(set(several)) > 1
    batch = generator.generate_batch(["Say "] * 4, seed=[3, 4, 5, 6], slots=2, max_new_tokens=80, **CASES[0])
    assert batch == each
    assert "".join(generator.stream("Say ", seed=3, max_new_tokens=80, **CASES[0])) == each[0]


def test_a_step_that_fails_or_is_interrupted_can_be_repeated(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = generator.request("Say ", {"seed": 2, "max_new_tokens": 60, **CASES[0]})

    def run(interrupt: bool) -> list[int]:
        engine = Engine(generator.model, 2, 256)
        sequence = engine.add_request(request.prompt, request.options)
        calls = itertools.count()

        def late(sequences: object, chosen: object, logits: Tensor) -> None:
            if interrupt and next(calls) % 2 == 0:
                raise KeyboardInterrupt

        def after(sequences: list[Sequence], capacity: int, most: int) -> None:
            fast_forward(sequences, capacity, most)
            if interrupt and next(calls) % 3 == 0:  # with forced ids appended
                raise KeyboardInterrupt

        fast_forward = engine_module.fast_forward
        with monkeypatch.context() as patched:
            patched.setattr(engine_module, "record_logprobs", late)
            patched.setattr(engine_module, "fast_forward", after)
            while engine.has_unfinished_requests():
                try:
                    engine.step()
                except KeyboardInterrupt:
                    continue
        return sequence.new_ids

    assert run(True) == run(False)


@pytest.mark.parametrize("of_model", [False, True])
def test_speculative_decoding_gives_the_ids_of_plain_generation(generator: TextGenerator, of_model: bool) -> None:
    prompt = generator.encode('{"name": "abab", "kind": "mathematician"} {')
    for seed in range(4):
        request = generator.request(prompt, {"seed": seed, "max_new_tokens": 60, **CASES[0]})
        options = {name: getattr(request.options, name) for name in ("seed", "max_new_tokens", "constraint", "eos_id")}
        draft = ModelDraft(generator.model, generator.model) if of_model else PromptLookupDraft(min_ngram=1)
        result = generate_speculative(generator.model, prompt, draft, **options)
        generator.generate(prompt, seed=seed, max_new_tokens=60, **CASES[0])
        assert generator.last is not None
        assert result.new_ids == generator.last.new_ids
        assert result.num_forward_passes < len(result.new_ids)


def test_ids_stream_in_columns_though_some_are_forced(generator: TextGenerator) -> None:
    constraint = generator.options(**CASES[2]).constraint
    rows = [generator.encode(text) for text in ("Say ", "Tell me")]
    ids_BT = torch.tensor([row[-min(map(len, rows)) :] for row in rows])
    end = generator.tokenizer.special_tokens[END]
    columns = list(stream_ids(generator.model, ids_BT, constraint=constraint, max_new_tokens=60, eos_id=end, seed=None))
    for row in torch.stack(columns, 1).tolist():
        check(CASES[2], generator.tokenizer.decode([i for i in row if i < 298]))


def test_an_end_comes_only_where_the_grammar_accepts(generator: TextGenerator) -> None:
    ends = generator.end_ids
    bias = {ends[0]: 1000.0}  # the model wants nothing but to end
    assert re.fullmatch("a{3,}", generator.generate("x", regex="a{3,9}", logit_bias=bias))
    assert generator.last is not None and generator.last.new_ids[-1] == ends[0]
    assert generator.last.finish_reason == "stop"
    assert len(generator.generate("x", regex="a{3,}", logit_bias=bias, max_new_tokens=2, banned_ids=[])) < 9
    generator.generate("x", regex="[bd]{50,}", max_new_tokens=5)
    assert generator.last.finish_reason == "length"
    assert generator.generate("x", regex="z{4}", eos_id=()) == "zzzz"  # complete, without an end id
    assert generator.last.finish_reason == "stop" and generator.last.new_ids[-1] != ends[0]
    assert generator.generate("x", regex="z{4}", max_new_tokens=4) == "zzzz"
    assert generator.last.finish_reason == "stop"
    z = generator.tokenizer.encode("z")[0]  # an end id that is a letter is an end alone
    for seed in range(5):
        assert re.fullmatch("y+", generator.generate("x", regex="y+|z+", eos_id=z, seed=seed, max_new_tokens=60)[:9])
    assert generator.generate("x", regex="y{5}", min_new_tokens=3) == "yyyyy"


def test_no_special_token_and_no_id_beyond_the_tokenizer(generator: TextGenerator) -> None:
    tokenizer, size = generator.tokenizer, generator.model.config.vocab_size
    request = generator.request("x", {"regex": "(?s:.)*", "eos_id": tokenizer.special_tokens[END]})
    sequence = Sequence(request.prompt, request.options, (tokenizer.special_tokens[END],))
    assert sequence.constraint is not None
    (bias_V,) = constraint_bias([sequence.constraint], [[]], [sequence.eos_ids], size, torch.device("cpu"))
    allowed = set((bias_V == 0).nonzero().flatten().tolist())
    of_text = {
        i for i in range(298) if tokenizer.id_to_bytes(i)[0] < 0x80 or 0xC2 <= tokenizer.id_to_bytes(i)[0] < 0xF5
    }
    assert allowed == of_text | {tokenizer.special_tokens[END]}
    assert generator.generate("x", grammar='start: "a" <s> "b"') == "a<s>b"  # a grammar may name a special token
    logits_1V = torch.zeros(1, size)
    logits_1V[0, sorted(set(range(size)) - allowed)] = 50.0
    assert set(sample_next_ids([sequence], logits_1V)) <= allowed


OTHERS: list[dict[str, Any]] = [
    {"mirostat": 2},
    {"mirostat": 1, "temperature": 0.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"dry_multiplier": 2.0, "no_repeat_ngram_size": 0},
    {"filter_order": ["top_k", "typical_p", "temperature"], "top_k": 3, "typical_p": 0.5},
    {"typical_p": 0.3, "min_p": 0.2, "top_p": 0.7, "top_k": 5},
    {"presence_penalty": 5.0, "frequency_penalty": -2.0, "logit_bias": {5: 30.0, 299: 60.0}},
    {"logits_processor": lambda ids, logits: torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) * 9},
    {"preset": "llama_cpp"},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_other_options_choose_among_allowed_ids(generator: TextGenerator, other: dict[str, Any]) -> None:
    for case in (CASES[0], CASES[2]):
        for seed in range(3):
            text = generator.generate("Say ", seed=seed, max_new_tokens=200, **case, **other)
            assert generator.last is not None
            if generator.last.finish_reason == "stop":
                check(case, text)


@pytest.mark.parametrize(
    "bans",
    [
        {"bad_words": ["the", "t"]},
        {"banned_ids": list(range(300))},
        {"allowed_ids": [5]},
        {"min_new_tokens": 9, "regex": "ab"},
        {"logits_processor": lambda ids, logits: torch.full_like(logits, -math.inf)},
    ],
    ids=lambda bans: next(iter(bans)),
)
def test_options_that_leave_no_allowed_id_are_named(generator: TextGenerator, bans: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="regex allows only ids that other options exclude"):
        generator.generate("Say ", **{"regex": "the|to|ta", "max_new_tokens": 20} | bans)
    assert generator.generate("Say ", regex="the") == "the"  # the idle engine is whole


def test_values_in_a_schema_are_no_schemas(generator: TextGenerator) -> None:
    value = {"$id": "a", "$ref": "http://x"}
    schema = {"type": "object", "properties": {"b": {"enum": [value], "examples": [value]}}, "default": value}
    schema |= {"required": ["b"], "additionalProperties": False}
    assert json.loads(generator.generate("x", json_schema=schema, max_new_tokens=200)) == {"b": value}
    for name, said in (("$id", "the $id 'a' in a part"), ("$ref", "the $ref 'http://x'")):
        part = {name: value[name]}
        for refused in ({"properties": {"enum": part}}, {"$ref": "#/const", "const": part}):
            with pytest.raises(ValueError, match=re.escape(said)):
                generator.generate("x", json_schema=refused)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"json_schema": {"type": "objekt"}}, ValueError, "json_schema is not valid: Invalid type: objekt"),
    ({"json_schema": {"uniqueItems": True}}, ValueError, r'json_schema is not valid: Unimplemented keys: \["uniqueIt'),
    ({"json_schema": {"not": {}, "x-guidance": {"lenient": True}}}, ValueError, "Unimplemented keys"),
    ({"json_schema": {"type": "string", "format": "foo"}}, ValueError, "json_schema.*Unknown format: foo"),
    ({"json_schema": {"$ref": "http://127.0.0.1:9/x"}}, ValueError, "has the .*; expected the place of a part"),
    ({"json_schema": {"$ref": "file:///etc/passwd"}}, ValueError, "has the .*; expected the place of a part"),
    ({"json_schema": {"$ref": "#"}}, ValueError, "json_schema.*no text is valid"),
    ({"json_schema": "{bad"}, ValueError, "json_schema is no JSON"),
    ({"json_schema": "[1]"}, TypeError, r"json_schema is \[1\]; expected an object"),
    ({"json_schema": {"const": {1, 2}}}, TypeError, "json_schema is no JSON"),
    ({"json_schema": {"const": math.nan}}, ValueError, "json_schema is no JSON"),
    ({"json_schema": 5}, TypeError, "json_schema is 5"),
    ({"json_schema": {"const": "\ud800"}}, ValueError, "json_schema is no valid Unicode"),
    ({"json_object": "yes"}, TypeError, "json_object is 'yes'"),
    ({"regex": "a(b"}, ValueError, "regex is not valid: .*unclosed group"),
    ({"regex": "(?=a)b"}, ValueError, "regex is not valid: .*look-around"),
    ({"regex": 5}, TypeError, "regex is 5"),
    ({"regex": "a" * (MAX_GRAMMAR_BYTES + 1)}, ValueError, "regex has 131,073 bytes; expected at most 131,072"),
    ({"grammar": "start: foo"}, ValueError, 'grammar is not valid: .*unknown name: "foo"'),
    ({"grammar": "start: " + "(" * 9999}, ValueError, "grammar is not valid: .*nested"),
    ({"choice": "abc"}, TypeError, "choice is 'abc'; expected a list"),
    ({"choice": []}, ValueError, "choice is empty"),
    ({"choice": ["a", 1]}, TypeError, "choice is"),
    ({"choice": ["a"], "regex": "b"}, ValueError, "regex and choice are given; expected one"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_grammars_are_named(
    generator: TextGenerator, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        generator.generate("Say ", **options)


def test_deep_schemas_are_refused(generator: TextGenerator) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"items": schema}
    with pytest.raises(ValueError, match=r"json_schema is (not valid: recursion limit|nested too deeply)"):
        generator.options(json_schema=schema)
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="json_schema is nested too deeply"):
        generator.options(json_schema=schema)


def test_what_does_not_support_grammars_says_so(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="regex is given, but a beam search supports no grammar"):
        generator.generate("Say ", regex="a", num_beams=2)
    options = generator.options(regex="a")
    assert options_unsupported_by_cuda_graph(options) == "regex is a grammar, which runs on the host"
    with pytest.raises(ValueError, match="regex and constraint are given"):
        generator.generate("Say ", regex="a", constraint=options.constraint)


def test_a_missing_extra_is_named(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"regex needs llguidance: pip install 'bpe_llama\[structured\]'"):
        generator.generate("Say ", regex="not compiled yet")


def test_any_json_object(generator: TextGenerator) -> None:
    for options in ({"json_object": True}, {"json_schema": {}}, {"json_schema": "{}"}):
        for seed in range(4):
            text = generator.generate("Say ", seed=seed, max_new_tokens=300, **options)
            assert generator.last is not None and text.startswith("{")
            if generator.last.finish_reason == "stop":
                assert isinstance(json.loads(text), dict)
    assert generator.generate("Say ", json_object=False, max_new_tokens=1, seed=1)  # the default


def test_a_generator_that_has_compiled_grammars_can_be_copied(generator: TextGenerator) -> None:
    wanted = generator.generate("Say ", **CASES[2])
    other = copy.deepcopy(generator._text_options)
    assert other.to_ids({"regex": "a"})["constraint"] is not None
    assert pickle.loads(pickle.dumps(generator._text_options)).to_ids({"regex": "a"})["constraint"] is not None
    options = copy.deepcopy(generator.options(**CASES[2]))
    assert isinstance(options, GenerationOptions) and options.constraint is not None
    assert generator.generate("Say ", **CASES[2]) == wanted


def test_stop_strings_of_the_model_do_not_cut_a_grammar(generator: TextGenerator) -> None:
    config = generator.model.generation_config
    generator.model.generation_config = config.__class__(config.values | {"stop_strings": ["o"]})
    try:
        assert generator.generate("Say ", regex="the fox") == "the fox"
        assert generator.generate("Say ", regex="the fox", stop="o") == "the f"  # the caller's own
    finally:
        generator.model.generation_config = config


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(generator: TextGenerator) -> None:
    prompts = ["Say ", "Tell "]
    wanted = generator.generate_batch(prompts, max_new_tokens=40, **CASES[0])  # starts llguidance's threads
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)
        os._exit(0 if generator.generate_batch(prompts, max_new_tokens=40, **CASES[0]) == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
