"""Tokenizers side by side, against what encoding says."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from bpe_llama import Tokenizer, cli
from bpe_llama.compare import SAMPLES, OtherTokenizer, compare, open_any


@pytest.fixture
def files(tok: Tokenizer, bytes_only: Tokenizer, corpus: list[str], tmp_path: Path) -> list[str]:
    """Return the paths of two tokenizers and two texts."""
    tok.save(tmp_path / "a.json")
    bytes_only.save(tmp_path / "b.json")
    for name, text in (("one.txt", corpus[0][:5000]), ("two.txt", corpus[-1][:3000])):
        (tmp_path / name).write_bytes(text.encode())
    return [str(tmp_path / name) for name in ("a.json", "b.json", "one.txt", "two.txt")]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of a WordPiece and a Unigram model that `tokenizers` trained."""
    tokenizers = pytest.importorskip("tokenizers", reason="trains the models that are compared")
    folder, found = tmp_path_factory.mktemp("others"), {}
    for kind in ("WordPiece", "Unigram"):
        unknown = {"unk_token": "[UNK]"}
        library = tokenizers.Tokenizer(getattr(tokenizers.models, kind)(**(unknown if kind == "WordPiece" else {})))
        library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        trainer = getattr(tokenizers.trainers, f"{kind}Trainer")
        library.train_from_iterator(
            ["low lower lowest slow"] * 20,
            trainer(vocab_size=40, special_tokens=["[UNK]"], show_progress=False, **unknown),
        )
        found[kind] = folder / f"{kind}.json"
        library.save(str(found[kind]))
    return found


def test_figures_are_counts(tok: Tokenizer, bytes_only: Tokenizer, corpus: list[str]) -> None:
    texts = [("one", corpus[0][:5000]), ("two", corpus[-1][:3000]), ("none", "")]
    result = compare({"a": tok, "b": bytes_only}, texts)
    assert result.texts == ("one", "two", "none", "total")
    for (_, text), (of_a, of_b) in zip(texts, result.figures, strict=False):
        pieces = tok.tokenize(text)
        assert (of_a.tokens, of_a.single_bytes) == (len(pieces), sum(len(piece) == 1 for piece in pieces))
        assert of_b.tokens == of_b.single_bytes == of_a.num_bytes == len(text.encode())
    totals = [
        [sum(getattr(row[side], name) for row in result.figures[:-1]) for side in (0, 1)]
        for name in ("tokens", "num_words")
    ]
    assert [[getattr(each, name) for each in result.figures[-1]] for name in ("tokens", "num_words")] == totals
    total = result.figures[-1][1]
    assert (total.bytes_per_token, total.fertility) == (1.0, total.tokens / total.num_words)
    assert [each.bytes_per_token for each in result.figures[2]] == [0.0, 0.0]
    assert result.only is not None
    only_a, only_b = result.only
    assert (result.shared, only_b) == (256, ())
    assert set(only_a) == {token for token in tok.mergeable_ranks if len(token) > 1}
    assert list(map(len, only_a)) == sorted(map(len, only_a), reverse=True)
    for tokenizers, pairs, message in (({"a": tok}, [], "no text"), ({}, texts, "no tokenizer")):
        with pytest.raises(ValueError, match=message):
            compare(tokenizers, pairs)


def test_texts_that_are_no_pairs_are_named(bytes_only: Tokenizer) -> None:
    for texts, message in (
        ("ab", "texts must be a list of pairs of a name and a text, got 'ab'"),
        ({"one": "text"}, "texts must be a list of pairs of a name and a text, got {"),
        (["ab"], r"texts\[0\] must be a pair of a name and a text, got 'ab'"),
        ([("one", "a"), ("two", b"a")], r"texts\[1\]\[1\] must be a str, got b'a'"),
        ([(1, "a")], r"texts\[0\]\[0\] must be a str, got 1"),
    ):
        with pytest.raises(TypeError, match=message):
            compare({"a": bytes_only}, texts)
    with pytest.raises(ValueError, match="texts holds one with the name 'total', which the sum of all has"):
        compare({"a": bytes_only}, [("total", "a"), ("two", "b")])
    assert compare({"a": bytes_only}, [("total", "a")]).texts == ("total",)


