"""Reads the keys of ``config.json`` as transformers does: each is honoured, listed as without effect, or refused.

transformers keeps keys that its model class does not know, and computes without them.

Source: the config classes of transformers 5.23, which the tests run beside this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

OUR_TYPE = "bpe_llama"
"""The ``model_type`` of a config that no class of transformers computes as this package does."""

FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "mixtral": {
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
    },
}
"""A family's defaults in transformers for keys that are left out, where they differ from `LlamaConfig`'s."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ABOUT_THE_FILE = _words(
    """_name_or_path name_or_path _commit_hash transformers_version unsloth_version unsloth_fixed architectures auto_map
    tokenizer_class tokenizer_name model_name model_max_length max_sequence_length max_seq_len seq_length
    bos_token eos_token pad_token unk_token unk_token_id sep_token_id cls_token_id mask_token_id image_token_id
    decoder_start_token_id task_specific_params finetuning_task license language datasets base_model training_args
    label2id keys_to_ignore_at_inference _from_model_config is_llama_config transformers.js_config
    base_model_name_or_path additional_special_tokens sep_token cls_token mask_token padding_side truncation_side
    chat_template tags pipeline_tag library_name model_version revision"""
)
ABOUT_THE_RUN = _words(
    """use_cache cache_implementation return_dict use_return_dict output_hidden_states output_attentions torchscript
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
    _experts_implementation _experts_implementation_internal _flash_attn_2_enabled use_flash_attn use_flash_attention
    use_flash_attention_2 gradient_checkpointing use_gradient_checkpointing chunk_size_feed_forward
    tie_last_hidden_states output_past trust_remote_code device_map low_cpu_mem_usage use_safetensors max_batch_size"""
)
ABOUT_TRAINING = _words("output_router_logits neftune_noise_alpha classifier_dropout")
ABOUT_GENERATION = _words(
    """assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_scores prefix remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p"""
)
CHANGES_NOTHING = ABOUT_THE_FILE | ABOUT_THE_RUN | ABOUT_TRAINING | ABOUT_GENERATION
"""Keys that change neither the weights nor the forward pass."""

