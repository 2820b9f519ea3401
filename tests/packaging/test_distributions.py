"""Every way of installing holds the model, the types and the licence, and no litter.

The wheel, the sdist and the wheel made from that sdist are built here, with a shared cargo folder and our crates
without optimization; they take a minute, so the test is marked slow. The editable install is the one that runs these
tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import bpe_llama

ROOT = Path(__file__).parents[2]
MODEL_FILES = {path.relative_to(ROOT / "model").as_posix() for path in (ROOT / "model").rglob("*.py")}
PACKAGE_FILES = {path.name for path in (ROOT / "python" / "bpe_llama").glob("*.py")} | {"_core.pyi", "py.typed"}


def _maturin(folder: Path, *arguments: str) -> None:
    program = shutil.which("maturin", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.fail("maturin not found: install bpe_llama[dev]")
    quick = {"CARGO_INCREMENTAL": "0", "CARGO_PROFILE_DEV_OPT_LEVEL": "0"}
    environment = {**os.environ, **quick, "CARGO_TARGET_DIR": str(ROOT / "target")}
    if arguments[0] == "build":
        # Other crates as `cargo test` has compiled them.
        arguments += ("--profile", "dev", "--config", 'profile.dev.package."*".opt-level=1')
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tracked files as they are now, with litter that must not be shipped."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout: the tracked files are what is shipped")
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        source, target = ROOT / name, folder / name
        if not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        else:
            shutil.copy2(source, target)
    (folder / "model" / "__pycache__").mkdir()
    (folder / "model" / "__pycache__" / "llama.cpython-311.pyc").write_bytes(b"litter")
    return folder


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the names inside the wheel, the sdist (without its top folder) and the wheel made from the sdist."""
    dist = tmp_path_factory.mktemp("dist")
    _maturin(checkout, "build", "--out", str(dist / "wheel"))
    _maturin(checkout, "sdist", "--out", str(dist / "sdist"))
    (sdist,) = (dist / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name for name in archive.getnames()]
        archive.extractall(dist / "unpacked", filter="data") if sys.version_info >= (3, 12) else archive.extractall(
            dist / "unpacked"
        )
    (unpacked,) = (dist / "unpacked").iterdir()
    sources = [path.relative_to(unpacked) for path in unpacked.rglob("*.rs")]
    assert [name for name in sources if (unpacked / name).read_bytes() != (checkout / name).read_bytes()] == []
    # In the folder of the first build, cargo compiles a crate again only if a file that it reads is missing or newer.
    checkout.rename(dist / "checkout")
    unpacked.rename(checkout)
    _maturin(checkout, "build", "--out", str(dist / "from-sdist"))
    found = {"sdist": {name.partition("/")[2] for name in names}}
    for kind in ("wheel", "from-sdist"):
        (wheel,) = (dist / kind).glob("*.whl")
        assert re.search(r"-cp310-abi3-", wheel.name), "one wheel serves every Python from 3.10 on"
        found[kind] = set(zipfile.ZipFile(wheel).namelist())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "from-sdist"])
def test_a_wheel_holds_the_package_and_the_model(distributions: dict[str, set[str]], kind: str) -> None:
    names = distributions[kind]
    assert {f"bpe_llama/model/{name}" for name in MODEL_FILES} <= names
    assert {f"bpe_llama/{name}" for name in PACKAGE_FILES} <= names
    assert any(re.fullmatch(r"bpe_llama/_core\S*\.(so|pyd)", name) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(re.search(r"\.dist-info/sboms/.*\.cyclonedx\.json$", name) for name in names), "the list of crates"
    top = {name.split("/")[0] for name in names}
    assert top == {"bpe_llama", next(name for name in top if name.endswith(".dist-info"))}
    _assert_no_litter(names)


@pytest.mark.slow
def test_the_sdist_holds_what_a_wheel_is_built_from(distributions: dict[str, set[str]]) -> None:
    names = distributions["sdist"]
    assert {f"python/bpe_llama/model/{name}" for name in MODEL_FILES} <= names
    assert {"Cargo.lock", ".cargo/config.toml", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert any(name.startswith("rust/bpe/src/") for name in names)
    _assert_no_litter(names)


def _assert_no_litter(names: set[str]) -> None:
    assert [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".npy", ".part"))] == []


def test_the_installed_package_holds_the_model() -> None:
    """Under ``pip install -e`` this is the editable layout; else it is the wheel's."""
    folder = Path(bpe_llama.__file__).parent
    assert {path.relative_to(folder / "model").as_posix() for path in (folder / "model").rglob("*.py")} == MODEL_FILES
