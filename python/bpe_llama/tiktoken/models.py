"""Encodings by the names of OpenAI's models."""

from __future__ import annotations

from bpe_llama._arguments import string
from bpe_llama._core import shown
from bpe_llama._loading.published.model_names import MODELS, PREFIXES, vocabulary_of_model
from bpe_llama._loading.published.vocabularies import nearest
from bpe_llama.tiktoken.encoding import Encoding, get_encoding


def encoding_name_for_model(model_name: str) -> str:
    """Return the name of the encoding of an OpenAI model.

    Dated, sized and fine-tuned models are known by the beginning of their names, whether or not they exist.

    Raises:
        KeyError: If no model is called so; the message lists the nearest names.

    Examples:
        >>> encoding_name_for_model("gpt-4-0613")
        'cl100k_base'
    """
    name = vocabulary_of_model(string("model_name", model_name))
    if name is None:
        raise KeyError(
            f"no model is called {shown(model_name)}{nearest(model_name, [*MODELS, *PREFIXES])}; "
            "get_encoding takes the name of an encoding"
        )
    return name


def encoding_for_model(model_name: str) -> Encoding:
    """Return the encoding of an OpenAI model.

    Raises:
        KeyError: If no model is called so.
        FileNotFoundError: As `get_encoding`.
    """
    return get_encoding(encoding_name_for_model(model_name))
