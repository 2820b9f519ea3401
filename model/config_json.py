"""Reads the keys of ``config.json`` as transformers does: each is honoured, listed as without effect, or refused.

transformers stores keys that its model class does not know, and computes without them.

Source: the config classes of transformers 5.23; the parity tests run them.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.family import FAMILIES, Family
from bpe_llama.model.rope_parameters import PARAMETERS, merge_rope, read_parameters

OUR_TYPE = "bpe_llama"
"""The ``model_type`` of a config that no class of transformers computes."""


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
"""Dropout and noise in training, which this package does not apply; evaluation does not depend on them."""

FALSE_CHANGES = _words("is_causal causal norm_topk_prob use_rope use_rotary rms_norm use_rms_norm")
"""Keys that change the computation if false; for all other keys false turns a feature off."""

READ_HERE = _words(
    """model_type torch_dtype partial_rotary_factor original_max_position_embeddings use_sliding_window
    max_window_layers layer_types num_experts quantization_config compression_config is_decoder is_encoder_decoder
    pruned_heads"""
)
"""Keys that are not fields of `LlamaConfig` and are read by `fields_of`."""


ABOUT_TEXT = _words(
    """dtype torch_dtype bos_token_id eos_token_id pad_token_id tie_word_embeddings quantization_config
    compression_config"""
)
"""Keys beside the ``text_config`` of a multi-modal model that its text model has, too; they replace those within."""

ABOUT_IMAGES = _words(
    """text_config vision_config model_type mm_tokens_per_image boi_token_index eoi_token_index image_token_index
    initializer_range"""
)
"""Keys beside the ``text_config`` of a multi-modal model that its text model does not read."""


def text_part(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Family | None]:
    """Return the config of a multi-modal model's text model and its family; another file unchanged, and None.

    Raises:
        ValueError: If the text model is of another family, or the file has other keys that may change the computation.
    """
    stated = values.get("model_type")
    family = next((one for one in FAMILIES.values() if one.multimodal is not None and one.multimodal == stated), None)
    if family is None:
        return values, None
    text = values.get("text_config")
    text = {} if text is None else text
    if not isinstance(text, Mapping) or text.get("model_type", family.name) != family.name:
        raise ValueError(f"text_config is {shown(text)}; expected an object with model_type {family.name!r}")
    if text.get("final_logit_softcapping") is not None:
        raise ValueError(
            f"final_logit_softcapping is {shown(text['final_logit_softcapping'])}, which transformers' {stated} does "
            "not apply; expected null"
        )
    for key in values.keys() - ABOUT_TEXT - ABOUT_IMAGES:
        _check_other(key, values[key])
    shared = {key: values[key] for key in ABOUT_TEXT if values.get(key) is not None}
    return {**text, **shared, "model_type": family.name}, family


def text_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of a multi-modal model's text model with a warning; another file unchanged."""
    text, family = text_part(values)
    if family is not None:
        warnings.warn(
            f"model_type is {shown(values['model_type'])}, a multi-modal model: its text model is read, without "
            f"{' and '.join(family.left_out)}",
            stacklevel=3,
        )
    return text


def family_of(values: Mapping[str, Any]) -> Family | None:
    """Return the family of a parsed ``config.json``; None if it has no ``model_type`` or this package's own.

    Raises:
        ValueError: If the family is not known.
    """
    model_type = values.get("model_type")
    if model_type is None or model_type == OUR_TYPE:
        return None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"model_type is {shown(model_type)}; expected one of {', '.join(FAMILIES)}")
    if model_type == "mistral" and values.get("layer_types") is not None:
        return FAMILIES["ministral"]  # as transformers' AutoConfig
    return FAMILIES[model_type]


