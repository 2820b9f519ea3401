"""Read a ``vocab.json`` and a ``merges.txt`` as transformers does."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._ends import END_ROLES, Ends
from bpe_llama._files import errors_naming, read_json, read_text
from bpe_llama._loading.added_tokens import AddedTokens, read_stated_tokens, warn_of_ignored_ids
from bpe_llama._loading.components import post_processor
from bpe_llama._loading.folder import TokenizerAttributes, read_attributes, read_object
from bpe_llama._loading.tokenizer_classes import CLASSES, Json, TokenizerClass, class_name_for

# Fields of a tokenizer_config.json that change ids and are not supported; `read_settings` refuses more.
_REFUSED = ("vocab", "merges", "dropout", "init_inputs", "language")
_WHISPER_PROMPT = "<|startofprev|>"


def read_tokenizer(path: Path) -> tuple[CoreTokenizer, TokenizerAttributes]:
    """Return the tokenizer of a ``vocab.json`` and a ``merges.txt``, and the content of the files beside them.

    Args:
        path: Either file; the other one is in the same folder.

    Raises:
        FileNotFoundError: If one of the two is missing.
        ValueError: If a file is damaged, or a class or an option is unknown; the message names it.
    """
    text, ends, read = describe(path.parent)
    with errors_naming(path.parent):
        core = CoreTokenizer.build_from_huggingface(text.encode()).with_ends(*ends)
    config, added = (read_object(path.parent / name) for name in ("tokenizer_config.json", "added_tokens.json"))
    warn_of_ignored_ids(path.parent, core, config, added)
    name = _class_name(config, read_object(path.parent / "config.json"))
    if name == "WhisperTokenizer" and core.token_to_id(_WHISPER_PROMPT) is not None:
        warnings.warn(
            f"{path.parent}: with skip_special_tokens, transformers' WhisperTokenizer also omits the text of a prompt "
            f"that {_WHISPER_PROMPT} starts; here decode omits special tokens alone",
            stacklevel=4,
        )
    return core, read


def describe(folder: Path) -> tuple[str, Ends, TokenizerAttributes]:
    """Return the tokenizer.json of a folder as transformers builds it, its special-token ids, and its settings.

    ``tokenizer_config.json`` or else ``config.json`` names the class that builds the pipeline. The default is GPT-2's.

    Raises:
        FileNotFoundError: If the folder lacks ``vocab.json`` or ``merges.txt``.
        ValueError: As for :func:`read_tokenizer`.

    Source: ``AutoTokenizer`` of transformers 5.23 and the classes in ``models/*/tokenization_*.py``.
    """
    for name, other in (("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; expected it beside {other}")
    vocab = _read_vocab(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt", vocab)
    config, special_map, added_file = (
        read_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    with errors_naming(folder):
        name = _class_name(config, read_object(folder / "config.json"))
        described = CLASSES[name]
        _check_options(config)
        stated = read_stated_tokens(described.tokens, config, special_map, added_file)
        added = AddedTokens(vocab)
        added.add(stated.to_add_by_class(name))
        roles = stated.named_texts()
        processor = post_processor(described, config, roles, added)
        text = _tokenizer_json(described, config, roles, added, processor, vocab, merges)
    others = {role: content for role, content in stated.names().items() if role not in END_ROLES}
    read = read_attributes(folder, config, others, stated.extra_names(), class_name=name)
    return text, Ends(*(added.id_of(roles[role] or "") for role in END_ROLES)), read


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_vocab(path: Path) -> dict[str, int]:
    by_id: dict[int, str] = {}

    def pairs(items: list[tuple[str, Any]]) -> dict[str, int]:
        vocab: dict[str, int] = {}
        for token, token_id in items:
            if type(token_id) is not int or not 0 <= token_id < 2**32:
                raise ValueError(f"token {shown(token)} has id {shown(token_id)}; expected a number from 0")
            if token in vocab:
                raise ValueError(f"token {shown(token)} is given twice, with ids {vocab[token]} and {token_id}")
            if token_id in by_id:
                raise ValueError(f"tokens {shown(by_id[token_id])} and {shown(token)} share id {token_id}")
            vocab[token], by_id[token_id] = token_id, token
        return vocab

    vocab = read_json(path, pairs)
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: expected an object of tokens and ids, got a {type(vocab).__name__}")
    return vocab


def _read_merges(path: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a file in order; the last place of a repeated merge counts.

    Source: ``BPE::read_file`` and ``BpeBuilder::build`` of Hugging Face `tokenizers` 0.23.
    """
    lines = read_text(path, newline="").split("\n")
    if not lines[-1]:
        lines.pop()
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"{path}: line {number} is {shown(line)}; expected two tokens with one space between")
        left, right = parts
        for token in (left, right, left + right):
            if token not in vocab:
                raise ValueError(
                    f"{path}: line {number} is {shown(line)}, but token {shown(token)} is not in vocab.json"
                )
        merges.pop((left, right), None)
        merges[left, right] = None
    return list(merges)


# -- options -----------------------------------------------------------------------------------------------------------


def _class_name(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str:
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    model_type = model_config.get("model_type")
    where = "tokenizer_class"
    if model_type == "qwen2" and name is not None:
        name = "Qwen2Tokenizer"  # as in transformers: these models often name a wrong class
    if name is None and model_type is not None:
        name, where = class_name_for(str(model_type)) or model_type, "config.json: model_type"
    if name is None:
        return "GPT2Tokenizer"
    known = name.removesuffix("Fast") if isinstance(name, str) else ""
    if known not in CLASSES:
        raise ValueError(
            f"{where} is {shown(name)}, which is no known class for a vocab.json and a merges.txt; "
            f"expected one of {', '.join(CLASSES)}"
        )
    return known


def _check_options(config: Mapping[str, Any]) -> None:
    for key in _REFUSED:
        if config.get(key):
            raise ValueError(f"tokenizer_config.json: {key} is {shown(config[key])}, which is not supported")
    for key in ("add_prefix_space", "trim_offsets", "add_bos_token", "add_eos_token", "predict_timestamps"):
        if not isinstance(config.get(key, False), bool | None):
            raise ValueError(f"tokenizer_config.json: {key} is {shown(config[key])}; expected true or false")


# -- writing -----------------------------------------------------------------------------------------------------------


def _tokenizer_json(
    described: TokenizerClass,
    config: Mapping[str, Any],
    roles: Mapping[str, str | None],
    added: AddedTokens,
    post_processor: Json,
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
) -> str:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": roles["unk_token"] if described.has_unk else None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": described.suffix,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "merges": merges,
    }
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added.as_json(),
        "normalizer": described.normalizer,
        "pre_tokenizer": described.pre_tokenizer(config),
        "post_processor": post_processor,
        "decoder": described.decoder(),
        "model": model,
    }
    return json.dumps(file, ensure_ascii=False)
