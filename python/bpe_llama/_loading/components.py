"""The components of a tokenizer.json that a tokenizer class of transformers builds.

Source: ``models/*/tokenization_*.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bpe_llama._core import shown
from bpe_llama._loading.added_tokens import AddedTokens
from bpe_llama._loading.tokenizer_classes import CLASSES, QWEN3_5_STEP, Json, TokenizerClass, byte_level, trim_offsets


def components(
    name: str, config: Mapping[str, Any], roles: Mapping[str, str | None], added: AddedTokens
) -> dict[str, Any] | None:
    """Return the components that a class builds in place of those of a tokenizer.json, or ``None`` if unknown.

    These are ``normalizer``, ``pre_tokenizer``, ``decoder`` and options of the model, in the format of tokenizer.json.
    ``post_processor`` is missing if the class keeps that of the file.

    Args:
        name: The class, as :func:`class_of` returns it.
        config: The content of tokenizer_config.json.
        roles: The token of each role.
        added: The added tokens, with their ids.

    Raises:
        ValueError: As :func:`post_processor`.
    """
    built: dict[str, Any] | None
    if name in CLASSES or name == "Qwen3_5Tokenizer":
        described = CLASSES[name] if name in CLASSES else replace(CLASSES["Qwen2Tokenizer"], steps=[QWEN3_5_STEP])
        built = {
            "normalizer": described.normalizer,
            "pre_tokenizer": described.pre_tokenizer(config),
            "decoder": described.decoder(),
            "unk_token": roles.get("unk_token") if described.has_unk else None,
            "end_of_word_suffix": described.suffix,
        }
        # Beside a tokenizer.json, add_bos_token and add_eos_token are ignored.
        if name == "GPTNeoXTokenizer":
            built["post_processor"] = None
        elif described.post_processor not in ("ends", "byte_level"):
            built["post_processor"] = post_processor(described, config, roles, added)
    else:
        built = _spaced(name, config, roles)
        bos = roles.get("bos_token")
        if built is not None and name == "CodeLlamaTokenizer" and bos is not None:
            token = (bos, added.id_of(bos) or 0)
            built["post_processor"] = _template([token, "A"], [token, "A", (*token, 1), "B:1"])
    return built


def _spaced(name: str, config: Mapping[str, Any], roles: Mapping[str, str | None]) -> dict[str, Any] | None:
    """Return the components of a class for vocabularies with ``▁`` for a space, ``None`` for other classes."""
    space = {"pattern": {"String": "\u2581"}, "content": " "}
    decoders: list[Json] = [{"type": "Replace", **space}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    built: dict[str, Any] = {"fuse_unk": True, "byte_fallback": True, "normalizer": None}
    if name in ("LlamaTokenizer", "CodeLlamaTokenizer"):
        is_legacy = name == "LlamaTokenizer" and config.get("legacy", False)
        is_prefixed = config.get("add_prefix_space") is not False
        scheme = "never" if not is_prefixed else "always" if is_legacy else "first"
        built["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        }
        if is_prefixed or name == "CodeLlamaTokenizer":
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    elif name == "GemmaTokenizer":
        built["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        pattern = {"pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        built["pre_tokenizer"] = {"type": "Split", **pattern}
    else:
        return None
    unk = None if name == "LlamaTokenizer" else roles.get("unk_token")
    return built | {"decoder": {"type": "Sequence", "decoders": decoders}, "unk_token": unk}


def post_processor(
    described: TokenizerClass, config: Mapping[str, Any], roles: Mapping[str, str | None], added: AddedTokens
) -> Json:
    """Return the post-processor of a class.

    Args:
        described: The class.
        config: The content of tokenizer_config.json.
        roles: The token of each role.
        added: The added tokens, with their ids.

    Raises:
        ValueError: If a token of the post-processor is missing or not allowed in a template.
    """

    def token(role: str) -> tuple[str, int]:
        content = roles[role]
        token_id = None if content is None else added.id_of(content)
        if content is None or token_id is None:
            raise ValueError(f"tokenizer_config.json: {role} is null; expected the token that is added to a text")
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
    """Return the tokens before a text: transcript, task and timestamps; missing ones are the unknown token."""
    names = ["<|startoftranscript|>"]
    task = config.get("task")
    if task not in (None, "translate", "transcribe"):
        raise ValueError(f"tokenizer_config.json: task is {shown(task)}; expected translate or transcribe")
    names += [f"<|{task}|>"] if task else []
    names += [] if config.get("predict_timestamps") else ["<|notimestamps|>"]
    tokens = []
    for name in names:
        known = name if added.id_of(name) is not None else roles["unk_token"]
        token_id = None if known is None else added.id_of(known)
        if known is None or token_id is None:
            raise ValueError(f"vocab.json holds neither {shown(name)} nor an unknown token to replace it")
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
                f"token {shown(content)} is added to a text; expected no white space, no ':' and no '$' at its "
                "beginning"
            )
        special[content] = {"id": content, "ids": [token_id], "tokens": [content]}
        return {"SpecialToken": {"id": content, "type_id": type_id}}

    pieces = {"single": [piece(item) for item in single], "pair": [piece(item) for item in pair]}
    return {"type": "TemplateProcessing", **pieces, "special_tokens": dict(sorted(special.items()))}
