"""Coverage-guided fuzzing of the targets of `test_fuzz`, by atheris: ``python -m tests.fuzz.guided python_config 60``.

An input that breaks a promise is kept under ``regressions/TARGET/``, to commit with the mend. What reaches new code is
collected under ``rust/fuzz/corpus/TARGET/``, where the next run begins; git ignores that folder.

atheris (Apache-2.0) has wheels for Linux; `make fuzz-all` installs it. https://github.com/google/atheris
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from pathlib import Path

CORPORA = Path(__file__).parents[2] / "rust" / "fuzz" / "corpus"


def main(target: str, seconds: int) -> None:
    """Fuzz one target for some seconds; exits with libFuzzer's code."""
    import atheris  # pytest imports every module, and atheris is only installed to fuzz
    from numpy.lib.format import open_memmap

    warnings.simplefilter("ignore", UserWarning)
    folder, corpus = Path(tempfile.mkdtemp()), CORPORA / target
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["bpe_llama", "jinja2"], exclude=["bpe_llama._core"]):
        from tests.fuzz import test_fuzz
        from tests.fuzz.structure import STRUCTURES, restructured

        for name in ("open_memmap", "_read_array_header", "descr_to_dtype"):  # of numpy, which is large, only these
            atheris.instrument_func(open_memmap.__globals__[name])
        seeds = test_fuzz.TARGETS[target][1]
        for number, seed in enumerate(seeds):
            (corpus / f"seed{number}").write_bytes(seed)
            test_fuzz.hold(target, seed, folder)  # imports what is imported when it is needed

    def mutated(block: bytes, most: int, seed: int) -> bytes:
        """Change a value of every other input that has values."""
        draw = random.Random(seed)
        if target in STRUCTURES and draw.random() < 0.5:
            found = restructured(block, STRUCTURES[target], draw)
            if found is not None and len(found) <= most:
                return found
        return bytes(atheris.Mutate(block, most))

    kept = test_fuzz.REGRESSIONS / target
    kept.mkdir(parents=True, exist_ok=True)
    most = max(test_fuzz.MAX_SIZE, *(2 * len(seed) for seed in seeds))
    limits = [f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=4096", f"-max_len={most}"]
    limits.append(f"-artifact_prefix={kept}/")  # `hold` keeps what it catches, libFuzzer a hang or too much memory
    arguments = [sys.argv[0], str(corpus), str(kept), *limits]
    atheris.Setup(arguments, lambda block: test_fuzz.hold(target, block, folder), custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
