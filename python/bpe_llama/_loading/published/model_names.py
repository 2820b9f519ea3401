"""OpenAI's models and the vocabulary of each, as tiktoken 0.14 lists them in tiktoken/model.py."""

from __future__ import annotations

_CL100K = ("davinci-002", "babbage-002", "gpt-4", "gpt-3.5-turbo", "gpt-3.5", "gpt-35-turbo")
_EMBEDDINGS = ("text-embedding-ada-002", "text-embedding-3-small", "text-embedding-3-large")
_P50K = (
    *("text-davinci-003", "text-davinci-002", "code-davinci-002", "code-davinci-001", "code-cushman-002"),
    *("code-cushman-001", "davinci-codex", "cushman-codex"),
)
_R50K = (
    *("text-davinci-001", "text-curie-001", "text-babbage-001", "text-ada-001", "davinci", "curie", "babbage", "ada"),
    *(f"text-similarity-{size}-001" for size in ("davinci", "curie", "babbage", "ada")),
    *(f"text-search-{size}-doc-001" for size in ("davinci", "curie", "babbage", "ada")),
    *("code-search-babbage-code-001", "code-search-ada-code-001"),
)

MODELS: dict[str, str] = {
    **dict.fromkeys(("o1", "o3", "o4-mini", "gpt-5", "gpt-4.1", "gpt-4o"), "o200k_base"),
    **dict.fromkeys((*_CL100K, *_EMBEDDINGS), "cl100k_base"),
    **dict.fromkeys(_P50K, "p50k_base"),
    **dict.fromkeys(_R50K, "r50k_base"),
    **dict.fromkeys(("text-davinci-edit-001", "code-davinci-edit-001"), "p50k_edit"),
    **dict.fromkeys(("gpt2", "gpt-2"), "gpt2"),
}

# What names of dated, sized and fine-tuned models begin with. The first that fits counts.
PREFIXES: dict[str, str] = {
    **dict.fromkeys(
        ("o1-", "o3-", "o4-mini-", "gpt-5", "gpt-4.5-", "gpt-4.1-", "chatgpt-4o-", "gpt-4o-"), "o200k_base"
    ),
    **dict.fromkeys(("gpt-4-", "gpt-3.5-turbo-", "gpt-35-turbo-"), "cl100k_base"),
    "gpt-oss-": "o200k_harmony",
    "ft:gpt-4o": "o200k_base",
    **dict.fromkeys(("ft:gpt-4", "ft:gpt-3.5-turbo", "ft:davinci-002", "ft:babbage-002"), "cl100k_base"),
}


def vocabulary_of_model(name: str) -> str | None:
    """Return the name of a model's vocabulary, if the model is known by its name or by the beginning of it."""
    if name in MODELS:
        return MODELS[name]
    return next((vocabulary for prefix, vocabulary in PREFIXES.items() if name.startswith(prefix)), None)
