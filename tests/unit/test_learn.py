"""The lessons: page and notebook are equal, the notebook runs, prints what the page shows and writes its pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lessons import FOLDER, PAGES, blocks_of, execute, notebook_text, pictures_of, prepare, same_output

LARGEST = 200_000
"""Bytes of a picture: a larger SVG is written as PNG."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_and_notebook_are_equal(page: Path) -> None:
    notebook = page.with_suffix(".ipynb")
    hint = f"run: python -m tests.lessons {page.stem}"
    assert notebook.exists() and notebook.read_text("utf-8") == notebook_text(page), hint


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_runs(page: Path, tmp_path: Path, real: Callable[..., Any]) -> None:
    prepare(page, tmp_path, real)
    printed = execute(page, tmp_path)
    blocks = blocks_of(page)
    assert len(printed) == len(blocks)
    for block, text in zip(blocks, printed, strict=True):
        assert block.prints(text), f"{block.code}\nprints\n{text}\nnot\n{block.output}"
    assert {path.name for path in (tmp_path / "images").iterdir()} == pictures_of(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_of_a_page(page: Path) -> None:
    names = pictures_of(page)
    assert names, f"{page.name} shows no picture"
    for name in names:
        assert name.startswith(f"{page.stem}-"), name
        assert (FOLDER / "images" / name).stat().st_size <= LARGEST, name


def test_every_picture_is_shown() -> None:
    shown = {name for page in PAGES for name in pictures_of(page)}
    assert {path.name for path in (FOLDER / "images").glob("*.*")} == shown


def test_outputs_that_differ_are_seen() -> None:
    assert same_output("3 tokens, 1.00 s", "3  tokens, 1.01 s")
    assert not same_output("3 tokens", "4 tokens")
    assert not same_output("3 tokens", "3 words")
    assert not same_output("loss 1.0", "loss 1.5")
    assert same_output("loss 1.0", "loss 1.5", measured=True)
    assert not same_output("loss 1.0", "", measured=True)
