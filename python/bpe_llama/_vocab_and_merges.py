"""Read a ``vocab.json`` and a ``merges.txt`` into the tokenizer that transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bpe_llama import _core
from bpe_llama._added_tokens import AddedToken, AddedTokens, read_stated_tokens
from bpe_llama._ends import Ends
from bpe_llama._loading import Beside, beside, read_object
from bpe_llama._tokenizer_classes import CLASSES, Json, TokenizerClass, byte_level, class_name_for, trim_offsets

# Fields of a tokenizer_config.json that would change ids; `read_settings` refuses more.
_REFUSED = ("vocab", "merges", "dropout", "init_inputs", "language")


def read_tokenizer(path: Path) -> tuple[_core.Tokenizer, Beside]:
    """Return the tokenizer of a ``vocab.json`` and a ``merges.txt``, and what the files beside them say.

    Args:
        path: Either file; the other one is in the same folder.

    Raises:
        FileNotFoundError: If one of the two is missing.
        ValueError: If a file is damaged, or a class or an option is unknown; the message names it.
    """
    text, ends, read = describe(path.parent)
    try:
        core = _core.Tokenizer.build_from_huggingface(text.encode()).with_ends(*ends)
    except ValueError as error:
        raise ValueError(f"{path.parent}: {error}") from None
    return core, read


def describe(folder: Path) -> tuple[str, Ends, Beside]:
    """Return the tokenizer.json that transformers would make of a folder, the ids of its ends, and its settings.

    ``tokenizer_config.json`` names the class that builds the pipeline, or else ``config.json``. The default is GPT-2's.

    Raises:
        FileNotFoundError: If the folder lacks ``vocab.json`` or ``merges.txt``.
        ValueError: As for :func:`read_tokenizer`.

    Source: ``AutoTokenizer`` of transformers 5.23 and the classes in ``models/*/tokenization_*.py``.
    """
    for name, other in (("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file, without which {other} is no tokenizer")
    vocab = _read_vocab(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt", vocab)
    config, special_map, added_file = (
        read_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    try:
        name = _class_name(config, read_object(folder / "config.json"))
        described = CLASSES[name]
        _check_options(config)
        stated = read_stated_tokens(described.tokens, config, special_map, added_file)
        if name == "BlenderbotTokenizer" and isinstance(mask := stated.named["mask_token"], str):
            stated.named["mask_token"] = AddedToken(mask, lstrip=True, normalized=False)
        added = AddedTokens(vocab)
        added.add(stated.to_add())
        if name == "Qwen2Tokenizer":
            added.add(AddedToken(content, special=True) for content in stated.all_special())
        if name == "CohereTokenizer":
            added.add(
                AddedToken(token, special=True) if isinstance(token, str) else replace(token, special=True)
                for token in (*stated.named.values(), *stated.extra)
                if token is not None
            )
        roles = {role: _text_of(token) for role, token in stated.named.items()}
        processor = _post_processor(described, config, roles, added)
        text = _tokenizer_json(described, config, roles, added, processor, vocab, merges)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    ends = ("bos_token", "eos_token", "pad_token", "unk_token")
    others = {role: content for role, content in stated.names().items() if role not in ends}
    read = beside(folder, others, stated.extra_names(), config=config, class_name=name)
    return text, Ends(*(added.id_of(roles[role] or "") for role in ends)), read


def _text_of(token: str | AddedToken | None) -> str | None:
    return token.content if isinstance(token, AddedToken) else token


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_vocab(path: Path) -> dict[str, int]:
    by_id: dict[int, str] = {}

    def pairs(items: list[tuple[str, Any]]) -> dict[str, int]:
        vocab: dict[str, int] = {}
        for token, token_id in items:
            if type(token_id) is not int or not 0 <= token_id < 2**32:
                raise ValueError(f"token {token!r} has id {token_id!r}; expected a number from 0")
            if token in vocab:
                raise ValueError(f"token {token!r} is given twice, with ids {vocab[token]} and {token_id}")
            if token_id in by_id:
                raise ValueError(f"tokens {by_id[token_id]!r} and {token!r} share id {token_id}")
            vocab[token], by_id[token_id] = token_id, token
        return vocab

    try:
        vocab = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: expected an object of tokens and ids, got a {type(vocab).__name__}")
    return vocab


def _read_merges(path: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a file in order; a merge that is listed twice counts at its last place.

    Source: ``BPE::read_file`` and ``BpeBuilder::build`` of Hugging Face `tokenizers` 0.23.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    if not lines[-1]:
        lines.pop()
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"{path}: line {number} is {line!r}; expected two tokens with one space between")
        left, right = parts
        for token in (left, right, left + right):
            if token not in vocab:
                raise ValueError(f"{path}: line {number} is {line!r}, but token {token!r} is not in vocab.json")
        merges.pop((left, right), None)
        merges[left, right] = None
    return list(merges)


# -- what the files ask for --------------------------------------------------------------------------------------------


def _class_name(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str:
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    model_type = model_config.get("model_type")
    where = "tokenizer_class"
    if model_type == "qwen2" and name is not None:
        name = "Qwen2Tokenizer"  # transformers does not trust these models' own word
    if name is None and model_type is not None:
        name, where = class_name_for(str(model_type)) or model_type, "config.json: model_type"
    if name is None:
        return "GPT2Tokenizer"
    known = name.removesuffix("Fast") if isinstance(name, str) else ""
    if known not in CLASSES:
        raise ValueError(
            f"{where} is {name!r}, which is not known to read a vocab.json and a merges.txt; "
            f"expected one of {', '.join(CLASSES)}"
        )
    return known


def _check_options(config: Mapping[str, Any]) -> None:
    for key in _REFUSED:
        if config.get(key):
            raise ValueError(f"tokenizer_config.json: {key} is {config[key]!r}, which is not supported")
    for key in ("add_prefix_space", "trim_offsets", "add_bos_token", "add_eos_token", "predict_timestamps"):
        if not isinstance(config.get(key, False), bool | None):
            raise ValueError(f"tokenizer_config.json: {key} is {config[key]!r}; expected true or false")


# -- writing -----------------------------------------------------------------------------------------------------------


def _suffix_to_spaces(suffix: str) -> list[Json]:
    """Return the steps that make spaces of word ends, and take white space off both ends as ``str.strip`` does."""
    ends = {"Regex": r"\A[\s\x1c-\x1f]+|[\s\x1c-\x1f]+\z"}
    return [
        {"type": "Replace", "pattern": {"String": suffix}, "content": " "},
        {"type": "Replace", "pattern": ends, "content": ""},
    ]


def _tokenizer_json(
    described: TokenizerClass,
    config: Mapping[str, Any],
    roles: Mapping[str, str | None],
    added: AddedTokens,
    post_processor: Json,
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
) -> str:
    decoder = byte_level() if described.byte_level else {"type": "BPEDecoder", "suffix": described.suffix}
    if described.byte_level and described.suffix:
        decoder = {"type": "Sequence", "decoders": [decoder, *_suffix_to_spaces(described.suffix)]}
    unk = roles["unk_token"] if described.has_unk else None
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
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
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(file, ensure_ascii=False)


def _post_processor(
    described: TokenizerClass, config: Mapping[str, Any], roles: Mapping[str, str | None], added: AddedTokens
) -> Json:
    def token(role: str) -> tuple[str, int]:
        content = roles[role]
        token_id = None if content is None else added.id_of(content)
        if content is None or token_id is None:
            raise ValueError(f"tokenizer_config.json: {role} is null; expected the token that stands around a text")
        return content, token_id

    match described.post_processor:
        case "roberta":
            return {
                "type": "RobertaProcessing",
                "sep": token("sep_token"),
                "cls": token("cls_token"),
                "trim_offsets": trim_offsets(config),
                "add_prefix_space": described.prefix_space(config),
            }
        case "clip":
            ends = {"sep": token("eos_token"), "cls": token("bos_token")}
            return {"type": "RobertaProcessing", **ends, "trim_offsets": False, "add_prefix_space": False}
        case "bert":
            return {"type": "BertProcessing", "sep": (token("sep_token")[0], 2), "cls": (token("cls_token")[0], 0)}
        case "deberta":
            cls, sep = token("cls_token"), token("sep_token")
            return _template([cls, "A", sep], [cls, "A", sep, sep, "B", sep])
        case "whisper":
            prefix, end = _whisper_prefix(config, roles, added), token("eos_token")
            return _template([*prefix, "A", end], [*prefix, "A", "B:1", (*end, 1)])
        case "byte_level" if not {"add_bos_token", "add_eos_token"} & config.keys():
            return byte_level(add_prefix_space=True, trim_offsets=False)
    bos = [token("bos_token")] if config.get("add_bos_token") and roles["bos_token"] is not None else []
    eos = [token("eos_token")] if config.get("add_eos_token") and roles["eos_token"] is not None else []
    second: list[Any] = [(*end, 1) for end in bos] + ["B:1"] + [(*end, 1) for end in eos]
    return _template([*bos, "A", *eos], [*bos, "A", *eos, *second])


def _whisper_prefix(
    config: Mapping[str, Any], roles: Mapping[str, str | None], added: AddedTokens
) -> list[tuple[str, int]]:
    """Return the tokens before a text: transcript, task and timestamps; an unknown one is the unknown token."""
    names = ["<|startoftranscript|>"]
    task = config.get("task")
    if task not in (None, "translate", "transcribe"):
        raise ValueError(f"tokenizer_config.json: task is {task!r}; expected translate or transcribe")
    names += [f"<|{task}|>"] if task else []
    names += [] if config.get("predict_timestamps") else ["<|notimestamps|>"]
    tokens = []
    for name in names:
        known = name if added.id_of(name) is not None else roles["unk_token"]
        token_id = None if known is None else added.id_of(known)
        if known is None or token_id is None:
            raise ValueError(f"vocab.json holds no {name!r}, and there is no unknown token to stand for it")
        tokens.append((known, token_id))
    return tokens


def _template(single: list[Any], pair: list[Any]) -> Json:
    """Return a TemplateProcessing of tokens and of the texts ``"A"`` and ``"B"``, or ``"B:1"`` if its type is 1."""
    special: dict[str, Json] = {}

    def piece(item: str | tuple[str, int] | tuple[str, int, int]) -> Json:
        if isinstance(item, str):
            return {"Sequence": {"id": item[0], "type_id": int(item == "B:1")}}
        content, token_id, type_id = (*item, 0)[:3]
        if content.startswith("$") or ":" in content or content.split() != [content]:
            raise ValueError(
                f"token {content!r} stands around a text; expected none with white space, ':' or a first '$'"
            )
        special[content] = {"id": content, "ids": [token_id], "tokens": [content]}
        return {"SpecialToken": {"id": content, "type_id": type_id}}

    pieces = {"single": [piece(item) for item in single], "pair": [piece(item) for item in pair]}
    return {"type": "TemplateProcessing", **pieces, "special_tokens": dict(sorted(special.items()))}
