"""The defaults of ``tok(...)`` in a tokenizer's files: length limit, padding and truncation side, columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpe_llama._arguments import check_surrogates
from bpe_llama._core import shown

# transformers reads a larger model_max_length as no limit.
_NO_LIMIT = 10**20
_INPUTS = ("input_ids", "attention_mask")
# Classes of transformers 5.23 with other defaults than `Settings`.
_PADDED_LEFT = {"CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer"}
_WITH_TYPE_IDS = {"DebertaTokenizer"}
# Fields of a tokenizer_config.json that change ids or text and are not supported.
_REFUSED = (
    *("tokenizer_object", "post_processor", "tokenizer_padding", "tokenizer_truncation"),
    *("_json_padding", "_json_truncation", "gguf_file", "split_special_tokens"),
)


@dataclass(frozen=True)
class Settings:
    """The defaults of :meth:`bpe_llama.Tokenizer.__call__`, and end-of-generation ids.

    Attributes:
        model_max_length: The default of ``max_length``; ``None`` for no limit.
        padding_side: ``"left"`` or ``"right"``.
        truncation_side: ``"left"`` or ``"right"``: the side that loses ids.
        model_input_names: The columns of a batch, beside ``input_ids``.
        clean_up_tokenization_spaces: Written back by :meth:`bpe_llama.Tokenizer.save`; it never changes decoded text.
        end_ids: Ids other than ``eos_id`` that end generation.
    """

    model_max_length: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    model_input_names: tuple[str, ...] = _INPUTS
    clean_up_tokenization_spaces: bool = False
    end_ids: tuple[int, ...] = ()

    def as_config(self) -> dict[str, Any]:
        """Return the fields of a tokenizer_config.json from which :func:`read_settings` reads the same."""
        config: dict[str, Any] = {
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
        }
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        if self.model_input_names != _INPUTS:
            config["model_input_names"] = list(self.model_input_names)
        if self.end_ids:
            config["end_ids"] = list(self.end_ids)  # a field of bpe_llama, which transformers ignores
        return config


def read_settings(
    config: Mapping[str, Any], class_name: str | None = None, sections: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings in a ``tokenizer_config.json``, with the defaults of transformers.

    Args:
        config: The content of the file.
        class_name: The class of the tokenizer, without ``Fast``.
        sections: The sections ``padding`` and ``truncation`` of a tokenizer.json. Each ``direction`` is the default of
            a side and overrides that of the class; transformers reads no other setting from them.

    Raises:
        ValueError: If a value has the wrong type or is out of range, or a field is not supported; the message names it.

    Source: ``PreTrainedTokenizerBase.__init__`` and ``TokenizersBackend.__init__`` of transformers 5.23.
    """
    for key in _REFUSED:
        if config.get(key):
            raise ValueError(f"tokenizer_config.json: {key} is {shown(config[key])}, which is not supported")
    clean_up = config.get("clean_up_tokenization_spaces")
    if clean_up is not None and not isinstance(clean_up, bool):
        raise _wrong("clean_up_tokenization_spaces", clean_up, "true or false")
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    if clean_up and config.get(forced):
        raise ValueError(f"tokenizer_config.json: {forced} is {shown(config[forced])}, which is not supported")
    sides = {}
    for key, default in (("padding", "left" if class_name in _PADDED_LEFT else "right"), ("truncation", "right")):
        section = (sections or {}).get(key)
        side = config.get(f"{key}_side", section["direction"].lower() if section else default)
        if side not in ("left", "right"):
            raise _wrong(f"{key}_side", side, "'left' or 'right'")
        sides[f"{key}_side"] = side
    return Settings(
        **sides,
        model_max_length=_max_length(config),
        model_input_names=_input_names(config, class_name),
        clean_up_tokenization_spaces=bool(clean_up),
        end_ids=_end_ids(config),
    )


def _end_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    ids = config.get("end_ids") or []
    if not isinstance(ids, list) or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise _wrong("end_ids", ids, "a list of ids")
    return tuple(ids)


def _max_length(config: Mapping[str, Any]) -> int | None:
    key = "model_max_length" if "model_max_length" in config else "max_len"
    length = config.get(key)
    if length is None or (isinstance(length, (int, float)) and length > _NO_LIMIT):
        return None
    if type(length) is not int or length < 1:
        raise _wrong(key, length, "an integer of at least 1")
    return length


def _input_names(config: Mapping[str, Any], class_name: str | None) -> tuple[str, ...]:
    has_type_ids = class_name in _WITH_TYPE_IDS or (
        class_name == "CodeGenTokenizer" and config.get("return_token_type_ids")
    )
    names = config.get("model_input_names", [*_INPUTS, "token_type_ids"] if has_type_ids else _INPUTS)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise _wrong("model_input_names", names, "a list of names")
    check_surrogates("tokenizer_config.json: model_input_names", " ".join(names))
    return tuple(names)


def _wrong(key: str, value: object, expected: str) -> ValueError:
    return ValueError(f"tokenizer_config.json: {key} is {shown(value)}; expected {expected}")
