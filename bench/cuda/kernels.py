"""Registers, shared memory and spills of the Triton kernels, compiled for a GPU by Triton's own assembler, without one.

    python -m bench.cuda.kernels                 # for an H100 or H200
    python -m bench.cuda.kernels --capability 80

The shapes are those of Llama 3 8B. ``x`` marks a program that leaves no shared
memory for a second one on a multiprocessor.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from bench import measure
from bpe_llama.model.backends.cuda import triton_kernels, triton_step, wide_layers
from bpe_llama.model.backends.cuda.memory import PARTS
from bpe_llama.model.quantization import triton_kernels as matmul_kernels
from bpe_llama.model.quantization.triton_matmul import tile_sizes
from bpe_llama.model.sampling import kernels as sampling_kernels

MULTIPLES_OF_16 = ("inputs", "outputs", "pitch", "capacity", "vocab_size", "row_stride", "chunk", "size")
SHARED_MEMORY = 227 * 1024
"""Bytes of shared memory that a program may take on an H100 or H200."""
HEADS, KV_HEADS, SIZE, HIDDEN, INTERMEDIATE = 32, 8, 128, 4096, 14_336


class Variant(NamedTuple):
    """A kernel as it is launched.

    Attributes:
        name: Of the kernel and what distinguishes the variant.
        kernel: A function of Triton.
        types: The type of each argument that is no constant, as Triton writes it.
        constants: The arguments that are constants of the compilation.
        options: ``num_warps`` and ``num_stages``.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int] = {}  # noqa: RUF012  # never changed


def compiled(variant: Variant, capability: int = 90) -> Any:
    """Return a kernel compiled to machine code, as for a launch with torch's memory and the sizes of real models."""
    _, kernel, types, constants, options = variant
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = [n for n, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name in MULTIPLES_OF_16]
    attributes = {(n,): [["tt.divisibility", 16]] for n in aligned}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True, **options}
    )


FORMATS = [
    ("bf16", "bf16", 0),
    ("bf16", "i8", 0),
    ("bf16", "u8", 32),
    ("bf16", "u8", 256),
    ("bf16", "fp8e4nv", 0),
    ("bf16", "fp8e5", 0),
    ("fp32", "fp32", 0),
    ("fp32", "u8", 64),
]
"""Formats of products: the dtype of activations, that of weights, and the group size of int4."""


def products() -> Iterator[Variant]:
    """Yield the product in each format: the gated one with a norm before it, and the one that is added."""
    for number, weight, group in FORMATS:
        for rows in (1, 64):
            for gated in (False, True):
                constants: dict[str, Any] = {
                    "DTYPE": tl.bfloat16 if number == "bf16" else tl.float32,
                    "GROUP": group,
                    "SCALED": weight in ("i8", "fp8e4nv", "fp8e5"),
                    "BIASED": gated,
                    "NORMED": gated,
                    "GATED": gated,
                    "ADDED": not gated,
                }
                types = {**dict.fromkeys(["rows", "outputs", "inputs", "pitch"], "i32"), "eps": "fp32"}
                types |= {"weight": f"*{weight}", "scale": "*i32" if group else "*fp32"}
                types |= dict.fromkeys(["bias", "norm"], f"*{number}")
                types |= {"x": "*fp32", "out": f"*{number}"} if gated else {"x": f"*{number}", "out": "*fp32"}
                tile = tile_sizes(rows, INTERMEDIATE if gated else HIDDEN, constants)
                options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
                tile |= {"rows": 1} if rows == 1 else {}  # a launch specializes on 1
                stored = f"int4 by {group}" if group else weight
                name = f"product, {stored} in {number}, {'gated' if gated else 'added'}, {rows} rows"
                yield Variant(name, matmul_kernels._matmul, types, constants | tile, options)


