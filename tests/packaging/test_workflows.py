"""The workflows of GitHub name files, versions and actions that exist, and have no more rights than they need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="mkdocs brings it")

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {("release.yml", "pypi"): {"attestations", "id-token"}, ("release.yml", "crates"): {"id-token"}}
WRITES[("release.yml", "github")] = {"contents"}


def _jobs(path: Path) -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))["jobs"]
    return jobs


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights(path: Path) -> None:
    assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == {}
    for name, job in _jobs(path).items():
        writes = {right for right, kind in job["permissions"].items() if kind == "write"}
        assert writes == WRITES.get((path.name, name), set()), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_an_action_is_pinned_to_a_commit(path: Path) -> None:
    """A tag of an action can be moved to other code; its version stands in a comment, which Dependabot reads."""
    for used in re.findall(r"uses: (.*)", path.read_text("utf-8")):
        if used.startswith("./"):
            assert (ROOT / used).is_file(), used
        else:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_step_runs_what_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pinned = re.search(r'"maturin==(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert pinned is not None
    for job in _jobs(path).values():
        for step in job.get("steps", []):
            command = step.get("run", "")
            if command.startswith("make "):
                assert {word for word in command.split()[1:] if word.isalpha()} <= targets, command
            for script in re.findall(r"(?:\.ci|tests)/[\w./]+", command):
                assert (ROOT / script).is_file(), command
            if step.get("uses", "").startswith("PyO3/maturin-action"):
                assert step["with"]["maturin-version"] == f"v{pinned[1]}"
