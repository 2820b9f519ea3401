"""Choose the files of a checkpoint on the Hugging Face Hub: one format, and no more than `load` reads."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from bpe_llama._hub.gguf_files import choose_gguf, only_gguf
from bpe_llama.model.checkpoints.huggingface import ADAPTER, WEIGHT_FILES, shards_of
from bpe_llama.model.generation_config import FILE as GENERATION_CONFIG

_META_WEIGHTS = ("consolidated.safetensors", "consolidated-*-of-*.safetensors", "consolidated.*.pth")


def needed_files(where: str, files: Sequence[str]) -> Generator[Sequence[str], Path, str]:
    """Choose the files of a checkpoint, the weights last; see `bpe_llama._hub.fetching.Needed`.

    Hugging Face's layout comes before Meta's and Mistral's, and that before a ``.gguf``. In each layout safetensors
    come before PyTorch's files.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If there are several ``.gguf`` files and nothing else.

    Examples:
        >>> files = ["config.json", "model.safetensors", "pytorch_model.bin", "model.Q4_0.gguf", "original/params.json"]
        >>> choice = needed_files("org/name", files)
        >>> next(choice), choice.send(Path("folder"))
        (['config.json'], ['model.safetensors'])
    """
    here = [file for file in files if "/" not in file]
    weights = next((name for name in WEIGHT_FILES if name in here), None)
    if "config.json" in here and weights is not None:
        beside = [name for name in ("config.json", GENERATION_CONFIG) if name in here]
        if weights.endswith(".index.json"):
            folder = yield [*beside, weights]
            yield [shard for shard in sorted(shards_of(folder / weights)) if shard in here]  # `load` names the absent
        else:
            yield beside
            yield [weights]
        return ""
    found = [matching for pattern in _META_WEIGHTS if (matching := [name for name in here if fnmatch(name, pattern)])]
    if "params.json" in here and found:
        yield ["params.json"]
        yield found[0]
        return ""
    gguf = only_gguf(where, here)
    if gguf is not None:
        return (yield from choose_gguf(where, here, gguf))
    if ADAPTER in here:
        yield [ADAPTER]  # the loader names the model that it belongs to
        return ""
    shown = ", ".join(sorted(here)[:12]) or "no files"
    raise FileNotFoundError(
        f"{where}: holds no config.json with {', '.join(WEIGHT_FILES)}, no params.json with consolidated* and no "
        f".gguf, but {shown}"
    )