def others() -> Iterator[Variant]:
    """Yield the other kernels of a step."""
    for number, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        types = dict.fromkeys(["cos", "sin", "part_outs", "part_stats"], "*fp32") | {"position": "*i64"}
        types |= dict.fromkeys(["query", "qkv", "keys", "values", "out", "norm", "branch", "gate_up"], f"*{number}")
        types |= {"x": "*fp32", "scale": "fp32", "eps": "fp32"}
        types |= dict.fromkeys(["capacity", "window", "size", "tokens"], "i32")
        heads, size = {"HEADS": HEADS, "KV_HEADS": KV_HEADS}, {"SIZE": SIZE, "BLOCK": SIZE}
        parts = {"CHUNK": triton_step.CHUNKS[dtype], "PARTS": PARTS}
        groups = {"KV_HEADS": KV_HEADS, "GROUPS": HEADS // KV_HEADS, "BLOCK_G": 16}
        listed: list[tuple[str, str, dict[str, Any], dict[str, int]]] = [
            ("_apply_rope", "RoPE and cache, decoding", {**heads, **size, "HALF": 64, "tokens": 1}, {"num_warps": 1}),
            ("_apply_rope", "RoPE and cache, prompts", {**heads, **size, "HALF": 64}, {"num_warps": 1}),
            ("_attend_part", "attention to a part", {**groups, **parts, **size}, {"num_stages": 2}),
            ("_combine_parts", "attention of all parts", {"HEADS": HEADS, **parts, **size}, {}),
            ("_add_norm", "residual and norm", {"ADDED": True, "BLOCK": HIDDEN}, {"num_warps": 8}),
            ("_swiglu", "SwiGLU", {"BLOCK": wide_layers.BLOCK_F}, {}),
        ]
        for name, said, constants, options in listed:
            yield Variant(f"{said}, {number}", getattr(triton_kernels, name), types, constants, options)


SEARCH = {"SPLITS": 32, "COUNTING": False, "OF_BASE": True, "KEY_BITS": 32}
SAMPLER = [
    ("_extent", {"SPLITS": 32}),
    ("_weigh_digits", {**SEARCH, "ROUND": 0}),
    ("_weigh_digits", {**SEARCH, "ROUND": 1}),
    ("_weigh_digits", {**SEARCH, "COUNTING": True, "OF_BASE": False, "KEY_BITS": 16, "ROUND": 2}),
    ("_settle", {**SEARCH, "KEEP_TIES": False}),
    ("_settle", {**SEARCH, "COUNTING": True, "KEEP_TIES": True, "KEY_BITS": 16}),
    ("_tally", {"SPLITS": 32, "CUTOFF": True, "KEY_BITS": 32}),
    ("_draw", {"SPLITS": 32, "CUTOFF": True, "KEY_BITS": 32}),
    ("_draw", {"SPLITS": 1, "CUTOFF": False, "KEY_BITS": 16}),
]


def sampler() -> Iterator[Variant]:
    """Yield the sampler's kernels."""
    types = dict.fromkeys(["seeds", "steps", "ids_out"], "*i64") | dict.fromkeys(["goal", "inverse", "gap"], "fp64")
    types |= dict.fromkeys(["row_stride", "vocab_size", "chunk", "unseen", "seed_stride", "step_stride"], "i32")
    for name, constants in SAMPLER:
        kernel, narrow = getattr(sampling_kernels, name), constants.get("KEY_BITS") == 16
        scores = {"scores": "*bf16" if narrow else "*fp32"}
        said = [
            name.strip("_").replace("_", " "),
            *(f"round {constants['ROUND']}" for _ in "1" if "ROUND" in constants),
        ]
        said += ["bf16" if narrow else "fp32"]
        yield Variant(
            f"sampler, {', '.join(said)}", kernel, dict.fromkeys(kernel.arg_names, "*fp64") | types | scores, constants
        )


class Usage(NamedTuple):
    """What a program takes: registers a thread, bytes of shared memory, bytes of spills a thread (stores and loads)."""

    registers: int
    shared: int
    spills: int


def usage(kernel: Any) -> Usage:
    """Return what a compiled kernel takes, as the assembler that comes with Triton says."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    target = re.findall(r"^\.target (sm_\w+)", kernel.asm["ptx"], re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        for assembler in sorted(tools.glob("ptxas*"), reverse=True):  # an older one beside it may not know the dialect
            command = [str(assembler), "-v", f"--gpu-name={target}", str(source), "-o", f"{folder}/kernel.cubin"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
    said = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"no assembler in {tools} takes the kernel: {said.strip()}")
    spills = sum(int(found) for found in re.findall(r"(\d+) bytes spill", said))
    registers = int(re.findall(r"Used (\d+) registers", said)[0])
    return Usage(registers, kernel.metadata.shared, spills)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    chosen = parser.parse_args()
    rows = []
    for variant in (*products(), *others(), *sampler()):
        found = usage(compiled(variant, chosen.capability))
        alone = " x" if 2 * found.shared > SHARED_MEMORY else ""
        rows.append([variant.name, str(found.registers), f"{found.shared / 1024:.0f}{alone}", str(found.spills or "")])
    print(f"Triton {triton.__version__}, capability {chosen.capability}\n")
    print(measure.markdown(["kernel", "registers", "KiB of shared memory", "bytes of spills"], rows))


if __name__ == "__main__":
    main()