DROPOUTS = ("hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "router_jitter_noise")
"""Dropout and noise in training, which this package does not have; evaluation is the same."""

FALSE_CHANGES = _words("is_causal causal norm_topk_prob use_rope use_rotary rms_norm use_rms_norm")
"""Keys for which false changes the computation; for all other keys false means that a feature is off."""

READ_HERE = _words(
    """model_type torch_dtype id2label partial_rotary_factor original_max_position_embeddings use_sliding_window
    max_window_layers layer_types num_experts quantization_config compression_config is_decoder is_encoder_decoder
    pruned_heads"""
)
"""Keys that are not fields of `LlamaConfig` and are read by `fields_of`."""

_LONG = "factor original_max_position_embeddings attention_factor "
ROPE_NAMES: dict[str, frozenset[str]] = {
    kind: _words(f"rope_type rope_theta partial_rotary_factor {names}")
    for kind, names in {
        "default": "",
        "linear": "factor",
        "dynamic": "factor",
        "llama3": "factor low_freq_factor high_freq_factor original_max_position_embeddings",
        "yarn": _LONG + "beta_fast beta_slow mscale mscale_all_dim truncate",
        "longrope": _LONG + "short_factor long_factor",
    }.items()
}
"""The parameters of each kind of RoPE scaling."""
_ANY_ROPE_NAME = frozenset.union(*ROPE_NAMES.values()) | {"finetuned"}
WITH_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")
"""Kinds of RoPE scaling with the parameter ``original_max_position_embeddings``."""


def fields_of(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the fields of `LlamaConfig` that a parsed ``config.json`` states.

    Args:
        values: The file. Its ``model_type`` chooses the family, whose defaults and rules are those of transformers; a
            mapping without one states fields of `LlamaConfig` alone.
        known: The names of the fields.

    Warns:
        UserWarning: If transformers' class of that family passes over a window or a dropout that the file states.

    Raises:
        ValueError: If a key is not supported or has a wrong value; the message names the key and the value.

    Example:
        >>> fields_of({"model_type": "mistral", "hidden_size": 64}, {"hidden_size", "model_type"})["sliding_window"]
        4096
    """
    family = stated_type = values.get("model_type")
    if family == OUR_TYPE:
        values, family = {key: value for key, value in values.items() if key != "model_type"}, None
    if family is not None and not (isinstance(family, str) and family in FAMILY_DEFAULTS):
        raise ValueError(f"model_type is {family!r}; expected one of {', '.join(FAMILY_DEFAULTS)}")
    picked = {name: value for name, value in values.items() if name in known}
    for key, value in values.items():
        if key not in known and key not in READ_HERE:
            _check_other(key, value)
    _check_refused(values)
    if picked.get("dtype") is None and values.get("torch_dtype") is not None:
        picked["dtype"] = values["torch_dtype"]
    if isinstance(picked.get("dtype"), str):
        picked["dtype"] = picked["dtype"].removeprefix("torch.")
    if not isinstance(values.get("id2label") or {}, Mapping):
        raise ValueError(f"id2label is {values['id2label']!r:.100}; expected an object of numbers and names")
    if values.get("id2label"):
        picked["num_labels"] = len(values["id2label"])
    if family == "mixtral" and values.get("num_experts") is not None:
        picked.setdefault("num_local_experts", values["num_experts"])
    elif values.get("num_experts"):
        raise ValueError(f"num_experts is {values['num_experts']!r}, but model_type is {family!r}; expected 'mixtral'")
    if stated_type:
        _leave_out_ids(picked)
    _read_rope(picked, values, family)
    if family is not None:
        _read_family(picked, values, family)
    for name in (
        "num_local_experts",
        "pretraining_tp",
        "num_experts_per_tok",
        "num_labels",
        "rms_norm_eps",
        "attention_dropout",
    ):
        if name in picked and picked[name] is None:
            del picked[name]
    return picked


def _check_other(key: str, value: Any) -> None:
    if key in DROPOUTS:
        if value:
            warnings.warn(f"{key} is {value!r}; it is not applied in training here", stacklevel=5)
    elif key not in CHANGES_NOTHING and not _is_off(key, value):
        raise ValueError(
            f"{key} is {value!r}, a key that is not known here and may change what is computed; "
            "if it does not, take it out of the config"
        )


def _is_off(key: str, value: Any) -> bool:
    """Return whether a value turns a feature off: null, false, an empty text or collection."""
    return value is None or value in ("", [], {}) or (value is False and key not in FALSE_CHANGES)


def _check_refused(values: Mapping[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        if values.get(key):
            raise ValueError(
                f"{key} is {values[key]!r:.100}; quantized Hugging Face weights are not read: load the original "
                "ones, or a GGUF file"
            )
    if values.get("is_encoder_decoder"):
        raise ValueError("is_encoder_decoder is true; expected a decoder alone")
    if values.get("pruned_heads"):
        raise ValueError(f"pruned_heads is {values['pruned_heads']!r:.100}; expected none")


def _read_rope(picked: dict[str, Any], values: Mapping[str, Any], family: str | None) -> None:
    """Collect the parameters of RoPE from all keys that may state them into ``rope_parameters``."""
    for name in ("rope_parameters", "rope_scaling"):
        stated = picked.get(name)
        if not isinstance(stated, Mapping):
            continue
        nested = [key for key, value in stated.items() if isinstance(value, Mapping)]
        if nested:
            raise ValueError(
                f"{name} states rotary parameters for each layer type ({', '.join(map(str, nested))}); "
                "expected the same for all layers, not nested"
            )
        unknown = [key for key in stated if key not in _ANY_ROPE_NAME | {"type"} and stated[key] is not None]
        if unknown:
            raise ValueError(
                f"{name} has {unknown[0]!r} ({stated[unknown[0]]!r:.100}), which is not known; "
                f"known are {', '.join(sorted(_ANY_ROPE_NAME))}"
            )
        picked[name] = {key: value for key, value in stated.items() if value is not None and key != "finetuned"}
    rope = merge_rope(*(picked.pop(key, None) for key in ("rope_parameters", "rope_theta", "rope_scaling")))
    if family == "mixtral" and not any(_states_theta(values, name) for name in ("rope_parameters", "rope_scaling", "")):
        rope["rope_theta"] = 1_000_000.0
    share = values.get("partial_rotary_factor")
    if share is not None:
        rope = {"partial_rotary_factor": share} | rope
    kind = rope["rope_type"]
    if not isinstance(kind, str):
        raise ValueError(f"rope_type is {kind!r}; expected the name of a kind")
    if values.get("original_max_position_embeddings") is not None and kind in WITH_ORIGINAL_LENGTH:
        rope["original_max_position_embeddings"] = values["original_max_position_embeddings"]
    if family is not None and rope.get("partial_rotary_factor", 1.0) != 1.0:
        share = rope["partial_rotary_factor"]
        raise ValueError(
            f"partial_rotary_factor is {share!r}, but transformers' {family} rotates whole heads; set it to 1, "
            f"or model_type to {OUR_TYPE!r} for a rotation of that part here"
        )
    unused = sorted(rope.keys() - ROPE_NAMES[kind]) if kind in ROPE_NAMES and family is not None else []
    if unused:
        warnings.warn(
            f"rope_type {kind!r} does not read {', '.join(unused)}; passed over, as in transformers",
            stacklevel=5,
        )
    picked["rope_parameters"] = {name: value for name, value in rope.items() if name not in unused}


def _states_theta(values: Mapping[str, Any], name: str) -> bool:
    source = values.get(name) if name else values
    return isinstance(source, Mapping) and source.get("rope_theta") is not None


def _read_family(picked: dict[str, Any], values: Mapping[str, Any], family: str) -> None:
    """Apply a family's defaults and its rules on windows, experts and biases."""
    for name, value in FAMILY_DEFAULTS[family].items():
        if name not in picked:
            picked[name] = value
    if family != "mixtral" and picked.get("num_local_experts"):
        raise ValueError(
            f"num_local_experts is {picked['num_local_experts']!r}, but model_type is {family!r}, which has no "
            "experts; expected 'mixtral'"
        )
    if family != "llama":
        for name in ("attention_bias", "mlp_bias"):
            if picked.get(name):
                raise ValueError(f"{name} is true, but transformers' {family} has no biases; expected false")
    if picked.get("position_encoding", "rotary") != "rotary":
        raise ValueError(
            f"position_encoding is {picked['position_encoding']!r}, which transformers' {family} does not read; "
            f"set model_type to {OUR_TYPE!r} for such positions here"
        )
    window, kinds = picked.get("sliding_window"), values.get("layer_types")
    if family == "llama":
        if kinds is not None and not isinstance(kinds, list):
            raise ValueError(f"layer_types is {kinds!r:.100}; expected a list of one kind for each layer")
        asked = window is not None and values.get("use_sliding_window") is not False
        if asked or any(kind != "full_attention" for kind in kinds or ()):
            warnings.warn(
                f"sliding_window is {window!r}, but transformers' llama looks at all tokens, and so does this model; "
                "a window needs model_type 'mistral'",
                stacklevel=5,
            )
        picked["sliding_window"] = None
    elif kinds is not None and family == "mistral":  # transformers makes a Ministral of it
        if (
            not isinstance(kinds, list)
            or len(set(map(str, kinds))) != 1
            or len(kinds) != picked.get("num_hidden_layers", 32)
        ):
            raise ValueError(
                f"layer_types is {kinds!r:.100}; expected one kind for each of num_hidden_layers, all the same"
            )
        if kinds[0] not in ("full_attention", "sliding_attention"):
            raise ValueError(f"layer_types names {kinds[0]!r}; expected 'full_attention' or 'sliding_attention'")
        picked["sliding_window"] = window if kinds[0] == "sliding_attention" else None
    elif window is not None and (values.get("use_sliding_window") is False or values.get("max_window_layers") or kinds):
        unread = next(
            key for key in ("use_sliding_window", "max_window_layers", "layer_types") if values.get(key) is not None
        )
        warnings.warn(
            f"{unread} is {values[unread]!r:.100}, but transformers' {family} does not read it: all layers look at "
            f"sliding_window ({window}) tokens, and so they do here; set sliding_window to null for none",
            stacklevel=5,
        )


def _leave_out_ids(picked: dict[str, Any]) -> None:
    """Leave out begin and end ids outside the vocabulary, with a warning; as in transformers they have no effect."""
    size = picked.get("vocab_size", 32_000)
    for name in ("bos_token_id", "eos_token_id"):
        stated = picked.get(name)
        ids = stated if isinstance(stated, list) else [stated]
        beyond = [one for one in ids if isinstance(one, int) and isinstance(size, int) and one >= size]
        if beyond:
            kept = [one for one in ids if one not in beyond]
            picked[name] = kept if isinstance(stated, list) else None
            warnings.warn(f"{name} is {stated!r}, outside the vocabulary of {size}; {beyond} is left out", stacklevel=6)


def merge_rope(
    parameters: Mapping[str, Any] | None, theta: float | None, scaling: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the parameters of RoPE that the keys of transformers 4 and 5 state together.

    Raises:
        ValueError: If the two spellings disagree, or one is no mapping.

    Example:
        >>> merge_rope(None, 500_000.0, {"type": "linear", "factor": 2.0})
        {'rope_theta': 500000.0, 'rope_type': 'linear', 'factor': 2.0}
    """
    merged: dict[str, Any] = {}
    for name, source in (
        ("rope_parameters", parameters),
        ("rope_theta", None if theta is None else {"rope_theta": theta}),
        ("rope_scaling", scaling),
    ):
        if source is not None and not isinstance(source, Mapping):
            raise ValueError(f"{name} is {source!r}; expected an object of names and values")
        for key, value in (source or {}).items():
            key = "rope_type" if key == "type" else key
            value = "longrope" if key == "rope_type" and value == "su" else value  # the name in Phi-3's first configs
            if key in merged and merged[key] != value:
                raise ValueError(
                    f"{name} says {key} = {value!r}, but it was already given as {merged[key]!r}; "
                    "give it once, or change it with config.replace(...)"
                )
            merged[key] = value
    return {"rope_theta": 10_000.0, "rope_type": "default"} | merged
