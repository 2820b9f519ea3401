"""The tensors of a GGUF file: their names in llama.cpp and in Hugging Face checkpoints, and how to read them.

Source: `gguf-py/gguf/constants.py` of llama.cpp for the names. The `gguf` package dequantizes
the tensor types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpe_llama._gguf.header import GGUFHeader, TensorInfo
from bpe_llama.model.family import GGUFLayout, GGUFSplit

_CHUNK_ELEMENTS = 1 << 24  # dequantize at most 64 MiB of float32 at a time

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""LLaMA's; a family has others in `GGUFLayout.modules`."""
ROPE_FACTORS = "rope_freqs.weight"
LONGROPE_FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class Names:
    """The names of the tensors of a layout, in both directions."""

    def __init__(self, layout: GGUFLayout) -> None:
        taken = layout.modules.values()
        self.modules = {part: name for part, name in LAYER_NAMES.items() if name not in taken} | dict(layout.modules)
        self.parts = {name: part for part, name in self.modules.items()}
        self.splits = layout.splits
        self.architecture = layout.architecture

    def split(self, name: str) -> tuple[GGUFSplit, list[str]] | None:
        """Return how a Hugging Face tensor is split and the GGUF names of its parts, or None if it is one tensor."""
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        if (split := self.splits.get(part)) is None:
            return None
        return split, [f"blk.{layer}.{one}" for one in split.names]

    def huggingface(self, gguf_name: str) -> str | None:
        """Return the Hugging Face name of a GGUF tensor, or None if it has none.

        A name with ``{}`` for a number is that of the tensors that one GGUF tensor holds.

        Example:
            >>> Names(GGUFLayout("llama")).huggingface("blk.3.attn_q.weight")
            'model.layers.3.self_attn.q_proj.weight'
        """
        if match := LAYER_TENSOR.fullmatch(gguf_name):
            layer, part, kind = match.groups()
            return f"model.layers.{layer}.{self.modules[part]}.{kind}" if part in self.modules else None
        part, _, kind = gguf_name.rpartition(".")
        return f"{OUTER_NAMES[part]}.{kind}" if part in OUTER_NAMES else None

    def gguf(self, name: str) -> tuple[str, bool]:
        """Return the GGUF name of a Hugging Face tensor, and whether that tensor holds others too.

        Raises:
            ValueError: If llama.cpp has no name for it.

        Example:
            >>> Names(GGUFLayout("llama")).gguf("model.layers.3.mlp.up_proj.weight")
            ('blk.3.ffn_up.weight', False)
        """
        module, _, kind = name.rpartition(".")
        for part, outer in OUTER_NAMES.items():
            if module == outer:
                return f"{part}.{kind}", False
        _, _, layer, module = module.split(".", 3)
        pattern = _NUMBER.sub("{}", module)
        if pattern not in self.parts:
            raise ValueError(f"a GGUF file of architecture {self.architecture} has no name for the tensor {name!r}")
        return f"blk.{layer}.{self.parts[pattern]}.{kind}", pattern != module


@dataclass(frozen=True)
class Content:
    """What a config is read from: a GGUF file, or what is about to be written to one.

    Attributes:
        metadata: All keys.
        shapes: Of all tensors, by GGUF's names.
        values: Returns the numbers of a tensor.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: Callable[[str], Tensor]

    @staticmethod
    def of(header: GGUFHeader) -> Content:
        """Return the content of a file."""
        shapes = {name: info.shape for name, info in header.tensors.items()}
        return Content(header.metadata, shapes, lambda name: read_tensor(header.tensors[name], torch.float32))

    @property
    def of_architecture(self) -> dict[str, Any]:
        """Return the metadata of the architecture, without its name."""
        start = f"{self.metadata['general.architecture']}."
        return {key.removeprefix(start): value for key, value in self.metadata.items() if key.startswith(start)}


def check_installed() -> None:
    """Raise an ImportError that names the extra if the package `gguf` is not installed."""
    try:
        from gguf import quants  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"the weights of GGUF files need {error.name}: pip install 'bpe_llama[model]'") from error


def read_tensor(info: TensorInfo, dtype: torch.dtype) -> Tensor:
    """Return one tensor, dequantized to `dtype`, with its rows in GGUF's order.

    Raises:
        ValueError: If the tensor type is unknown, or the file has become shorter.

    Cost: one pass over the file's bytes; at most 64 MiB besides the result.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if info.nbytes is None:
        raise ValueError(f"{info.path}: tensor {info.name!r} has tensor type {info.type_id}, which is not known")
    rows = info.shape[0] if len(info.shape) > 1 else 1
    out = torch.empty(info.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    try:
        raw = np.memmap(info.path, np.uint8, "c", info.start, (rows, info.nbytes // rows))
    except ValueError as error:  # the file has become shorter since its header was read
        raise ValueError(f"{info.path}: truncated GGUF file: tensor {info.name!r}: {error}") from error
    step = max(1, _CHUNK_ELEMENTS * rows // out.numel())
    flat = out.view(rows, -1)
    for begin in range(0, rows, step):
        values = dequantize(raw[begin : begin + step], GGMLQuantizationType(info.type_id))
        flat[begin : begin + step] = torch.from_numpy(values)
    return out
