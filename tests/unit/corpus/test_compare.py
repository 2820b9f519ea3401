"""Two tokenizers side by side, against what encoding says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpe_llama import Tokenizer, cli
from bpe_llama.compare import compare


@pytest.fixture
def files(tok: Tokenizer, bytes_only: Tokenizer, corpus: list[str], tmp_path: Path) -> list[str]:
    """Return the paths of two tokenizers and two texts."""
    tok.save(tmp_path / "a.json")
    bytes_only.save(tmp_path / "b.json")
    for name, text in (("one.txt", corpus[0][:5000]), ("two.txt", corpus[-1][:3000])):
        (tmp_path / name).write_bytes(text.encode())
    return [str(tmp_path / name) for name in ("a.json", "b.json", "one.txt", "two.txt")]


def test_rows_are_counts(tok: Tokenizer, bytes_only: Tokenizer, corpus: list[str]) -> None:
    texts = [("one", corpus[0][:5000]), ("two", corpus[-1][:3000]), ("none", "")]
    result = compare(tok, bytes_only, texts)
    sizes = [len(text.encode()) for _, text in texts]
    counts = [tok.count(text) for _, text in texts]
    rows = [(row.name, row.num_bytes, row.tokens_a, row.tokens_b) for row in result.rows]
    expected = [(name, size, count, size) for (name, _), size, count in zip(texts, sizes, counts, strict=True)]
    assert rows == [*expected, ("total", sum(sizes), sum(counts), sum(sizes))]
    assert result.rows[-1].bytes_per_token == (sum(sizes) / sum(counts), 1.0)
    assert result.rows[2].bytes_per_token == (0.0, 0.0)
    assert (result.shared, result.only_b) == (256, [])
    assert set(result.only_a) == {token for token in tok.mergeable_ranks if len(token) > 1}
    assert list(map(len, result.only_a)) == sorted(map(len, result.only_a), reverse=True)
    with pytest.raises(ValueError, match="no text"):
        compare(tok, bytes_only, [])


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_command_prints_a_table_and_draws_a_plot(
    suffix: str, magic: bytes, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="a plot needs matplotlib: pip install 'bpe-llama[model]'")
    a, b, one, two = files
    plot = tmp_path / f"plot{suffix}"
    assert cli.main(["compare", a, b, "--text", one, "--text", two, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("a.json", "b.json", "one.txt", "two.txt", "total", "in both"))
    assert plot.read_bytes().startswith(magic)


def test_a_plot_that_cannot_be_drawn_is_one_line(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, one, _ = files
    assert cli.main(["compare", a, b, "--text", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    assert cli.main(["compare", a, b, "--text", one, "--plot", str(tmp_path / "plot.png")]) == 2
    assert capsys.readouterr().err == "bpe-llama: a plot needs matplotlib: pip install 'bpe-llama[model]'\n"
