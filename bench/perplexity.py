"""Perplexity of SmolLM2-135M-Instruct on prose, for each dtype and quantization of the weights.

Run `python -m bench.perplexity`; it writes `bench/results/perplexity.md`. Some minutes on two cores.
"""

from __future__ import annotations

import time

import torch

from bench import data, measure
from bench.measure import RESULTS
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, perplexity, quantize

WINDOW = 1024
FORMATS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {},
    "float16": {},
    "float8_e4m3, a scale a row": {"kind": "float8_e4m3"},
    "float8_e4m3, one scale": {"kind": "float8_e4m3", "per_row": False},
    "float8_e5m2, a scale a row": {"kind": "float8_e5m2"},
    "int8, a scale a row": {"kind": "int8"},
    "int4, groups of 32": {"kind": "int4", "group_size": 32},
    "int4, groups of 64": {"kind": "int4", "group_size": 64},
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--bytes", type=int, default=100_000, help="of prose")
    size = parser.parse_args().bytes
    path = data.smollm2_gguf()
    ids = Tokenizer.from_gguf(path).encode(
        data.corpus("prose", megabytes=2).read_bytes()[:size].decode(errors="ignore")
    )
    lines = [
        f"SmolLM2-135M-Instruct (dequantised from Q4_1) on {size:,} bytes of prose, {len(ids):,} tokens, windows of "
        f"{WINDOW:,}. The arithmetic is float32. float8, int8 and int4 quantize the matrices of the "
        "layers, not the tied embedding. The weights come from 4 bits in blocks of 32, which favours int4 in "
        f"groups of 32. torch {torch.__version__}.",
        "",
        "| weights | perplexity | increase over float32 |",
        "|---|---|---|",
    ]
    exact = None
    for name, options in FORMATS.items():
        began = time.perf_counter()
        model = LlamaForCausalLM.from_pretrained(path, dtype="float32", device="cpu")
        if options:
            quantize.quantize(model, **options)  # type: ignore[arg-type]  # see FORMATS
        elif name != "float32":
            round_weights(model, getattr(torch, name))
        found = perplexity(model, ids, window=WINDOW)
        exact = exact or found
        lines.append(f"| {name} | {found:.4f} | {found / exact - 1:.3%} |")
        print(f"{lines[-1]}  ({time.perf_counter() - began:.0f} s)", flush=True)
    (RESULTS / "perplexity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def round_weights(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Round every weight to a dtype and back."""
    for weight in model.parameters():
        weight.copy_(weight.to(dtype))


if __name__ == "__main__":
    main()