def test_words_are_characters_where_no_spaces_are(bytes_only: Tokenizer) -> None:
    found = compare({"a": bytes_only}, [("zh", "人人生而自由 and free"), ("en", "born\tfree\n")])
    assert [row[0].num_words for row in found.figures] == [8, 2, 10]


def test_wordpiece_and_unigram_go_through_the_tokenizers_library(
    others: dict[str, Path], tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = {kind: open_any(str(path)) for kind, path in others.items()}
    assert {kind: each.kind for kind, each in opened.items() if isinstance(each, OtherTokenizer)} == {
        kind: kind for kind in others
    }
    text = "slow low Ω"
    result = compare(opened | {"ours": tok}, [("text", text)])
    library = pytest.importorskip("tokenizers").Tokenizer
    for each in result.figures[0][:2]:
        tokens = library.from_file(str(others[each.tokenizer])).encode(text).tokens
        assert each.tokens == len(tokens) and each.unknown == 1
        known = [token.removeprefix("##") for token in tokens if token not in ("[UNK]", "Ω")]
        assert each.single_bytes == sum(len(token) == 1 for token in known)
    assert result.only is None and result.figures[0][2].unknown == 0
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install tokenizers"):
        open_any(str(others["Unigram"]))


def test_a_file_that_nobody_reads_has_our_message(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=str(tmp_path)) as ours:
        Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)) as found:
        open_any(str(tmp_path))
    assert str(found.value) == str(ours.value)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_command_prints_a_table_and_draws_a_plot(
    suffix: str,
    magic: bytes,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="a plot needs matplotlib: pip install 'bpe_llama[plot]'")
    a, b, one, two = files
    plot = tmp_path / f"plot{suffix}"
    assert cli.main(["compare", a, b, "--text", one, "--text", two, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("a.json", "b.json", "one.txt", "two.txt", "total", "in both", "tokens a word"))
    assert plot.read_bytes().startswith(magic)

    def fill_the_disk(figure: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = plot.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_the_disk)
    assert cli.main(["compare", a, b, "--text", one, "--plot", str(plot)]) == 2
    assert str(plot) in capsys.readouterr().err
    assert plot.read_bytes() == before and [each.name for each in tmp_path.glob("*plot*")] == [plot.name]


def test_the_command_takes_many_tokenizers_and_its_own_texts(
    files: list[str], others: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, one, _ = files
    tokenizers = [a, b, str(others["WordPiece"])]
    assert cli.main(["compare", *tokenizers, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert [each["text"] for each in figures] == [name for name in [*SAMPLES, "total"] for _ in tokenizers]
    assert [each["tokenizer"] for each in figures[:3]] == ["a.json", "b.json", "WordPiece.json"]
    assert figures[0]["tokens"] == Tokenizer.from_file(a).count(SAMPLES["English"])
    assert cli.main(["compare", *tokenizers, "--text", str(Path(one).parent / "*.txt")]) == 0
    out = capsys.readouterr().out
    assert "two.txt" in out and "unknown" in out and "in both" not in out
    for same in (a, f"{Path(a).parent}/./{Path(a).name}"):
        assert cli.main(["compare", a, same]) == 2
        assert "a tokenizer is given twice" in capsys.readouterr().err


def test_a_plot_that_cannot_be_drawn_is_one_line(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, one, _ = files
    assert cli.main(["compare", a, b, "--text", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt" in capsys.readouterr().err
    for name in ("plot", "plot.jpg2"):
        assert cli.main(["compare", a, b, "--text", one, "--plot", str(tmp_path / name)]) == 2
        out, error = capsys.readouterr()
        assert "expected one of .png, .svg, .pdf" in error and out == "", "before anything is measured"
    assert not list(tmp_path.glob("plot*"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    assert cli.main(["compare", a, b, "--text", one, "--plot", str(tmp_path / "plot.png")]) == 2
    assert capsys.readouterr().err == "bpe-llama: a plot needs matplotlib: pip install 'bpe_llama[plot]'\n"
