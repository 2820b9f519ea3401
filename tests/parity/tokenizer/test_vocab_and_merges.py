"""A folder of vocab.json and merges.txt is the tokenizer that transformers makes of it, for each of its classes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

from bpe_llama import Tokenizer
from bpe_llama._loading import vocab_and_merges
from bpe_llama._loading.tokenizer_classes import CLASSES

Config = dict[str, Any]
END = "<|endoftext|>"
SAMPLE = "the theory of other things, it's 12 o'clock 345\n\n  naïve café 中文 привет Hello HELLO <mask> </s> \t" * 4
TEXTS = [
    *("", " ", "the other", " the", "The  theory\n\n of", "it's 12345 o'clock", "naïve cafe\u0301", "中文 привет"),
    *("a<mask>b <mask> c", "<s>the</s>", f"x{END}{END} y", "<|im_start|>user\nhi<|im_end|>"),
    *("</w> the</w>", "\x1c the \x1d"),
    *("[MASK] [CLS]", "<pad><unk>", "  spaces   and\ttabs  ", "HELLO hello ſK'S", "new_word newer", "<image>x<IMAGE>"),
]


def token(content: str, **flags: bool) -> Config:
    """Return a token as added_tokens_decoder has it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


def typed(content: str, **flags: bool) -> Config:
    """Return a token as tokenizer_config.json of transformers 4 has it."""
    return {"__type": "AddedToken", **token(content, **flags)}


def train(folder: Path, class_name: str) -> None:
    """Write a vocab.json and a merges.txt, of the kind that a class reads."""
    described = CLASSES[class_name]
    suffix = {"end_of_word_suffix": described.suffix} if described.suffix else {}
    model = models.BPE(unk_token="<unk>", **suffix)
    tokenizer = tokenizers.Tokenizer(model)
    special = list(dict.fromkeys(filter(None, described.tokens.values()))) + (["</w>"] if described.suffix else [])
    if described.byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer, alphabet = pre_tokenizers.BertPreTokenizer(), []
    size = {"vocab_size": 420, "show_progress": False, "initial_alphabet": alphabet, "special_tokens": special}
    trainer = trainers.BpeTrainer(**size, **suffix)
    tokenizer.train_from_iterator([SAMPLE, SAMPLE.lower()], trainer)
    tokenizer.model.save(str(folder))


