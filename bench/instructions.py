"""Instructions per byte of warm encoding, counted by callgrind: ``python -m bench.instructions --help``.

Times on a shared machine vary by half; instruction counts do not. The Rust example ``encode`` runs for one round and
for six; the difference, divided by five, is the cost of one more encoding, without loading and warm-up. Valgrind does
not support AVX-512, so the AVX2 splitter runs.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import data, measure
from bench.published import PUBLISHED

ROOT = Path(__file__).parents[1]
TEXT_BYTES, WORST_CASE_BYTES = 400_000, 100_000
WORST_CASES = ("one_letter", "spaces", "random_letters", "base64", "every_code_point")
ROUNDS = (1, 6)


def main() -> None:
    """Print the tables and append the figures to bench/results/instructions.json."""
    parser = measure.parser(__doc__)
    parser.add_argument("--vocabulary", choices=["cl100k", "llama3", "o200k"], default="cl100k")
    parser.add_argument("--only", nargs="*", choices=[*data.KINDS, *WORST_CASES], help="only these texts")
    parser.add_argument("--functions", type=int, default=4, help="functions to print per text")
    parser.add_argument("--binary", type=Path, help="the example's binary; default: build it")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed; on Debian: apt-get install valgrind")
    binary = options.binary or build()

    rows: list[dict[str, Any]] = []
    for name in options.only or [*data.KINDS, *WORST_CASES]:
        row = {"text": name, "vocabulary": options.vocabulary, **count(binary, options.vocabulary, text(name))}
        rows.append(row)
        top = [f"{value:.2f} {function}" for function, value in list(row["functions"].items())[: options.functions]]
        print(f"{name:17}{row['instructions_per_byte']:8.2f}   " + ",  ".join(top), flush=True)
    print(f"\nrecorded in {measure.record('instructions', rows, measure.versions('bpe-llama'))}")


def text(name: str) -> str:
    """Return the first bytes of a corpus, or one of the worst cases."""
    if name in WORST_CASES:
        whole, size = data.adversarial(WORST_CASE_BYTES)[name], WORST_CASE_BYTES
    else:
        whole, size = data.corpus(name, megabytes=2).read_bytes().decode(), TEXT_BYTES
    return whole.encode()[:size].decode("utf-8", "ignore")


def build() -> Path:
    """Build the example in release mode and return its path."""
    cargo = [os.environ.get("CARGO", "cargo"), "build", "--release", "--locked", "--package", "bpe-llama"]
    subprocess.run([*cargo, "--example", "encode"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples" / "encode"


def count(binary: Path, vocabulary: str, text: str) -> dict[str, Any]:
    """Return the size of the text and the instructions per byte: in total, and by function in descending order."""
    command = [str(binary), str(data.vocabulary(vocabulary)), PUBLISHED[vocabulary].pattern]
    profiles = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_bytes(text.encode())
        for rounds in ROUNDS:
            profile = Path(folder) / f"{rounds}.callgrind"
            valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={profile}"]
            run = [*valgrind, *command, str(Path(folder) / "text"), str(rounds)]
            done = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise RuntimeError(f"{' '.join(run)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
            profiles.append(own_costs(profile.read_text("utf-8", "replace")))
    once, often = profiles
    size = len(text.encode())
    costs = {function: (often[function] - once[function]) / (ROUNDS[1] - ROUNDS[0]) / size for function in often}
    functions = {
        name: round(cost, 3) for name, cost in sorted(costs.items(), key=lambda item: -item[1]) if cost > 0.005
    }
    return {"bytes": size, "instructions_per_byte": round(sum(costs.values()), 3), "functions": functions}


def own_costs(profile: str) -> collections.Counter[str]:
    r"""Return the exclusive instruction count of each function.

    Source: the Callgrind format, https://valgrind.org/docs/manual/cl-format.html.

    >>> own_costs("events: Ir\nfn=(1) a::run\n5 10\ncfn=(2) b\ncalls=1 9\n+1 700\n* 3\nfn=(2)\n9 700\n")
    Counter({'b': 700, 'a::run': 13})
    """
    names: dict[str, str] = {}
    costs: collections.Counter[str] = collections.Counter()
    function, is_call = "", False
    for line in profile.splitlines():
        if named := re.match(r"c?fn=\((\d+)\)(?: (.*))?$", line):
            number, name = named.groups()
            if name:
                names[number] = short(name)
            if line.startswith("fn="):
                function = names[number]
        elif line.startswith("calls="):
            is_call = True  # the next line is the inclusive cost of the callee
        elif cost := re.match(r"(?:[+-]?\d+|\*) (\d+)$", line):
            costs[function] += 0 if is_call else int(cost[1])
            is_call = False
    return costs


def short(name: str) -> str:
    """Return a Rust function's name without its generic arguments, crate and hash.

    >>> short("bpe_llama::encode::Encoder::encode<alloc::vec::Vec<u32>>")
    'encode::Encoder::encode'
    >>> short("<bpe_llama::merge::Merger>::merge::h0123456789abcdef")
    'merge::Merger::merge'
    >>> short("<bpe_llama::cl100k::Cl100k as bpe_llama::scan::Grammar>::piece_end")
    'cl100k::Cl100k::piece_end'
    """
    name = re.sub(r"::h[0-9a-f]{16}$", "", name)
    name = re.sub(r"^<(\S+)(?: as .+)?>(::\w+)$", r"\1\2", name)
    while (plain := re.sub(r"(::)?<[^<>]*>", "", name)) != name:
        name = plain
    return name.replace("bpe_llama::", "")


if __name__ == "__main__":
    main()