def fields_of(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the fields of the family's config that a parsed ``config.json`` states.

    Args:
        values: The file. Its ``model_type`` selects the family with its defaults and rules in transformers. A
            mapping without ``model_type`` has `LlamaConfig`'s defaults.
        known: The names of the fields of the family's config.

    Warns:
        UserWarning: If transformers' class of the family ignores a window or a dropout that the file states.

    Raises:
        ValueError: If a key is not supported or has a wrong value; it names the key and the value.

    Example:
        >>> fields_of({"model_type": "mistral", "hidden_size": 64}, {"hidden_size", "model_type"})["sliding_window"]
        4096
    """
    family, stated = family_of(values), values.get("model_type")
    if family is not None:
        values = family.prepare(values)
    elif stated == OUR_TYPE:
        values = {key: value for key, value in values.items() if key != "model_type"}
    ignored = frozenset[str]() if family is None else family.ignored
    picked = {name: value for name, value in values.items() if name in known and name not in ignored}
    for key, value in values.items():
        if key not in known and key not in READ_HERE and key not in ignored:
            _check_other(key, value)
    _check_refused(values)
    if picked.get("dtype") is None and values.get("torch_dtype") is not None:
        picked["dtype"] = values["torch_dtype"]
    if isinstance(picked.get("dtype"), str):
        picked["dtype"] = picked["dtype"].removeprefix("torch.")
    if family is not None and family.has_experts and values.get("num_experts") is not None:
        if picked.setdefault("num_local_experts", values["num_experts"]) != values["num_experts"]:
            raise ValueError(
                f"num_experts is {shown(values['num_experts'])}, but num_local_experts is "
                f"{shown(picked['num_local_experts'])}; expected one of them"
            )
    elif values.get("num_experts"):
        name = None if family is None else family.name
        raise ValueError(
            f"num_experts is {shown(values['num_experts'])}, but model_type is {shown(name)}; expected "
            f"{_with_experts()}"
        )
    if stated:
        leave_out_ids(picked, 32_000 if family is None else family.config.vocab_size)
    _read_labels(picked)
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


def _with_experts() -> str:
    return " or ".join(repr(name) for name, family in FAMILIES.items() if family.has_experts)


def _check_other(key: str, value: Any) -> None:
    if key in DROPOUTS:
        if value:
            warnings.warn(f"{key} is {shown(value)}; it is not applied in training here", stacklevel=5)
    elif key not in CHANGES_NOTHING and not _is_off(key, value):
        raise ValueError(
            f"{key} is {shown(value)}, a key that is not known here and may change the computation; "
            "if it does not, remove it from the config"
        )


def _is_off(key: str, value: Any) -> bool:
    """Return whether a value turns a feature off: null, false, an empty string or collection."""
    return value is None or value in ("", [], {}) or (value is False and key not in FALSE_CHANGES)


def _check_refused(values: Mapping[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        if values.get(key):
            raise ValueError(
                f"{key} is {shown(values[key])}; quantized Hugging Face weights are not read: load the original "
                "ones, or a GGUF file"
            )
    if values.get("is_encoder_decoder"):
        raise ValueError("is_encoder_decoder is true; expected a decoder alone")
    if values.get("pruned_heads"):
        raise ValueError(f"pruned_heads is {shown(values['pruned_heads'])}; expected none")


def _read_labels(picked: dict[str, Any]) -> None:
    """Drop label names if there are not `num_labels` of them, as transformers does."""
    count, names = picked.get("num_labels"), picked.get("id2label")
    if isinstance(count, int) and isinstance(names, Mapping) and names and len(names) != count:
        warnings.warn(
            f"num_labels is {count}, but id2label has {len(names)} names, which are dropped, as in transformers",
            stacklevel=5,
        )
        picked["id2label"] = None


def _read_rope(picked: dict[str, Any], values: Mapping[str, Any], family: Family | None) -> None:
    """Set ``rope_parameters`` from all keys that may state a parameter of RoPE."""
    any_parameter = frozenset.union(*PARAMETERS.values()) | {"finetuned"}
    for name in ("rope_parameters", "rope_scaling"):
        stated = picked.get(name)
        if not isinstance(stated, Mapping):
            continue
        nested = [key for key, value in stated.items() if isinstance(value, Mapping)]
        if nested:
            raise ValueError(
                f"{name} states RoPE parameters for each layer type ({', '.join(map(str, nested))}); "
                "expected the same for all layers, not nested"
            )
        unknown = [key for key in stated if key not in any_parameter | {"type"} and stated[key] is not None]
        if unknown:
            raise ValueError(
                f"{name} has {unknown[0]!r} ({stated[unknown[0]]!r:.100}), which is not known; "
                f"known are {', '.join(sorted(any_parameter))}"
            )
        picked[name] = {key: value for key, value in stated.items() if value is not None and key != "finetuned"}
    rope = merge_rope(*(picked.pop(key, None) for key in ("rope_parameters", "rope_theta", "rope_scaling")))
    if family is not None and not any(_states_theta(values, name) for name in ("rope_parameters", "rope_scaling", "")):
        rope["rope_theta"] = family.rope_theta
    if values.get("partial_rotary_factor") is not None:
        rope = {"partial_rotary_factor": values["partial_rotary_factor"]} | rope
    original = "original_max_position_embeddings"
    if values.get(original) is not None and original in PARAMETERS.get(rope["rope_type"], ()):
        rope[original] = values[original]
    if family is not None and not family.has_partial_rotary and rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {shown(rope['partial_rotary_factor'])}, but transformers' {family.name} rotates "
            f"whole heads; set it to 1, or model_type to {OUR_TYPE!r} to rotate that part of each head here"
        )
    picked["rope_parameters"] = read_parameters(rope, stacklevel=5)


def _states_theta(values: Mapping[str, Any], name: str) -> bool:
    source = values.get(name) if name else values
    return isinstance(source, Mapping) and source.get("rope_theta") is not None


def _read_family(picked: dict[str, Any], values: Mapping[str, Any], family: Family) -> None:
    """Apply a family's defaults and its rules on experts, biases and its own keys."""
    for name, value in family.defaults.items():
        picked.setdefault(name, value)
    if not family.has_experts and picked.get("num_local_experts"):
        raise ValueError(
            f"num_local_experts is {shown(picked['num_local_experts'])}, but model_type is {shown(family.name)}, "
            f"which has no experts; expected {_with_experts()}"
        )
    for name in ("attention_bias", "mlp_bias"):
        if name not in family.biases and picked.get(name):
            found = "no such biases" if family.biases else "no biases"
            raise ValueError(f"{name} is true, but transformers' {family.name} has {found}; expected false")
    types = [] if "layer_types" in picked else values.get("layer_types") or []  # the config checks its own field
    if not family.has_window and (not isinstance(types, list) or set(map(str, types)) - {"full_attention"}):
        raise ValueError(f"layer_types is {shown(types)}, but transformers' {family.name} attends to all tokens")
    if picked.get("position_encoding", "rotary") != "rotary":
        raise ValueError(
            f"position_encoding is {shown(picked['position_encoding'])}, which transformers' {family.name} does not "
            f"read; set model_type to {OUR_TYPE!r} for such positions here"
        )
    family.read(picked, values)


def leave_out_ids(picked: dict[str, Any], default_size: int) -> None:
    """Remove BOS and EOS ids outside the vocabulary, with a warning; in transformers they have no effect."""
    size = picked.get("vocab_size", default_size)
    for name in ("bos_token_id", "eos_token_id"):
        stated = picked.get(name)
        ids = stated if isinstance(stated, list) else [stated]
        beyond = [one for one in ids if isinstance(one, int) and isinstance(size, int) and one >= size]
        if beyond:
            picked[name] = [one for one in ids if one not in beyond] if isinstance(stated, list) else None
            warnings.warn(
                f"{name} is {shown(stated)}, outside the vocabulary of {size}; {beyond} is left out", stacklevel=6
            )
