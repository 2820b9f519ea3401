"""Where a class of transformers splits text otherwise than the folder's tokenizer.json, we follow the file and warn."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HF
from transformers import AutoTokenizer

from bpe_llama import Tokenizer
from bpe_llama._loading.tokenizer_classes import CLASSES

SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), SPLIT])
LLAMA_2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
GEMMA = (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))
# Normalizer and pre-tokenizer of a file.
FILES: dict[str, tuple[Any, Any]] = {
    "gpt2": (None, SPLIT),
    "prefix space": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": (None, DIGITS),
    "gpt-neox": (normalizers.NFC(), SPLIT),
    "cohere": (normalizers.NFC(), DIGITS),
    "llama 2": (LLAMA_2, None),
    "llama": (None, pre_tokenizers.Metaspace("▁", "first", split=False)),
    "llama, legacy": (None, pre_tokenizers.Metaspace("▁", "always", split=False)),
    "gemma": GEMMA,
}
NAMES = ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer", "Qwen3_5Tokenizer"]
NAMES += ["PreTrainedTokenizerFast", "GPT2TokenizerFast", *CLASSES]


def write(folder: Path, file: str, config: dict[str, Any], model_type: str | None) -> None:
    normalizer, pre_tokenizer = FILES[file]
    is_byte_level = file in ("gpt2", "prefix space", "smollm", "gpt-neox", "cohere")
    letters = (
        pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [*"▁ab1é", *(f"<0x{i:02X}>" for i in range(256))]
    )
    roles = ["<unk>", "<s>", "</s>", "<pad>", "<mask>", "[CLS]", "[SEP]", "<|endoftext|>", "<|startoftext|>"]
    roles += ["<|startoftranscript|>", "<|notimestamps|>"]
    vocab = {token: i for i, token in enumerate([*roles, *sorted(letters)])}
    backend = HF(models.BPE(vocab, [], unk_token=None if is_byte_level else "<unk>", byte_fallback=not is_byte_level))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel() if is_byte_level else decoders.Fuse()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")


def file_of(name: str) -> str:
    """Return the file that fits a class."""
    return "llama" if name.startswith(("Llama", "CodeLlama", "Gemma")) else "gpt2"


def add(folder: Path, tokens: list[Any], special: bool = False) -> HF:
    """Add tokens to the file of a folder, and return its tokenizer."""
    backend = HF.from_file(str(folder / "tokenizer.json"))
    (backend.add_special_tokens if special else backend.add_tokens)(tokens)
    backend.save(str(folder / "tokenizer.json"))
    return backend


TEXTS = ["ab 11", " a", "a\n b  1", "é", "a <mask>b", "<|endoftext|>a</s>", "<x> <y>b"]


def outcomes(tokenizer: Any) -> dict[str, list[Any]]:
    """Return what a tokenizer makes of texts, pairs and ids; ours and transformers' take the same calls."""
    options: dict[str, Any] = {"return_offsets_mapping": True, "return_token_type_ids": True}
    if isinstance(tokenizer, Tokenizer):
        options["allowed_special"] = "all"
    encoded = [tokenizer(*texts, **options) for texts in [(text,) for text in TEXTS] + [("a 1", " b"), ("", "a")]]
    bare = [tokenizer(text, add_special_tokens=False, **options)["input_ids"] for text in TEXTS]
    rows = [[i] for i in range(len(tokenizer))] + [row["input_ids"] for row in encoded] + bare
    name = type(tokenizer).id_to_token if isinstance(tokenizer, Tokenizer) else type(tokenizer).convert_ids_to_tokens
    return {
        "ids": bare,
        "with special tokens": [(row["input_ids"], row["token_type_ids"]) for row in encoded],
        "offsets": [list(map(tuple, row["offset_mapping"])) for row in encoded],
        "text": [tokenizer.decode(row) for row in rows],
        "text without": [tokenizer.decode(row, skip_special_tokens=True) for row in rows],
        "tokens": [name(tokenizer, i) for i in range(len(tokenizer))],
    }


