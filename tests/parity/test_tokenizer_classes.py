"""Where a class of transformers splits text otherwise than the folder's tokenizer.json, we follow the file and warn."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HF
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from bpe_llama import Tokenizer
from bpe_llama._tokenizer_classes import CLASSES

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


def splitting(text: str) -> list[Any]:
    file = json.loads(text)

    def steps(part: Any) -> list[Any]:
        if part is None:
            return []
        if part["type"] == "Sequence":
            return [step for each in part.get("pretokenizers") or part["normalizers"] for step in steps(each)]
        return [{key: value for key, value in part.items() if key != "trim_offsets"}]

    return [steps(file["normalizer"]), steps(file["pre_tokenizer"])]


def check(folder: Path) -> None:
    theirs = splitting(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = Tokenizer.from_file(folder)
    differs = theirs != splitting((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert ["in its place" in str(warning.message) for warning in caught] == [True] * differs
    backend = HF.from_file(str(folder / "tokenizer.json"))
    for text in ("ab 11", " a", "a\n b  1", "é"):
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_a_class_that_splits_otherwise_is_warned_of(name: str, file: str, tmp_path: Path) -> None:
    write(tmp_path, file, {"tokenizer_class": name}, None)
    check(tmp_path)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("file", ["smollm", "llama 2", "gemma"])
@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "phi3", "gpt2", "gemma2", "mistral", "gpt_bigcode", "unknown"]
)
def test_the_model_has_a_say_in_which_class_counts(
    name: str | None, file: str, model_type: str, tmp_path: Path
) -> None:
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
    is_spaced = name.startswith(("Llama", "CodeLlama", "Gemma"))
    write(tmp_path, "llama" if is_spaced else "gpt2", {"tokenizer_class": name, **stated}, None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = Tokenizer.from_file(tmp_path)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert [ours.id_to_token(i) for i in range(len(ours))] == theirs.convert_ids_to_tokens(range(len(theirs)))
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role


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
    backend = HF.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    for name, content in BESIDE[beside].items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    roads = [Tokenizer.from_file(tmp_path), Tokenizer.from_huggingface(tmp_path)]
    roads += [Tokenizer.from_file(tmp_path / "tokenizer.json")] if BESIDE[beside] else []
    for ours in roads:
        for role in ("bos", "eos", "pad", "unk"):
            assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role
        assert ours.special_tokens_map == theirs.special_tokens_map


def test_a_file_named_by_itself_has_the_ends_of_usual_names(tmp_path: Path) -> None:
    write(tmp_path, "gpt2", {}, None)
    (tmp_path / "tokenizer_config.json").unlink()
    path = tmp_path / "tokenizer.json"
    assert Tokenizer.from_file(path).eos_id is None  # ordinary tokens of these names do not count
    backend = HF.from_file(str(path))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(path))
    for ours in (Tokenizer.from_file(path), Tokenizer.from_huggingface(path)):
        assert (ours.bos_id, ours.eos_id) == (backend.token_to_id("<s>"), backend.token_to_id("</s>"))
    assert Tokenizer.from_file(tmp_path).eos_id is None
