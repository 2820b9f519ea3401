"""Structured output of random models, held to llguidance's own tokenizers and matchers, jsonschema and pydantic."""

from __future__ import annotations

import enum
import json
import random
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.model import TextGenerator
from bpe_llama.model.sampling.constraint import ConstraintState, constraint_bias
from tests.parity.tokenizer.sentencepiece_models import train
from tests.small_models import tiny_model

llguidance = pytest.importorskip("llguidance", reason="needs bpe_llama[structured]")
jsonschema = pytest.importorskip("jsonschema", reason="validates the outputs")
pydantic = pytest.importorskip("pydantic", reason="validates the outputs")
pytestmark = pytest.mark.usefixtures("one_thread")

CORPUS = [
    '{"name": "Ada", "tags": ["x", "the quick", true, null], "n": -12.5e3, "é": "日本 😀"}',
    "the quick brown fox",
] * 9
KINDS = ("byte level", "tiktoken", "sentencepiece", "general")


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    if kind == "sentencepiece":
        data = train(CORPUS * 9, vocab_size=420, byte_fallback=True, remove_extra_whitespaces=False).SerializeToString()
        (folder / "tokenizer.model").write_bytes(data)
        return Tokenizer.from_file(folder / "tokenizer.model")
    if kind == "general":  # with a normalizer and a space put before a text
        return Tokenizer.from_file(general(folder / "tokenizer.json"))
    trained = Tokenizer.train_from_iterator(CORPUS, 290, special_tokens=["<s>", "</s>"], progress=False)
    if kind == "byte level":
        return trained
    return Tokenizer.from_ranks(trained.mergeable_ranks, special_tokens={"<|endoftext|>": 300, "<|tool|>": 305})


def general(path: Path) -> Path:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    theirs = Theirs(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    theirs.normalizer = normalizers.NFC()
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    theirs.decoder = decoders.Sequence(strip)
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    theirs.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=380, special_tokens=symbols, show_progress=False))
    saved = json.loads(theirs.to_str())
    for token in saved["added_tokens"][3:]:
        token["special"] = False
    saved["added_tokens"] = saved["added_tokens"][:3]
    path.write_text(json.dumps(saved))
    return path


@pytest.fixture(scope="module", params=KINDS)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextGenerator:
    tokenizer = tokenizer_of(request.param, tmp_path_factory.mktemp("tokenizer"))
    model = tiny_model(seed=4, vocab_size=tokenizer.vocab_size + 3, max_position_embeddings=512)
    return TextGenerator(model, tokenizer)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "dark blue"


class Part(pydantic.BaseModel):
    code: str = pydantic.Field(pattern=r"^[A-Z]{2}-\d{1,3}$")
    weight: float | None


class Order(pydantic.BaseModel):
    colour: Colour
    parts: list[Part] = pydantic.Field(min_length=1, max_length=2)
    kind: Literal["buy", "sell"] = "buy"
    note: str = pydantic.Field("", max_length=4)


def record(**properties: Any) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