def write(folder: Path, class_name: str, stated: Config | None = None, /, **files: Config) -> Path:
    """Write a folder whose tokenizer_config.json names a class; ``files`` are further JSON files."""
    train(folder, class_name)
    if stated is not None:
        files["tokenizer_config"] = {"tokenizer_class": class_name, **stated}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def load(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def comparable(text: str) -> Config:
    """Return a tokenizer.json without what has no meaning: the order of entries, and absent or empty affixes."""
    file: Config = json.loads(text)
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        file["model"][affix] = file["model"][affix] or None
    return file


VARIANTS: dict[str, Config] = {
    "plain": {},
    "prefix space": {"add_prefix_space": True},
    "offsets not trimmed": {"trim_offsets": False},
    "ends": {"add_bos_token": True, "add_eos_token": True},
    "ends off": {"add_bos_token": False, "add_eos_token": False},
    "other tokens": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<new pad>", "cls_token": "<c>"},
    "typed tokens": {
        "mask_token": typed("<mask>", lstrip=True),
        "eos_token": typed("</s>", rstrip=True),
        "add_eos_token": True,
    },
    "listed": {
        "added_tokens_decoder": {
            "900": token("<|im_end|>"),
            "899": token("<|im_start|>"),
            "7": token("new", special=False, normalized=True),
            "8": token("Word", special=False, normalized=True, single_word=True),
            "9": {"content": "</s>", "special": False, "lstrip": True},
            "10": {"content": "café", "rstrip": True},
        },
        "eos_token": "<|im_end|>",
        "pad_token": "</s>",
        "additional_special_tokens": ["<|im_start|>", "<|extra|>"],
    },
    "roles of its own": {
        "image_token": "<image>",
        "extra_special_tokens": {"video_token": "<video>", "b_token": "new"},
    },
    "extra tokens": {"extra_special_tokens": ["<image>", typed("<video>", lstrip=True), "</s>"]},
    "extra tokens under both names": {"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]},
    "role of its own, typed": {"image_token": typed("<image>", rstrip=True), "boi_token": "<boi>"},
    "roles saved by transformers 5": {"model_specific_special_tokens": {"image_token": "<image>"}},
    "options without a part in encoding": {
        "model_max_length": 77,
        "errors": "strict",
        "padding_side": "left",
        "clean_up_tokenization_spaces": True,
        "name_or_path": "x",
    },
}


@pytest.fixture(params=[(name, variant) for name in CLASSES for variant in VARIANTS], ids=lambda pair: "-".join(pair))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, variant = request.param
    return write(tmp_path, name, VARIANTS[variant])


def check_same_file(folder: Path, loaded: transformers.PreTrainedTokenizerBase) -> None:
    text, ends, _ = vocab_and_merges.describe(folder)
    ours, theirs = comparable(text), comparable(loaded.backend_tokenizer.to_str())
    if ours["decoder"] != theirs["decoder"]:
        assert type(loaded).__name__ in ("CLIPTokenizer", "WhisperTokenizer")  # they change what the decoder gives
        del ours["decoder"], theirs["decoder"]
    assert ours == theirs
    expected = (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id)
    assert tuple(ends) == expected
    # The text is what tokenizers reads, and decodes as transformers' class does.
    read = tokenizers.Tokenizer.from_str(text)
    draw = random.Random(0)
    for _ in range(50):
        ids = [draw.randrange(read.get_vocab_size()) for _ in range(draw.randrange(9))]
        for skip in (False, True):
            assert read.decode(ids, skip_special_tokens=skip) == loaded.decode(ids, skip_special_tokens=skip)


def test_the_tokenizer_json_is_transformers(folder: Path) -> None:
    check_same_file(folder, load(folder))


LEGACY: dict[str, tuple[Config, Config, Config]] = {
    "opt": (
        {"bos_token": typed("</s>", normalized=True), "add_bos_token": True, "pad_token": "<pad>"},
        {"bos_token": token("</s>") | {"normalized": True}, "unk_token": "<unk>", "pad_token": None},
        {},
    ),
    "whisper": (
        {"eos_token": typed(END), "unk_token": "<unk>", "task": "transcribe"},
        {"eos_token": token(END), "additional_special_tokens": ["<|startoftranscript|>", "<|transcribe|>"]},
        {"<|startoftranscript|>": 900, "<|transcribe|>": 902, "<|notimestamps|>": 901, END: 3, "plain": 950},
    ),
    "the map goes before the config": (
        {"eos_token": "</s>", "extra_special_tokens": ["<a>"]},
        {
            "eos_token": "<e>",
            "extra_special_tokens": ["<a>", {"content": "<b>", "lstrip": True}],
            "image_token": "<image>",
        },
        {"<e>": 900, "<a>": 901, "<b>": 905, "<c>": 904},
    ),
    "extra tokens by name": (
        {"extra_special_tokens": {"x_token": "<x>"}},
        {"extra_special_tokens": {"y_token": "<y>"}, "additional_special_tokens": ["<z>"]},
        {"<x>": 900, "<z>": 901},
    ),
    "a config's list counts alone": (
        {"added_tokens_decoder": {"5": token("<a>")}},
        {"eos_token": "<not read>"},
        {"<not read either>": 900},
    ),
}


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "WhisperTokenizer", "Qwen2Tokenizer", "CohereTokenizer", "CLIPTokenizer"]
)
@pytest.mark.parametrize("files", LEGACY)
def test_special_tokens_map_and_added_tokens(tmp_path: Path, name: str, files: str) -> None:
    config, special_map, added = LEGACY[files]
    folder = write(tmp_path, name, config, special_tokens_map=special_map, added_tokens=added)
    check_same_file(folder, load(folder))


