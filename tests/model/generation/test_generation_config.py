"""Where a text begins and ends: what config, generation config, tokenizer and GGUF say, on every road and saved."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bpe_llama import Tokenizer
from bpe_llama._gguf.token_types import end_ids
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaForCausalLM, TextGenerator, lora
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.cli.chat import Conversation
from bpe_llama.model.cli.loading import save_with_tokenizer
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.generation.speculative import generate_speculative
from bpe_llama.model.generation_config import GenerationConfig
from tests.small_models import tiny_model

RANKS = {bytes([i]): i for i in range(256)} | {b"zz": 261}
SPECIAL = {"<s>": 256, "</s>": 257, "<|eot|>": 258, "<|im_end|>": 259, "<tool>": 260}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}"


def model_with(eos: Any = 257, **generation: Any) -> LlamaForCausalLM:
    model = tiny_model(seed=2, vocab_size=264, bos_token_id=256, eos_token_id=eos)
    model.generation_config = GenerationConfig(generation)
    return model


def tokenizer_with(eos: int | None = None, before: int | None = None, after: int | None = None) -> Tokenizer:
    plain = Tokenizer.from_ranks(RANKS, pattern="gpt2", special_tokens=SPECIAL)
    core = plain.with_ends(256, eos, None, None).with_template(before, after)
    return Tokenizer(core, chat_template=TEMPLATE)


@pytest.mark.parametrize(("named_by", "end"), [("config", 257), ("generation_config", 260), ("tokenizer", 258)])
def test_any_of_the_ends_ends_every_road(named_by: str, end: int) -> None:
    model = model_with(eos_token_id=[257, 260])
    generator = TextGenerator(model, tokenizer_with(eos=258))
    forced: dict[str, Any] = {"allowed_ids": [end], "max_new_tokens": 5}
    assert generator.end_ids == (257, 260, 258)
    assert generator.generate("a", **forced) == ""
    assert generator.last is not None
    assert generator.last.finish_reason == "stop"
    assert generator.generate_batch(["a", "bc"], **forced) == ["", ""]
    assert list(generator.stream([97], **forced)) == []
    assert generator.generate("a", n=2, **forced) == ["", ""]
    assert generator.generate("a", num_beams=2, **forced) == ""
    assert list(Conversation(generator, options=forced).answer("hi")) == []
    if named_by == "tokenizer":  # which roads without text do not know
        return
    assert model.generate(torch.tensor([[5]]), **forced).tolist() == [[5, end]]
    assert model.generate(torch.tensor([[5]]), num_beams=2, **forced).tolist() == [[5, end]]
    assert generate_speculative(model, [5], **forced).new_ids == [end]
    (sequence,) = Engine(model).prefill([[5]], [GenerationOptions(**forced)])
    assert sequence.finish_reason == "stop"


def test_the_caller_may_name_other_ends_or_none() -> None:
    generator = TextGenerator(model_with(eos_token_id=260), tokenizer_with(eos=258))
    for end in (257, 258, 260):
        options = {"allowed_ids": [end], "max_new_tokens": 3, "skip_special_tokens": False}
        assert generator.generate("a", **options, eos_id=()) != ""
        assert generator.generate("a", **options, eos_id=[end]) == ""


def test_a_prompt_begins_as_the_tokenizer_says() -> None:
    model, prompt = model_with(), list(b"ab")
    for before, after, expected in ((None, None, prompt), (256, None, [256, *prompt]), (256, 258, [256, *prompt, 258])):
        tokenizer = tokenizer_with(before=before, after=after)
        generator = TextGenerator(model, tokenizer)
        assert generator.encode("ab") == tokenizer("ab")["input_ids"] == expected
        generator.generate("ab", max_new_tokens=1)
        assert generator.last is not None
        assert generator.last.prompt == expected
        generator.generate_batch(["ab", "c"], max_new_tokens=1)
        assert generator.sequences[0].prompt == expected
        assert generator.encode("ab", bos=True) == [256, *prompt]
        assert generator.encode("ab", bos=False) == prompt
        assert generator.encode("")[:1] == [256]


def test_a_rendered_chat_gets_no_second_beginning() -> None:
    tokenizer = tokenizer_with(eos=258, before=256)
    generator = TextGenerator(model_with(), tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(messages)
    assert ids == [256, *b"hi", 258]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert generator.encode(text, allowed_special="all") == ids
    assert generator.encode(text, allowed_special=iter(generator.tokenizer.special_tokens)) == ids  # read once
    conversation = Conversation(generator, options={"max_new_tokens": 1})
    list(conversation.answer("hi"))
    assert generator.last is not None
    assert generator.last.prompt == ids
    assert generator.encode("<s>", allowed_special=()) == [256, *b"<s>"]


def test_a_file_that_names_ends_alone_goes_before_llamas_own(tmp_path: Path) -> None:
    model_with(eos=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LlamaForCausalLM.from_pretrained(tmp_path).end_ids == (2,)  # LLaMA's, as for transformers
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 260}')
    assert LlamaForCausalLM.from_pretrained(tmp_path).end_ids == (260,)


def test_without_the_file_config_json_gives_the_defaults(tmp_path: Path) -> None:
    model_with().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = {"do_sample": True, "temperature": 0.6, "top_k": 7, "repetition_penalty": 1.2, "num_beams": 1}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | said), encoding="utf-8")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    ours = LlamaForCausalLM.from_pretrained(tmp_path)
    assert {name: getattr(theirs, name) for name in said} == said == dict(ours.generation_config.values)
    defaults = {"temperature": 0.6, "top_p": 1.0, "top_k": 7, "repetition_penalty": 1.2}
    assert ours.generation_config.sampling_defaults == defaults
    ours.save_pretrained(tmp_path / "again")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "again").generation_config.sampling_defaults == defaults


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ({"max_length": 12}, {}),
        ({"max_length": 12, "max_new_tokens": 9}, {}),
        ({"max_length": 12}, {"max_new_tokens": 2}),
        ({"max_length": 12, "min_new_tokens": 30}, {}),
        ({"max_length": 12}, {"num_beams": 2}),
        ({"max_length": 5}, {}),
    ],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers' advice
def test_max_length_counts_the_prompt_as_in_transformers(
    tmp_path: Path, said: dict[str, Any], given: dict[str, Any], file: str
) -> None:
    model_with(eos=None).save_pretrained(tmp_path)
    path = tmp_path / file
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | said | {"do_sample": False}))
    theirs, ours = AutoModelForCausalLM.from_pretrained(tmp_path), LlamaForCausalLM.from_pretrained(tmp_path)
    ids, mask = torch.tensor([[0, 0, 5, 6, 7, 8], [4, 5, 6, 7, 8, 9]]), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    generator = TextGenerator(ours, tokenizer_with())
    for rows, seen in ((ids, mask), (ids[:1, 2:], mask[:1, 2:])):
        prompt = [int(i) for i in rows[-1]]
        if said["max_length"] <= rows.shape[1]:
            with pytest.raises(ValueError, match="`max_length` is set to 5"):
                theirs.generate(rows, attention_mask=seen, **given)
            expected = (
                "the prompt has 6 ids, and max_length of the model's generation_config.json is 5, prompt included"
            )
            for call in (lambda: ours.generate(rows, seen), lambda: generator.generate(prompt)):  # noqa: B023
                with pytest.raises(ValueError, match=expected):
                    call()
            continue
        wanted = theirs.generate(rows, attention_mask=seen, **given)
        assert ours.generate(rows, seen, **given).tolist() == wanted.tolist()
        generator.generate(prompt, **given)
        assert generator.last is not None and generator.last.ids == wanted[-1].tolist()
        if "num_beams" not in given:
            assert generate_speculative(ours, prompt, **given).new_ids == generator.last.new_ids


def test_a_saved_model_keeps_its_file_and_no_other(tmp_path: Path) -> None:
    said = {
        "eos_token_id": [257, 258],
        "temperature": 0.7,
        "transformers_version": "4.46.0",
        "cache_implementation": "x",
    }
    model_with(**said).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == said
    model_with().save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    model_with(eos_token_id=260).save_pretrained(tmp_path)  # the config's 257 would be lost to transformers
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [257, 260]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json: not valid JSON"),
        ("[1]", "generation_config.json: expected a JSON object, found list"),
        ('{"eos_token_id": "</s>"}', "generation_config.json: eos_token_id is '</s>'; expected an id or a list of ids"),
        ('{"eos_token_id": [1, 2.5]}', r"eos_token_id is \[1, 2\.5\]; expected an id or a list"),
        ('{"pad_token_id": 18446744073709551616}', "pad_token_id is 18446744073709551616; expected an id"),
        ('{"pad_token_id": [1]}', r"pad_token_id is \[1\]; expected an id"),
        ('{"do_sample": "no"}', "do_sample is 'no'; expected true or false"),
        ('{"temperature": "hot"}', "temperature is 'hot'; expected a number"),
        ('{"max_length": 4.5}', r"max_length is 4\.5; expected an integer"),
        ('{"top_k": 1.5}', r"top_k is 1\.5; expected an integer"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    model_with().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"num_beams": 4, "penalty_alpha": 0.6}, ["num_beams = 4", "penalty_alpha = 0.6"]),
        ({"guidance_scale": 1.5, "eos_token_id": 1}, ["guidance_scale = 1.5"]),
        ({"sequence_bias": [[[5], -1.0]], "forced_eos_token_id": 3}, ["sequence_bias", "forced_eos_token_id = 3"]),
        ({"warp_drive": True}, ["warp_drive = true"]),
        ({"num_beams": 1, "guidance_scale": None, "epsilon_cutoff": 0.0, "max_length": 40, "use_cache": True}, []),
    ],
)
def test_what_is_not_done_is_named(tmp_path: Path, said: dict[str, Any], named: list[str]) -> None:
    model_with().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert len(caught) == bool(named)
    for warning in caught:
        assert all(name in str(warning.message) for name in ["generation_config.json", *named])
        assert Path(warning.filename) == Path(__file__)
    assert model.generation_config.values == said


def test_ends_survive_gguf_and_back(tmp_path: Path) -> None:
    """260 is known by no text, 259 by its own: both end a text, in whatever format it is kept."""
    model = model_with(eos_token_id=[257, 260], do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.1)
    tokenizer = tokenizer_with(eos=258, before=256)
    with pytest.warns(UserWarning, match="it also ends generation at"):
        metadata = tokenizer_metadata(tokenizer, tokenizer.chat_template)
    save_gguf(model, tmp_path / "a.gguf", tokenizer=metadata)
    loaded, vocabulary = LlamaForCausalLM.from_pretrained(tmp_path / "a.gguf"), Tokenizer.from_gguf(tmp_path / "a.gguf")
    assert set(loaded.end_ids) >= {257, 258, 259, 260}
    assert loaded.generation_config.sampling_defaults == {
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": 20,
        "repetition_penalty": 1.1,
    }
    assert TextGenerator(loaded, vocabulary).encode("ab") == [256, *b"ab"]

    save_with_tokenizer(loaded, vocabulary, tmp_path / "b")
    again, words = LlamaForCausalLM.from_pretrained(tmp_path / "b"), Tokenizer.from_file(tmp_path / "b")
    assert set(again.end_ids) == set(loaded.end_ids)
    assert words.end_ids == vocabulary.end_ids >= {257, 258, 259, 260}
    assert TextGenerator(again, words).encode("ab") == [256, *b"ab"]
    assert again.generation_config.sampling_defaults == loaded.generation_config.sampling_defaults

    save_gguf(again, tmp_path / "c.gguf", tokenizer=tokenizer_metadata(words, words.chat_template))
    last = LlamaForCausalLM.from_pretrained(tmp_path / "c.gguf")
    assert set(last.end_ids) == set(loaded.end_ids)
    assert Tokenizer.from_gguf(tmp_path / "c.gguf").end_ids == vocabulary.end_ids
    assert last.generation_config.sampling_defaults == loaded.generation_config.sampling_defaults


def test_a_gguf_without_a_tokenizer_keeps_three_ends_and_names_the_rest(tmp_path: Path) -> None:
    save_gguf(model_with(eos_token_id=[257, 260, 5]), tmp_path / "a.gguf")
    assert set(LlamaForCausalLM.from_pretrained(tmp_path / "a.gguf").end_ids) == {257, 260, 5}
    with pytest.warns(UserWarning, match=r"keys for three ids that end a text; it has none for \[6\]"):
        save_gguf(model_with(eos_token_id=[257, 260, 5, 6]), tmp_path / "b.gguf")
    save_gguf(model_with(eos=None), tmp_path / "c.gguf")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "c.gguf").end_ids == ()


def test_defaults_that_a_gguf_has_no_key_for_are_named(tmp_path: Path) -> None:
    model = model_with()
    model.generation_config = GenerationConfig(
        {"suppress_tokens": [9], "stop_strings": "fox", "top_k": 3, "max_length": 40}
    )
    with pytest.warns(
        UserWarning, match=r"no place for .*: banned_ids = \[9\], max_length = 40, stop_strings = \['fox'\]"
    ):
        save_gguf(model, tmp_path / "a.gguf")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "a.gguf").generation_config.sampling_defaults == {"top_k": 3}


def test_a_model_with_an_adapter_is_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers were replaced .*save the adapter alone"):
        save_gguf(lora.add(model_with(), rank=2), tmp_path / "a.gguf")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("said", [{"do_sample": True, "temperature": 0.7}, {"do_sample": False, "temperature": 0.7}])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_do_sample_and_temperature_0_overrule_the_file(said: dict[str, Any], num_beams: int) -> None:
    model, ids = model_with(), torch.tensor([[5, 6]])
    generator = TextGenerator(model, tokenizer_with())
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": num_beams}
    greedy = model.generate(ids, temperature=0.0, **options).tolist()
    drawn = model.generate(ids, do_sample=True, temperature=0.7, top_p=1.0, **options).tolist()
    texts = [generator.generate([5, 6], temperature=0.0, **options)]
    texts.append(generator.generate([5, 6], do_sample=True, temperature=0.7, top_p=1.0, **options))
    assert greedy != drawn
    model.generation_config = GenerationConfig(said)
    assert model.generate(ids, temperature=0.0, **options).tolist() == greedy
    assert model.generate(ids, do_sample=False, **options).tolist() == greedy
    assert model.generate(ids, do_sample=True, **options).tolist() == drawn
    assert model.generate(ids, **options).tolist() == (drawn if said["do_sample"] else greedy)
    if num_beams == 2:
        both = model.generate(ids, temperature=0.0, num_return_sequences=2, **options)
        assert both.shape[0] == 2 and both[0].tolist() == greedy[0]
    assert generator.generate([5, 6], temperature=0.0, **options) == texts[0]
    assert generator.generate([5, 6], do_sample=False, **options) == texts[0]
    assert generator.generate([5, 6], do_sample=True, **options) == texts[1]
    for call in (lambda **more: model.generate(ids, **more), lambda **more: generator.generate([5, 6], **more)):
        with pytest.raises(ValueError, match="do_sample is True and temperature 0"):
            call(do_sample=True, temperature=0.0, **options)


def test_a_tokenizer_keeps_its_ends_when_saved(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="it also ends generation at"):
        metadata = tokenizer_metadata(tokenizer_with(eos=258))
    save_gguf(model_with(), tmp_path / "a.gguf", tokenizer=metadata)
    tokenizer = Tokenizer.from_gguf(tmp_path / "a.gguf")
    tokenizer.save(tmp_path / "b")
    assert Tokenizer.from_file(tmp_path / "b").end_ids == tokenizer.end_ids > {258}
    (tmp_path / "b" / "tokenizer_config.json").write_text('{"end_ids": ["</s>"]}')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: end_ids is \['</s>'\]; expected a list of ids"):
        Tokenizer.from_file(tmp_path / "b")
    assert end_ids({"tokenizer.ggml.eot_token_id": 7}, 32) == [7]
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.eot_token_id is 40; expected an id from 0 to 31"):
        end_ids({"tokenizer.ggml.eot_token_id": 40}, 32)


def test_stop_strings_of_the_file_end_a_text_unless_others_are_given() -> None:
    model = model_with(stop_strings=["zz", "b"])
    generator = TextGenerator(model, tokenizer_with())
    options: dict[str, Any] = {"allowed_ids": [98], "max_new_tokens": 3}
    assert generator.generate("a", **options) == ""
    assert generator.generate_batch(["a"], **options) == [""]
    assert generator.generate("a", stop=(), **options) == "bbb"
    assert generator.generate("a", stop="bb", **options) == ""
    with pytest.warns(UserWarning, match=r"names stop_strings = \['zz', 'b'\], at which only TextGenerator stops"):
        assert model.generate(torch.tensor([[97]]), **options).tolist() == [[97, 98, 98, 98]]
    with pytest.raises(ValueError, match=r"stop_strings is \[5\]; expected a string or a list"):
        GenerationConfig({"stop_strings": [5]})
    with pytest.raises(ValueError, match=r"stop_strings is 0; expected a string or a list"):  # false, but not absent
        GenerationConfig({"stop_strings": 0})


def test_a_folder_with_a_tokenizer_that_names_no_ends_ends_where_its_configs_say(tmp_path: Path) -> None:
    model_with(bos_token_id=256, eos_token_id=[257, 260]).save_pretrained(tmp_path)
    tokenizer_with().save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").unlink()
    loaded = TextGenerator(LlamaForCausalLM.from_pretrained(tmp_path), Tokenizer.from_file(tmp_path))
    assert (loaded.tokenizer.bos_id, loaded.tokenizer.eos_id) == (None, None)
    assert loaded.end_ids == (257, 260)
    assert loaded.generate("a", allowed_ids=[260], max_new_tokens=5) == ""
    assert loaded.last is not None and loaded.last.finish_reason == "stop"
    assert loaded.encode("") == [256]  # the generation config's