SHORT = {"type": "string", "maxLength": 4}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -5, "maximum": 130},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    {"type": "boolean"},
    {"type": "null"},
    {"const": {"a": [1, 2.5, "é😀", None, {"b": 'x\ny"z\\'}]}},
    {"enum": ["red", "dark blue", 5, None, True, ["x"]]},
    SHORT,
    {"type": "string", "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": "^(ab|cd)+e{2,3}$", "maxLength": 12},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}], "items": False, "minItems": 2},
    record(a=SHORT, b={"type": "integer", "minimum": 0, "maximum": 99}),
    record(a=record(b=record(c={"enum": [1, 2]}))),
    record(**{"the quick": {"type": "boolean"}, "é": {"type": "null"}, 'q"\\': {"const": 1}}),
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"enum": [1]}}, "additionalProperties": False},
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 3}, {"enum": ["one", "two"]}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    {"type": ["boolean", "null"]},
    {"$defs": {"n": {"enum": [1, 2]}}, "type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 3},
    {
        "$defs": {
            "tree": record(v={"enum": [0]}, kids={"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1})
        },
        "$ref": "#/$defs/tree",
    },
    Order.model_json_schema(),
]
SCHEMAS += [{**schema, "x-guidance": {"whitespace_flexible": False}} for schema in SCHEMAS]


def test_what_a_random_model_writes_parses_and_validates(generator: TextGenerator) -> None:
    matcher, tokenizer = llguidance.LLMatcher, generator._text_options._grammars._adapted()
    stopped = 0
    for start in range(0, len(SCHEMAS), 18):
        schemas = SCHEMAS[start : start + 18]
        requests = [
            generator.request(
                "the " if place % 2 else [5, 6], {"json_schema": schema, "seed": seed, "max_new_tokens": 200}
            )
            for place, schema in enumerate(schemas)
            for seed in (1, 2)
        ]
        for request, schema in zip(run(generator, requests), [s for s in schemas for _ in range(2)], strict=True):
            sequence, text = request.sequence, "".join(request.parts)
            assert sequence is not None
            ids = [i for i in sequence.new_ids if i not in sequence.eos_ids]
            theirs = matcher(tokenizer, matcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
            assert theirs.consume_tokens(ids), (schema, text)
            if sequence.finish_reason == "stop":
                stopped += 1
                assert theirs.is_accepting()
                jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
                if schema.get("title") == "Order":
                    Order.model_validate_json(text)
    assert stopped > 1.4 * len(SCHEMAS)


def run(generator: TextGenerator, requests: list[Any]) -> list[Any]:
    from bpe_llama.model.generation.engine import Engine

    engine = Engine(generator.model, 12, 300)
    for request in requests:
        request.sequence = engine.add_request(request.prompt, request.options)
    while engine.has_unfinished_requests():
        engine.step()
    for request in requests:
        request.read(engine)
    return requests


TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"regex": r" ?the (quick|slow) [a-z]{2,4}\n?"}, r" ?the (quick|slow) [a-z]{2,4}\n?"),
    ({"regex": r"[à-ü]{2}日本|😀{1,2}"}, r"[à-ü]{2}日本|😀{1,2}"),
    ({"regex": r"^[0-9]{2}$"}, r"[0-9]{2}"),
    ({"choice": ["the quick", "the quick brown", " x", 'q"\\\n', "é", "\x7f"]}, r'the quick( brown)?| x|q"\\\n|é|\x7f'),
    ({"grammar": 'start: "(" start ")" | "x  y" | /[0-9]/'}, r"\(*(x  y|[0-9])\)*"),
    ({"grammar": 'start: "a:" %json {"type": "boolean"}'}, r"a:\s*(true|false)\s*"),
]


@pytest.mark.parametrize(("options", "pattern"), TEXTS, ids=lambda value: str(value)[:30])
def test_texts_match_whatever_the_prompt(generator: TextGenerator, options: dict[str, Any], pattern: str) -> None:
    """A prompt of ids is continued as one of text is: no tokenizer drops the first space of the continuation."""
    for seed in range(4):
        for prompt in ("the ", [5, 6]):
            text = generator.generate(prompt, seed=seed, temperature=2.0, max_new_tokens=60, **options)
            assert generator.last is not None
            if generator.last.finish_reason == "stop":
                assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("kind", ["byte level", "tiktoken"])
def test_masks_are_those_of_llguidances_own_tokenizers(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    if kind == "tiktoken":
        import tiktoken
        from llguidance.tiktoken import lltokenizer_from_encoding

        ranks, special = tokenizer.mergeable_ranks, tokenizer.special_tokens
        pattern = tokenizer.as_tiktoken()._pat_str
        encoding = tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        theirs, end = lltokenizer_from_encoding(encoding, eos_token=300), 300
    else:
        tokenizer.save(tmp_path / "tokenizer.json")
        end = tokenizer.special_tokens["</s>"]
        theirs = llguidance.LLTokenizer((tmp_path / "tokenizer.json").read_text(), eos_token=end)
    generator = TextGenerator(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    forced = 0
    for schema in SCHEMAS[::3]:
        constraint = generator.options(json_schema=schema).constraint
        assert constraint is not None
        state, ids = ConstraintState(constraint), list[int]()
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = llguidance.LLMatcher(theirs, grammar, log_level=0)
        for step in range(60):
            (ours_V,) = constraint_bias([state], [ids], [(end,)], tokenizer.vocab_size, torch.device("cpu"))
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            wanted = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
            allowed = (ours_V == 0).nonzero().flatten().tolist()
            assert allowed == wanted.tolist()
            assert state.forced_ids(ids) == matcher.compute_ff_tokens()
            forced += bool(matcher.compute_ff_tokens())
            new_id = random.Random(step).choice(allowed)
            if new_id == end:
                break
            ids.append(new_id)
            assert matcher.consume_token(new_id)
            if state.is_complete(ids):
                assert matcher.is_stopped()
                break
    assert forced > 20


def test_a_decoder_that_changes_tokens_by_their_neighbours_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import decoders, models, pre_tokenizers, trainers

    theirs = Theirs(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=99, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    theirs.train_from_iterator(CORPUS, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    generator = TextGenerator(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    with pytest.raises(ValueError, match="needs a tokenizer with a fixed text for each token"):
        generator.generate("the", regex="a")
