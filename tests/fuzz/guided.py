"""Coverage-guided fuzzing of the targets of `test_fuzz`, by atheris: ``python -m tests.fuzz.guided python_config 60``.

An input that breaks a promise is kept under ``regressions/TARGET/``, to commit with the mend. What reaches new code is
collected under ``rust/fuzz/corpus/TARGET/``, where the next run begins; git ignores that folder.

atheris (Apache-2.0) has wheels for Linux; `make fuzz-all` installs it. https://github.com/google/atheris
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

CORPORA = Path(__file__).parents[2] / "rust" / "fuzz" / "corpus"


def main(target: str, seconds: int) -> None:
    """Fuzz one target for some seconds; exits with libFuzzer's code."""
    import atheris  # pytest imports every module, and atheris is only installed to fuzz

    with atheris.instrument_imports(include=["bpe_llama"], exclude=["bpe_llama._core"]):
        from tests.fuzz import test_fuzz
    folder, corpus = Path(tempfile.mkdtemp()), CORPORA / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(test_fuzz.TARGETS[target][1]):
        (corpus / f"seed{number}").write_bytes(seed)
    kept = test_fuzz.REGRESSIONS / target
    kept.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=4096", f"-max_len={test_fuzz.MAX_SIZE}"]
    limits.append(f"-artifact_prefix={kept}/")  # `hold` keeps what it catches, libFuzzer a hang or too much memory
    atheris.Setup([sys.argv[0], str(corpus), str(kept), *limits], lambda block: test_fuzz.hold(target, block, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
