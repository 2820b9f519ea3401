"""Find the differences between a ``tokenizer.json`` and the tokenizer that a class of transformers builds from it.

transformers 5 reads the tokens and merges of the file; some classes build all other components themselves. Components
are compared by effect, not by spelling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bpe_llama._loading.added_tokens import AddedTokens, StatedTokens
from bpe_llama._loading.components import components
from bpe_llama._loading.tokenizer_classes import CLASSES, Json

# GPT-2's byte alphabet: one character for each byte.
_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_LETTERS = [chr(byte) for byte in _BYTES] + [chr(0x100 + place) for place in range(256 - len(_BYTES))]
# Behaviour of classes that no component of a tokenizer.json expresses.
_BEYOND = {
    "CodeLlamaTokenizer": ("fill_token", "a token like others", "a text in two at it, for infilling,"),
    "WhisperTokenizer": ("skip_special_tokens in decode", "for special tokens alone", "text without a prompt"),
}


def differences(
    name: str, file: Json, config: Mapping[str, Any], stated: StatedTokens, added: list[Json]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each component that a class builds differently: its name, its value in the file and in the class.

    Args:
        name: The class; ``"TokenizersBackend"`` reads a file unchanged and yields nothing.
        file: The content of tokenizer.json, with the default values of its components.
        config: The content of tokenizer_config.json.
        stated: The tokens of all files of the folder.
        added: The added tokens of our tokenizer, as tokenizer.json lists them.
    """
    vocab = file["model"]["vocab"]
    try:
        theirs = _added_tokens(name, vocab, stated)
        built = components(name, config, stated.named_texts(), theirs)
    except ValueError as error:
        yield "the tokenizer", "whole", f"nothing ({error})"
        return
    if built is None:
        return
    model = file["model"]
    here = {key: file.get(key) for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor")}
    for key in ("normalizer", "pre_tokenizer"):
        if _steps(here[key]) != _steps(built[key]):
            yield key, here[key], built[key]
    if file["ignore_merges"]:
        yield "ignore_merges", True, False
    yield from _model_differences(model, built, is_byte_level=name not in CLASSES or CLASSES[name].byte_level)
    if "post_processor" in built and _templates(here["post_processor"]) != _templates(built["post_processor"]):
        yield "post_processor", here["post_processor"], built["post_processor"]
    if _decoding(here["decoder"]) != _decoding(built["decoder"]):
        yield "decoder", here["decoder"], built["decoder"]
    mine = {token["content"]: token for token in added}
    for token in theirs.as_json():
        if mine.pop(token["content"], None) != token:
            ours = next((each for each in added if each["content"] == token["content"]), None)
            yield f"added token {token['content']!r}", ours, token
    for content, token in mine.items():
        yield f"added token {content!r}", token, None
    if name in _BEYOND:
        yield _BEYOND[name]


def _added_tokens(name: str, vocab: Mapping[str, int], stated: StatedTokens) -> AddedTokens:
    """Return the tokens that a class adds to the vocabulary of a tokenizer.json."""
    added = AddedTokens(vocab)
    added.add(stated.to_add_by_class(name))
    return added


def _steps(component: Json | None) -> list[Json]:
    """Return the steps of a normalizer or pre-tokenizer, without options that have no effect."""
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [step for part in component.get("pretokenizers") or component["normalizers"] for step in _steps(part)]
    return [{key: value for key, value in component.items() if key != "trim_offsets"}]


def _model_differences(model: Json, built: Json, *, is_byte_level: bool) -> Iterator[tuple[str, Any, Any]]:
    """Yield the different options of the model that have an effect with its vocabulary."""
    vocab, suffix = model["vocab"], built.get("end_of_word_suffix") or ""
    falls_back = {bool(model.get("byte_fallback")), built.get("byte_fallback", False)}
    has_letters = is_byte_level and all(letter in vocab and letter + suffix in vocab for letter in _LETTERS)
    fallen = [f"<0x{byte:02X}>" for byte in range(256)]
    keys = ["continuing_subword_prefix", "end_of_word_suffix"]
    if not has_letters and any(token in vocab for token in fallen):
        keys.append("byte_fallback")
    # Without unknown characters, the unknown token has no effect.
    if not has_letters and not (falls_back == {True} and all(token in vocab for token in fallen)):
        keys.append("unk_token")
        if model.get("unk_token") is not None:
            keys.append("fuse_unk")
    for key in keys:
        if (model.get(key) or None) != (built.get(key) or None):
            yield key, model.get(key), built.get(key)


def _templates(processor: Json | None) -> Any:
    """Return the templates of a post-processor for a text and a pair, with type ids, and how it trims offsets."""
    is_sequence = processor is not None and processor["type"] == "Sequence"
    steps: list[Json] = [] if processor is None else processor["processors"] if is_sequence else [processor]
    trim = None
    places: list[Any] = [[("A", 0)], [("A", 0), ("B", 1)]]
    for step in steps:
        if step["type"] in ("ByteLevel", "RobertaProcessing") and step.get("trim_offsets", True):
            trim = step.get("add_prefix_space", True)
        if step["type"] == "TemplateProcessing":
            ids = {name: token["ids"] for name, token in step["special_tokens"].items()}
            places = [[_place(item, ids) for item in step[kind]] for kind in ("single", "pair")]
        elif step["type"] in ("RobertaProcessing", "BertProcessing"):
            cls, sep = [step["cls"][1]], [step["sep"][1]]
            second: list[Any] = [(sep, 0), ("B", 0), (sep, 0)]
            if step["type"] == "BertProcessing":
                second = [("B", 1), (sep, 1)]
            places = [[(cls, 0), ("A", 0), (sep, 0)], [(cls, 0), ("A", 0), (sep, 0), *second]]
    if sum(step["type"] != "ByteLevel" for step in steps) > 1:
        return processor
    return places, trim


def _place(item: Json, ids: Mapping[str, list[int]]) -> tuple[Any, int]:
    if "Sequence" in item:
        return item["Sequence"]["id"], item["Sequence"]["type_id"]
    return ids[item["SpecialToken"]["id"]], item["SpecialToken"]["type_id"]


def _decoding(decoder: Json | None) -> list[Json]:
    """Return the steps of a decoder, without options that have no effect."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        steps = [step for part in decoder["decoders"] for step in _decoding(part)]
        return steps[:-1] if steps[1:] and steps[-1] == {"type": "Fuse"} else steps
    return [{"type": "ByteLevel"} if decoder["type"] == "ByteLevel" else decoder]