def random_files(draw: random.Random) -> tuple[Config, dict[str, Config]]:
    """Return a tokenizer_config.json and files beside it that mention the same few tokens in all ways there are."""
    names = ["<a>", "<b>", "the", "</s>", "B", END, "<|new|>", " x "]

    def flags() -> dict[str, bool]:
        return {
            key: draw.random() < 0.5 for key in ("lstrip", "rstrip", "single_word", "special") if draw.random() < 0.5
        }

    def some(*, is_typed: bool) -> Any:
        content = draw.choice(names)
        return draw.choice([content, ({"__type": "AddedToken"} if is_typed else {}) | {"content": content, **flags()}])

    roles = ["bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "image_token", "x_token"]
    config: Config = {role: some(is_typed=True) for role in roles if draw.random() < 0.4}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if draw.random() < 0.3:
            config[key] = [some(is_typed=True) for _ in range(draw.randrange(3))]
        elif draw.random() < 0.2:
            config[key] = {f"{draw.choice('yz')}_token": draw.choice(names)}
    for key in ("add_bos_token", "add_eos_token"):
        if draw.random() < 0.3:
            config[key] = draw.random() < 0.7
    if draw.random() < 0.5:
        listed = {
            str(draw.randrange(500)): {"content": draw.choice(names), **flags()} for _ in range(draw.randrange(4))
        }
        config["added_tokens_decoder"] = listed
    special_map: Config = {role: some(is_typed=False) for role in roles if draw.random() < 0.2}
    if draw.random() < 0.3:
        special_map["additional_special_tokens"] = [draw.choice(names) for _ in range(draw.randrange(3))]
    if draw.random() < 0.3:
        special_map["extra_special_tokens"] = [some(is_typed=False) for _ in range(draw.randrange(3))]
    added = {draw.choice(names): draw.randrange(900) for _ in range(draw.randrange(3))}
    return config, {"special_tokens_map": special_map, "added_tokens": added}


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "CohereTokenizer", "RobertaTokenizer"])
def test_random_files_are_the_same_or_refused(tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    same = 0
    for _ in range(150):
        config, files = random_files(draw)
        folder = write(tmp_path, name, config, **files)
        try:
            text, *_ = vocab_and_merges.describe(folder)
        except ValueError:
            continue
        try:
            loaded = load(folder)
        except TypeError:
            continue  # a flag that transformers takes in one file and not in another
        assert comparable(text) == comparable(loaded.backend_tokenizer.to_str()), (config, files)
        same += 1
    assert same > 75


@pytest.mark.parametrize(
    ("config", "model_config", "class_name"),
    [
        ({"tokenizer_class": "GPT2TokenizerFast"}, {}, "GPT2Tokenizer"),
        ({"tokenizer_class": "BartTokenizer"}, {"model_type": "bart"}, "RobertaTokenizer"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"model_type": "opt"}, "GPT2Tokenizer"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"model_type": "qwen2"}, "Qwen2Tokenizer"),
        ({"tokenizer_class": "GPT2Tokenizer"}, {"model_type": "gpt_neox"}, "GPT2Tokenizer"),
        ({}, {"model_type": "roberta"}, "RobertaTokenizer"),
        ({}, {"model_type": "starcoder2"}, "GPT2Tokenizer"),
        ({}, {"model_type": "qwen3"}, "Qwen2Tokenizer"),
        ({}, {"model_type": "gpt2", "tokenizer_class": "GPTNeoXTokenizer"}, "GPTNeoXTokenizer"),
    ],
)
def test_the_class_is_that_of_auto_tokenizer(
    tmp_path: Path, config: Config, model_config: Config, class_name: str
) -> None:
    folder = write(tmp_path, "GPT2Tokenizer", tokenizer_config=config, config=model_config)
    loaded = load(folder)
    assert type(loaded).__name__ == class_name
    check_same_file(folder, loaded)


def test_a_model_type_that_names_a_class_names_transformers() -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    from bpe_llama._loading.tokenizer_classes import _BY_MODEL_TYPE

    for name, types in _BY_MODEL_TYPE.items():
        for model_type in types.split():
            theirs = tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES[model_type])
            assert theirs is tokenizer_class_from_name(name), model_type


def test_an_ignored_id_warns(tmp_path: Path) -> None:
    folder = write(tmp_path, "GPT2Tokenizer", {"added_tokens_decoder": {"5": token("<x>")}})
    with pytest.warns(UserWarning, match=r"added_tokens_decoder gives token '<x>' the id 5, .*: it is") as caught:
        ours = Tokenizer.from_file(folder)
    assert caught[0].filename == __file__
    assert ours.token_to_id("<x>") == load(folder).convert_tokens_to_ids("<x>")


def test_timestamps_of_whisper_are_left_out_of_texts(tmp_path: Path) -> None:
    folder = write(tmp_path, "WhisperTokenizer", {})
    theirs, ours = load(folder), Tokenizer.from_file(folder)
    ids = theirs("a<|1.00|>b <|12.5|> <|1|>", add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids) == "ab  <|1|>"


def test_prompts_of_whisper_warn(tmp_path: Path) -> None:
    special = ["<|startofprev|>", "<|startoftranscript|>"]
    folder = write(tmp_path, "WhisperTokenizer", {"extra_special_tokens": special})
    with pytest.warns(UserWarning, match="omits the text of a prompt that <.startofprev.> starts"):
        ours = Tokenizer.from_file(folder)
    theirs = load(folder)
    ids = theirs("<|startofprev|>a<|startoftranscript|>b", add_special_tokens=False)["input_ids"]
    decoded = ours.decode(ids, skip_special_tokens=True), theirs.decode(ids, skip_special_tokens=True)
    assert decoded == ("ab", "b")


def test_without_other_files_it_is_gpt2s(tmp_path: Path) -> None:
    folder = write(tmp_path, "GPT2Tokenizer")
    check_same_file(folder, transformers.GPT2Tokenizer.from_pretrained(folder))


READ = ["plain", "prefix space", "other tokens", "listed", "roles of its own"]


@pytest.mark.filterwarnings("ignore:.*the id [0-9]+, which is ignored")
@pytest.mark.parametrize("variant", READ)
@pytest.mark.parametrize("name", CLASSES)
def test_ids_and_texts_equal_transformers(tmp_path: Path, name: str, variant: str) -> None:
    folder = write(tmp_path, name, VARIANTS[variant])
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    theirs = load(folder)
    for path in (folder, folder / "vocab.json", folder / "merges.txt"):
        ours = Tokenizer.from_file(path)
        assert ours.chat_template == theirs.chat_template
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
        for text in TEXTS:
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text, allowed_special="all") == expected, text
            for skip in (False, True):
                their_text = theirs.backend_tokenizer.decode(expected, skip_special_tokens=skip)
                assert ours.decode(expected, skip_special_tokens=skip) == their_text
