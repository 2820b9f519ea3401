"""Every command and program of the guide in docs/ is run, page by page, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+ -->\n)?```(?P<kind>sh|python)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are for a POSIX shell")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": programs, "COLUMNS": "120"}
    ran = 0
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        if block["skip"]:
            continue
        script = tmp_path / f"block{ran}.{'py' if block['kind'] == 'python' else 'sh'}"
        script.write_text(block["body"], "utf-8")
        command = [sys.executable, str(script)] if block["kind"] == "python" else ["bash", "-eu", str(script)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        script.unlink()
        assert done.returncode == 0, f"{page.name}, block {ran}:\n{block['body']}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran, f"{page.name} holds nothing that runs"
