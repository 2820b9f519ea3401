"""Which files are a corpus: of folders, patterns and names."""

from __future__ import annotations

import os
import sys
from glob import glob
from itertools import pairwise
from pathlib import Path

import pytest

from bpe_llama import WordCounts
from bpe_llama._corpus.files import find_files

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/.hidden/d.txt", ".e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("low")
    return tmp_path


def test_files_of_a_folder_are_sorted_and_hidden_ones_left_out(folder: Path) -> None:
    assert find_files(folder) == [folder / "a.txt", folder / "b.txt", folder / "sub/c.txt"]
    assert find_files(folder / ".e.txt") == [folder / ".e.txt"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("[!b].txt", ["a.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("sub/../*.txt", ["sub/../a.txt", "sub/../b.txt"]),
        ("*/*.txt", ["sub/c.txt"]),
        ("*/c.txt", ["sub/c.txt"]),
        ("**", ["a.txt", "b.txt", "sub/c.txt"]),
        ("**/**/*", ["a.txt", "b.txt", "sub/c.txt"]),
        ("s*/**", ["sub/c.txt"]),
        ("**/c*.txt", ["sub/c.txt"]),
        ("**/.hidden/*", ["sub/.hidden/d.txt"]),
        ("**/.h*/**", ["sub/.hidden/d.txt"]),
        (".*", [".e.txt"]),
    ],
)
def test_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]) -> None:
    assert find_files(folder / pattern) == [folder / name for name in names]
    monkeypatch.chdir(folder)
    assert find_files(pattern) == [Path(name) for name in names]
    assert {*find_files(pattern)} == {Path(path) for path in glob(pattern, recursive=True) if Path(path).is_file()}


def test_a_pattern_is_refused_where_two_stars_are_part_of_a_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a\*\*\.txt: \*\* stands for folders; .* not in 'a\*\*\.txt'"):
        find_files(folder / "a**.txt")


@pytest.mark.parametrize("pattern", ["none*/**", "none/*", "a.txt/*", "*/none", "sub/none/*", "*.txt/*"])
def test_a_pattern_without_files_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(folder)
    for path in (pattern, folder / pattern):
        with pytest.raises(FileNotFoundError, match="no file matches this pattern"):
            find_files(path)
    for path in ("none", "none/a.txt", "a.txt/b", ""):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            find_files(path)


def test_a_file_takes_precedence_over_the_pattern_of_its_name(folder: Path) -> None:
    (folder / "[ab].txt").write_text("low")
    assert find_files(folder / "[ab].txt") == [folder / "[ab].txt"]


@needs_links
@pytest.mark.parametrize("pattern", ["", "/", "/**", "/**/*.txt", "/s*/**", "/s*/**/*.txt"])
def test_links_that_lead_back_add_no_files(folder: Path, pattern: str) -> None:
    """Two of them made 2**40 paths, in which no Ctrl-C was seen."""
    expected = find_files(f"{folder}{pattern}")
    for name in ("one", "two"):
        (folder / "sub" / name).symlink_to(".")
    assert find_files(f"{folder}{pattern}") == expected


@needs_links
def test_links_that_meet_add_the_files_of_a_folder_once(tmp_path: Path) -> None:
    """Each of the 60 folders has two links to the next: 2**60 paths to the last."""
    folders = [tmp_path / f"{place:02}" for place in range(60)]
    for folder in folders:
        folder.mkdir()
    for folder, after in pairwise(folders):
        for name in ("one", "two"):
            (folder / name).symlink_to(after)
    (folders[-1] / "a.txt").write_text("low")
    assert find_files(tmp_path) == [folders[-1] / "a.txt"]
    assert len(find_files(folders[-5])) == len(find_files(f"{folders[-5]}/**/a*")) == 1
    assert len(find_files(f"{folders[-3]}/*/*/*")) == 4


@needs_links
def test_links_to_other_folders_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "f.txt").write_text("low")
    (folder / "sub" / "other").symlink_to(other)
    assert folder / "sub/other/f.txt" in find_files(folder)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode")
def test_a_name_that_is_no_unicode_is_one_of_a_file(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    path.write_text("low")
    assert find_files(path) == find_files(tmp_path) == find_files(tmp_path / "*.txt") == [path]
    assert WordCounts.from_files(path, progress=False).most_common() == [(b"low", 1)]