def check(folder: Path, is_as_file: bool | None = None) -> None:
    """Hold ours equal to the file and, unless it warns, to the class; ``is_as_file`` is whether the class builds it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*which is ignored")
        ours = Tokenizer.from_file(folder)
    said = [str(warning.message) for warning in caught]
    assert len(said) <= 1 and all("in its place" in message for message in said)
    assert all(warning.filename == __file__ for warning in caught)
    try:
        theirs = outcomes(AutoTokenizer.from_pretrained(folder))
    except Exception as error:  # a class that cannot be built of this file
        assert said, error
        return
    mine = outcomes(ours)
    differs = [key for key in mine if mine[key] != theirs[key]]
    assert said or not differs, differs
    if is_as_file is not None:
        assert bool(said) != is_as_file, said
    backend = HF.from_file(str(folder / "tokenizer.json"))
    for text in ("ab 11", " a", "a\n b  1", "é"):
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_a_class_with_another_pre_tokenizer_warns(name: str, file: str, tmp_path: Path) -> None:
    write(tmp_path, file, {"tokenizer_class": name}, None)
    check(tmp_path)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("file", ["smollm", "llama 2", "gemma"])
@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "phi3", "gpt2", "gemma2", "mistral", "gpt_bigcode", "unknown"]
)
def test_the_model_type_may_override_the_class(name: str | None, file: str, model_type: str, tmp_path: Path) -> None:
    write(tmp_path, file, {} if name is None else {"tokenizer_class": name}, model_type)
    check(tmp_path)


OPTIONS: list[dict[str, Any]] = [{"add_prefix_space": True}, {"add_prefix_space": False}, {"legacy": True}]


@pytest.mark.parametrize("config", OPTIONS)
@pytest.mark.parametrize("file", ["gpt2", "prefix space", "llama", "llama, legacy"])
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer"])
def test_options_of_the_class_count(name: str, file: str, config: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, file, {"tokenizer_class": name, **config}, None)
    check(tmp_path)


STATED: list[dict[str, Any]] = [
    {},
    {"bos_token": "<s>", "additional_special_tokens": ["<A>"]},
    {"prefix_token": None, "pad_token": "<P>", "mask_token": None},
]


@pytest.mark.parametrize("stated", STATED, ids=["none", "some", "own"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_no_file_names_are_those_of_the_class(name: str, stated: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, file_of(name), {"tokenizer_class": name, **stated}, None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = Tokenizer.from_file(tmp_path)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert [ours.id_to_token(i) for i in range(len(ours))] == theirs.convert_ids_to_tokens(range(len(theirs)))
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role


BYTES = json.loads(pre_tokenizers.ByteLevel().__getstate__())
FALLBACK = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]


def around(before: str, after: str) -> dict[str, Any]:
    special = [(token, 1 if token == "<s>" else 2) for token in (before, after) if token]
    single = f"{before} $A {after}".strip()
    template = processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=special)
    return json.loads(template.__getstate__())


ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
STATES: dict[str, tuple[str, str, Any]] = {
    "no post-processor": ("gpt2", "post_processor", None),
    "offsets trimmed": ("gpt2", "post_processor", BYTES | {"add_prefix_space": False}),
    "offsets trimmed but for a first space": ("gpt2", "post_processor", BYTES),
    "offsets not trimmed": ("gpt2", "post_processor", BYTES | {"trim_offsets": False}),
    "neox trimmed": ("gpt-neox", "post_processor", BYTES | {"add_prefix_space": False}),
    "neox with ends": ("gpt-neox", "post_processor", around("<s>", "</s>")),
    "neox with nothing": ("gpt-neox", "post_processor", None),
    "ends": ("gpt2", "post_processor", around("<s>", "</s>")),
    "as roberta": ("gpt2", "post_processor", ROBERTA | {"trim_offsets": True, "add_prefix_space": False}),
    "as roberta, not trimmed": ("gpt2", "post_processor", ROBERTA | {"trim_offsets": False, "add_prefix_space": True}),
    "two of them": (
        "gpt2",
        "post_processor",
        {"type": "Sequence", "processors": [BYTES, around("<s>", "")]},
    ),
    "llama with bos": ("llama", "post_processor", around("<s>", "")),
    "llama's decoder": (
        "llama",
        "decoder",
        {"type": "Sequence", "decoders": [*FALLBACK, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    ),
    "gemma's decoder": ("gemma", "decoder", {"type": "Sequence", "decoders": FALLBACK}),
    "no decoder": ("gpt2", "decoder", None),
    "a decoder that fuses": ("gpt2", "decoder", {"type": "Fuse"}),
    "a decoder of a sequence": ("gpt2", "decoder", {"type": "Sequence", "decoders": [BYTES, {"type": "Fuse"}]}),
    "ignored merges": ("gpt2", "ignore_merges", True),
    "an unknown token": ("gpt2", "unk_token", "<unk>"),
    "an unknown token, fewer letters": ("gpt2", "unk_token -é", "<unk>"),
    "no fallback": ("llama", "byte_fallback", False),
    "unknown characters not fused": ("llama", "fuse_unk", False),
    "unknown characters not fused, gemma": ("gemma", "fuse_unk -<0xC3>", False),
    "a suffix": ("gpt2", "end_of_word_suffix", "</w>"),
    "a prefix": ("gpt2", "continuing_subword_prefix", "##"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", STATES)
def test_components_that_differ_in_a_class_warn(name: str, state: str, tmp_path: Path) -> None:
    file, key, value = STATES[state]
    write(tmp_path, file, {"tokenizer_class": name}, None)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    key, _, missing = key.partition(" -")
    (content if key in content else content["model"])[key] = value
    if missing:
        vocab = content["model"]["vocab"]
        gone = vocab.pop("Ã" if missing == "é" else missing)
        content["model"]["vocab"] = {token: i - (i > gone) for token, i in vocab.items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    check(tmp_path, True if name == "PreTrainedTokenizerFast" else None)


ADDED: dict[str, tuple[dict[str, Any], list[AddedToken]]] = {
    "of the file": ({}, [AddedToken("<x>", lstrip=True, special=True), AddedToken("b 1", normalized=False)]),
    "of the file, of a role": ({"mask_token": "<x>"}, [AddedToken("<x>", lstrip=True, special=True)]),
    "of the file, not listed": ({"added_tokens_decoder": {}}, [AddedToken("<x>", special=True)]),
    "of the file, listed": (
        {"added_tokens_decoder": {"900": {"content": "<y>"}, "5": {"content": "<x>", "special": True}}},
        [AddedToken("<x>", special=True), AddedToken("<y>", normalized=True)],
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("added", ADDED)
def test_added_tokens_that_differ_in_a_class_warn(name: str, added: str, tmp_path: Path) -> None:
    stated, tokens = ADDED[added]
    write(tmp_path, file_of(name), {"tokenizer_class": name, **stated}, None)
    add(tmp_path, tokens)
    check(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_saved_by_a_class_does_not_warn(name: str, tmp_path: Path) -> None:
    write(tmp_path, file_of(name), {"tokenizer_class": name}, None)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    # What these classes do to texts no tokenizer.json says.
    check(tmp_path, name not in ("CLIPTokenizer", "CodeLlamaTokenizer", "WhisperTokenizer"))


BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an empty tokenizer_config.json": {"tokenizer_config": {}},
    "an empty special_tokens_map.json": {"special_tokens_map": {}},
    "other settings": {"tokenizer_config": {"model_max_length": 77, "tokenizer_class": "PreTrainedTokenizerFast"}},
    "a class that nobody knows": {"tokenizer_config": {"tokenizer_class": "MyTokenizer"}},
    "one end": {"special_tokens_map": {"eos_token": "</s>"}},
    "a config.json without a model": {"config": {"bos_token_id": 1, "eos_token_id": 2}},
    **{f"a {model}": {"config": {"model_type": model}} for model in ("llama", "mistral", "phi3", "gpt2", "gemma")},
    "a llama's class": {"config": {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"}},
}


@pytest.mark.filterwarnings("ignore:.*transformers 5")
@pytest.mark.parametrize("file", ["gpt2", "llama"])
@pytest.mark.parametrize("beside", BESIDE)
def test_a_folder_that_names_no_ends_has_those_of_the_class(beside: str, file: str, tmp_path: Path) -> None:
    write(tmp_path, file, {}, None)
    (tmp_path / "tokenizer_config.json").unlink()
    add(tmp_path, ["<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>"], special=True)
    for name, content in BESIDE[beside].items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    roads = [Tokenizer.from_file(tmp_path), Tokenizer.from_huggingface(tmp_path)]
    roads += [Tokenizer.from_file(tmp_path / "tokenizer.json")] if BESIDE[beside] else []
    for ours in roads:
        for role in ("bos", "eos", "pad", "unk"):
            assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role
        assert ours.special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize(
    "stated",
    [
        {"extra_special_tokens": ["<x>"]},
        {"additional_special_tokens": ["<x>"]},
        {"extra_special_tokens": [{"content": "<x>", "lstrip": True, "__type": "AddedToken"}]},
        {"extra_special_tokens": {"image_token": "<x>"}},
        {"cls_token": "<x>"},
        {"cls_token": {"content": "<x>", "special": False, "__type": "AddedToken"}},
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_only_a_role_makes_a_token_of_the_file_special(stated: dict[str, Any], name: str, tmp_path: Path) -> None:
    write(tmp_path, "gpt2", {}, None)
    add(tmp_path, ["<x>"])
    (tmp_path / name).write_text(json.dumps(stated), encoding="utf-8")
    ours, theirs = Tokenizer.from_file(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    flags = json.loads(theirs.backend_tokenizer.to_str())["added_tokens"]
    assert json.loads(ours.added_tokens_json()) == flags
    ids = theirs("a <x>b").input_ids
    assert ours("a <x>b", allowed_special="all")["input_ids"] == ids
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_a_file_without_a_folder_has_the_ends_of_common_names(tmp_path: Path) -> None:
    write(tmp_path, "gpt2", {}, None)
    (tmp_path / "tokenizer_config.json").unlink()
    path = tmp_path / "tokenizer.json"
    assert Tokenizer.from_file(path).eos_id is None  # ordinary tokens of these names do not count
    backend = add(tmp_path, ["<s>", "</s>"], special=True)
    for ours in (Tokenizer.from_file(path), Tokenizer.from_huggingface(path)):
        assert (ours.bos_id, ours.eos_id) == (backend.token_to_id("<s>"), backend.token_to_id("</s>"))
    assert Tokenizer.from_file(tmp_path).eos_id is None


OWN, X = AddedToken("<o>", special=True), {"content": "<x>", "special": True}
GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "the id of a token": ({"5": X}, {}, r"added_tokens_decoder gives token '<x>' the id 5, .*: it is 268"),
    "the id of an added token": ({"267": X}, {}, "'<x>' the id 267, .*: it is 268"),
    "a token that has another": ({"9": {"content": "<s>", "special": True}}, {}, "'<s>' the id 9, .*: it is 1"),
    "two ids": ({"9": X, "268": X}, {}, "'<x>' the id 9, .*: it is 268"),
    "a far id": ({"900": X}, {}, "'<x>' the id 900, .*: it is 268"),
    "the next id": ({"268": X}, {}, None),
    "the same token, other flags": ({"267": {"content": "<o>", "lstrip": True}}, {}, None),
    "added_tokens.json, the id of a token": (
        {},
        {"<x>": 5},
        r"added_tokens\.json gives token '<x>' the id 5, .*: it is 268",
    ),
    "added_tokens.json, the id of an added token": ({}, {"<x>": 267}, "'<x>' the id 267, .*: it is left out"),
    "added_tokens.json, one id twice": ({}, {"<x>": 268, "<y>": 268}, "'<x>' the id 268, .*: it is left out"),
    "added_tokens.json, the next id": ({}, {"<x>": 268, "<o>": 267}, None),
}


@pytest.mark.parametrize("given", GIVEN)
def test_an_id_of_another_token_is_ignored_as_in_transformers(given: str, tmp_path: Path) -> None:
    decoder, added, message = GIVEN[given]
    write(tmp_path, "gpt2", {"added_tokens_decoder": decoder} if decoder else {}, None)
    add(tmp_path, [OWN])
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = Tokenizer.from_file(tmp_path)
    assert [warning.filename for warning in caught] == [__file__] * (message is not None)
    assert all(re.search(str(message), str(warning.message)) for warning in caught)
    assert ours.added_tokens == theirs.added_tokens_encoder
    assert outcomes(ours) == outcomes(theirs)


def test_an_added_token_that_would_share_an_id_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "gpt2", {"added_tokens_decoder": {"300": X}}, None)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] += 1
    path.write_text(json.dumps(content), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids("<x>") == theirs.convert_tokens_to_ids(last) == 267
    with pytest.raises(ValueError, match=r"'<x>' gets id 267, .* but a token of the vocabulary has that id"):
        Tokenizer.from_file(tmp_path)


def test_a_token_listed_twice_with_other_flags_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "gpt2", {"added_tokens_decoder": {"300": X, "301": X | {"lstrip": True}}}, None)
    with pytest.raises(ValueError, match=r"added_tokens_decoder\.301 gives token '<x>' again, with other flags"):
        Tokenizer.from_file(tmp_path)
