"""``generation_config.json``: BOS, EOS and padding ids, and the sampling defaults of a model.

Source: ``GenerationConfig`` of transformers 5.23.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpe_llama._core import shown
from bpe_llama._files import read_json_object
from bpe_llama.model.config_json import ABOUT_GENERATION

FILE = "generation_config.json"

_OPTIONS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "bad_words_ids": "bad_words",
    "suppress_tokens": "banned_ids",
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
}
"""Fields that are honoured, and the options of `GenerationOptions` that they set."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "min_length": (0,),
    "max_time": (),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "low_memory": (False,),
}
"""Fields that are not supported, with the values besides null that have no effect."""

_WITHOUT_EFFECT = {
    *("_from_model_config", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "do_sample"),
    "decoder_start_token_id",  # of encoder-decoders
    "max_length",  # `GenerationOptions.for_model` reads it, as it counts from the prompt's beginning
    *("length_penalty", "early_stopping"),  # beam search reads them
    "stop_strings",  # TextGenerator reads them, `generate` warns
    "num_return_sequences",  # an argument
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config"),
    *("disable_compile", "continuous_batching_config", "return_legacy_cache", "use_mtp"),  # speed and memory alone
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "generation_kwargs", "chat_format"),
}
"""Fields that are read elsewhere, do not change the ids, or are arguments of the caller here."""


@dataclass(frozen=True)
class GenerationConfig:
    """A model's own defaults for generation.

    Args:
        values: The file's fields; ``save_pretrained`` writes all of them.

    Raises:
        ValueError: If a field has a wrong value; it names the field, the value and what was expected.

    Example:
        >>> config = GenerationConfig({"eos_token_id": [1, 9], "do_sample": True, "temperature": 0.6})
        >>> config.eos_token_ids, config.sampling_defaults
        ((1, 9), {'temperature': 0.6, 'top_p': 1.0})
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            given = self.values.get(name)
            several = given if name == "eos_token_id" and isinstance(given, list) else [given]
            for token_id in () if given is None else several:
                if isinstance(token_id, bool) or not isinstance(token_id, int) or not -1 <= token_id < 1 << 32:
                    expected = "an id or a list of ids" if name == "eos_token_id" else "an id"
                    raise ValueError(f"{name} is {shown(given)}; expected {expected}")
        stops = self.values.get("stop_strings")
        if stops is not None and not (isinstance(stops, str | list) and all(isinstance(stop, str) for stop in stops)):
            raise ValueError(f"stop_strings is {shown(stops)}; expected a string or a list of them")
        do_sample = self.values.get("do_sample")
        if do_sample is not None and not isinstance(do_sample, bool):
            raise ValueError(f"do_sample is {shown(do_sample)}; expected true or false")
        for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"):
            number = self.values.get(name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                raise ValueError(f"{name} is {shown(number)}; expected a number")
        for name in ("top_k", "no_repeat_ngram_size", "max_new_tokens", "min_new_tokens", "max_length"):
            count = self.values.get(name)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
                raise ValueError(f"{name} is {shown(count)}; expected an integer")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the EOS ids."""
        given = self.values.get("eos_token_id")
        if given is None:
            return ()
        return tuple(given) if isinstance(given, list) else (given,)

    @property
    def bos_token_id(self) -> int | None:
        """Return the BOS id, or None."""
        return self.values.get("bos_token_id")

    @property
    def pad_token_id(self) -> int | None:
        """Return the padding id, or None."""
        return self.values.get("pad_token_id")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings."""
        given = self.values.get("stop_strings")
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)

    @property
    def max_length(self) -> int | None:
        """Return the most ids of prompt and continuation; None where ``max_new_tokens`` or nothing sets a limit."""
        return None if self.values.get("max_new_tokens") is not None else self.values.get("max_length")

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Return the file's defaults for the options of `GenerationOptions`.

        ``do_sample: false`` sets the temperature 0. With ``do_sample: true`` temperature and top-p default to 1, as in
        transformers and vLLM; a file without ``top_k`` keeps all ids, as in vLLM, where transformers keeps 50. Without
        ``do_sample`` only the fields in the file set defaults.
        """
        do_sample = self.values.get("do_sample")
        defaults: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0} if do_sample else {}
        for name, option in _OPTIONS.items():
            value = self.values.get(name)
            if value is not None and value != []:
                defaults[option] = value
        if do_sample is False:
            defaults["temperature"] = 0.0
        return defaults

    def search_options(self, **given: Any) -> dict[str, Any]:
        """Return the options of a beam search: arguments that are not None, else the file's, else transformers'.

        Example:
            >>> GenerationConfig({"length_penalty": 2.0}).search_options(do_sample=True, early_stopping=None)
            {'do_sample': True, 'length_penalty': 2.0, 'early_stopping': False}
        """
        defaults = {"do_sample": False, "length_penalty": 1.0, "early_stopping": False}
        stated = {name: self.values[name] for name in defaults if self.values.get(name) is not None}
        return defaults | stated | {name: value for name, value in given.items() if value is not None}

    @property
    def unsupported(self) -> dict[str, Any]:
        """Return the fields that are unknown or not supported and have an effect, with their values."""
        return {
            name: value
            for name, value in self.values.items()
            if value is not None
            and name not in _OPTIONS
            and name not in _WITHOUT_EFFECT
            and value not in _NEUTRAL.get(name, ())
        }

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationConfig:
        """Return the config of a folder: its ``generation_config.json``, else the generation fields of ``config.json``.

        Warns:
            UserWarning: If fields are not supported; it names them and their values.

        Raises:
            ValueError: If the file is not a JSON object or a field has a wrong value; it names the file and the field.
        """
        path = folder / FILE
        if path.is_file():
            values = read_json_object(path)
        else:  # as older versions of transformers saved it
            path = folder / "config.json"
            described = read_json_object(path)
            values = {name: described[name] for name in sorted(ABOUT_GENERATION & described.keys())}
        try:
            config = cls(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if config.unsupported:
            asked = ", ".join(f"{name} = {json.dumps(value)}" for name, value in config.unsupported.items())
            warnings.warn(f"{path}: generation here does not do what these fields ask for: {asked}", stacklevel=6)
        return config
