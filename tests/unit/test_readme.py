"""Every Python block of the README runs, in order, in one folder."""

import re
from pathlib import Path

import pytest

from bench import data

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"### ([^\n]*)\n(?:(?!###).)*?```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)


def prepare(folder: Path, real) -> None:
    """Put the files that the README speaks of where it says."""
    (folder / "corpus").mkdir()
    for name in ("argparse.py", "typing.py", "inspect.py"):
        source = Path(re.__file__).parents[1] / name
        (folder / "corpus" / name).with_suffix(".txt").write_bytes(source.read_bytes())
    for name in ("cl100k_base.tiktoken", "mine.tiktoken"):
        (folder / name).symlink_to(real(data.vocabulary, "cl100k"))
    (folder / "mistral").mkdir()
    (folder / "mistral" / "tokenizer.model").symlink_to(real(data.vocabulary, "mistral"))
    real(data.vocabulary, "o200k")  # found in the cache by its name
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(real(data.smollm2_gguf))


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch, real, capsys):
    assert len(BLOCKS) >= 6
    prepare(tmp_path, real)
    monkeypatch.chdir(tmp_path)
    for title, code in BLOCKS:
        if title == "Load a known vocabulary":
            (tmp_path / "folder/with").mkdir(parents=True)
            (tmp_path / "folder/with/tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
        exec(compile(code, f"README.md, {title}", "exec"), {})
    assert "Paris" in capsys.readouterr().out
