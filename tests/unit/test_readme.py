"""The README: every block runs, in order, in one folder; the picture shows the figures of docs/benchmarks.md."""

import re
import sys
from pathlib import Path

import pytest

from bench import chart, data
from tests.block_runner import BlockRunner

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def prepare(folder: Path, real) -> None:
    """Put the files that the README speaks of where it says."""
    (folder / "corpus").mkdir()
    for name in ("argparse.py", "typing.py", "inspect.py"):
        source = Path(re.__file__).parents[1] / name
        (folder / "corpus" / name).with_suffix(".txt").write_bytes(source.read_bytes())
    real(data.vocabulary, "o200k")  # found in the cache by its name
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(real(data.smollm2_gguf))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are for a POSIX shell")
def test_every_block_runs(tmp_path: Path, real, runner: BlockRunner) -> None:
    assert len(BLOCKS) == 6
    prepare(tmp_path, real)
    output = ""
    for kind, body in BLOCKS:
        done = runner.run(kind, body, tmp_path)
        assert done.returncode == 0, f"{body}\n{done.stdout}{done.stderr}"
        output += done.stdout
    assert output.count("Paris") >= 2  # from Python and from the terminal


def test_the_picture_shows_the_figures_of_the_tables() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert chart.PICTURE.read_text("utf-8") == chart.svg(text), "run `python -m bench.chart`"
    said = " ".join(re.search(r"!\[(.*?)\]", README, re.DOTALL)[1].split())
    for job in chart.JOBS:
        for name, rate in chart.bars(text, job):
            shown = chart.number(rate)
            assert shown in said or f"{rate:.0f}" in said, f"the picture's text lacks {shown} of {name}"
