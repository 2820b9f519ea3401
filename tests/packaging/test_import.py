"""What an import costs and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bpe_llama

ROOT = Path(__file__).parents[2]


def _python(script: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)


def test_importing_the_package_imports_neither_torch_nor_its_model() -> None:
    done = _python(
        "import sys, bpe_llama; assert bpe_llama.__all__; "
        "[getattr(bpe_llama, name) for name in bpe_llama.__all__]; "
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers', 'ray') "
        "or name.startswith('bpe_llama.model')])"
    )
    assert done.stdout == "[]\n", done.stderr


def test_importing_the_package_changes_no_global_state() -> None:
    done = _python(
        "import locale, logging, os, signal, sys, threading, warnings\n"
        "import numpy, rich, typer, jinja2\n"
        "def state():\n"
        "    return (dict(os.environ), list(warnings.filters), logging.root.level, logging.root.handlers,\n"
        "        signal.getsignal(signal.SIGINT), threading.active_count(), locale.setlocale(locale.LC_ALL))\n"
        "before = state()\n"
        "import bpe_llama\n"
        "print(before == state())"
    )
    assert done.stdout == "True\n", done.stderr


_EXTRAS = {
    "cli": ("rich", "typer", "click"),
    "chat": ("jinja2", "markupsafe"),
    "model": ("torch", "safetensors", "gguf", "regex", "matplotlib"),
    "scale": ("ray",),
}


def _without_extras(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with NumPy alone."""
    missing = [package for packages in _EXTRAS.values() for package in packages]
    return _python(f"import sys; sys.modules |= dict.fromkeys({missing})\n{script}")


def test_the_tokenizer_needs_numpy_alone(tmp_path: Path) -> None:
    done = _without_extras(
        "import sys\n"
        "import numpy as np\n"
        "from bpe_llama import Sampler, Tokenizer\n"
        "sys.stderr.isatty = lambda: True\n"  # where a bar is shown if rich is there
        "tok = Tokenizer.train_from_iterator(['ab ab abc'] * 9, vocab_size=258)\n"
        "tok.chat_template = '{{ messages[0].content }}'\n"
        f"tok.save({str(tmp_path / 'tokenizer.json')!r})\n"
        f"again = Tokenizer.from_file({str(tmp_path)!r})\n"
        "assert again.chat_template == tok.chat_template\n"
        "assert again(['ab', 'abc'], padding=True, pad_id=0, return_tensors='np')['input_ids'].shape == (2, 2)\n"
        "print(again.decode(again.encode('abc')), Sampler(temperature=0.0).sample(np.array([0, 1], np.float32)))"
    )
    assert done.stdout == "abc 1\n", done.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "tok.apply_chat_template([{'role': 'user', 'content': 'a'}], chat_template='a')",
            "jinja2: pip install 'bpe_llama[chat]'",
        ),
        ("Tokenizer.train_from_iterator(['ab'], vocab_size=257, progress=True)", "rich: pip install 'bpe_llama[cli]'"),
        ("import bpe_llama.compare", "rich: pip install 'bpe_llama[cli]'"),
        ("import bpe_llama.model", "torch: pip install 'bpe_llama[model]'"),
        ("from bpe_llama.model import LlamaForCausalLM", "torch: pip install 'bpe_llama[model]'"),
        ("tok(['a'], return_tensors='pt')", "torch: pip install 'bpe_llama[model]'"),
        ("from bpe_llama import scale; scale.count_files('README.md')", "Ray: pip install 'bpe_llama[scale]'"),
    ],
)
def test_a_missing_extra_is_named(script: str, said: str) -> None:
    made = "from bpe_llama import Tokenizer\ntok = Tokenizer.train_from_iterator(['ab'], vocab_size=257)\n"
    error = _without_extras(made + script).stderr.splitlines()[-1]
    assert "Error: " in error and error.endswith(said)


def test_the_command_without_its_extra_says_how_to_install_it() -> None:
    done = _without_extras("from bpe_llama.__main__ import main; sys.exit(main())")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "bpe-llama: the command line needs typer: pip install 'bpe_llama[cli]'\n"


def test_ctrl_c_while_the_command_is_imported_is_one_line() -> None:
    done = _python(
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from bpe_llama.__main__ import main; sys.exit(main())"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "bpe-llama: interrupted\n")


@pytest.mark.parametrize(("command", "extra"), [("generate", "model"), ("serve", "serve")])
def test_a_command_of_the_model_names_its_extra(command: str, extra: str) -> None:
    done = _python(
        f"import sys; sys.modules['torch'] = None; sys.argv = ['bpe-llama', '{command}', 'x']\n"
        "from bpe_llama.__main__ import main; sys.exit(main())"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bpe-llama: {command} needs torch: pip install 'bpe_llama[{extra}]'\n"


def test_a_command_without_rich_names_its_extra(tmp_path: Path) -> None:
    done = _python(
        "import sys; sys.modules['rich'] = None; sys.argv = ['bpe-llama', 'inspect', 'low', '-t', 'x.json']\n"
        "from bpe_llama.__main__ import main; sys.exit(main())"
    )
    assert done.returncode == 2
    assert done.stderr.endswith("need rich: pip install 'bpe_llama[cli]'\n"), done.stderr


@pytest.mark.parametrize(
    ("package", "script", "error"),
    [
        ("torch", "import bpe_llama.model", "bpe_llama.model needs torch: pip install 'bpe_llama[model]'"),
        (
            "prometheus_client",
            "from bpe_llama.model.cli.serve import check_installed; check_installed()",
            "serve needs prometheus_client: pip install 'bpe_llama[serve]'",
        ),
        (
            "ray",
            "from bpe_llama import scale; scale.count_files('x')",
            "bpe_llama.scale needs Ray: pip install 'bpe_llama[scale]'",
        ),
    ],
)
def test_a_package_that_is_found_but_not_imported_is_named(
    package: str, script: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')", encoding="utf-8"
    )
    done = _python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {script}")
    assert done.stderr.endswith(f"{error}\n"), done.stderr


def test_the_model_names_each_package_that_it_cannot_do_without() -> None:
    for package in ("torch", "safetensors", "regex"):
        done = _python(f"import sys; sys.modules['{package}'] = None; import bpe_llama.model")
        assert done.stderr.endswith(f"bpe_llama.model needs {package}: pip install 'bpe_llama[model]'\n"), done.stderr


def test_the_package_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "bpe_llama", "--version"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"{bpe_llama.__version__}\n"), done.stderr


def test_the_model_folder_refuses_to_be_a_global_package() -> None:
    """The repository's root holds a folder `model`, so `import model` from there would find it."""
    done = _python("import model", ROOT)
    assert done.returncode != 0
    assert "bpe_llama.model" in done.stderr


def test_the_model_imports_under_its_own_name() -> None:
    pytest.importorskip("torch", reason="needs bpe_llama[model]")
    done = _python("import bpe_llama.model; print(bpe_llama.model.__name__)")
    assert done.stdout == "bpe_llama.model\n", done.stderr


def test_help_is_quick() -> None:
    """Counted in modules, since seconds depend on the machine: torch alone imports 1,200."""
    command = [sys.executable, "-X", "importtime", "-m", "bpe_llama.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "generate" in done.stdout, done.stderr
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert "bpe_llama" in modules and len(modules) < 500, f"{len(modules)} modules"  # 340
    slow = {"torch", "transformers", "pyarrow", "matplotlib", "fastapi"}
    assert not slow & {name.partition(".")[0] for name in modules}


def test_the_version_stands_in_cargo_toml_alone() -> None:
    """A release changes Cargo.toml, where the crates ask for each other in the same version, and nothing else."""
    found = re.findall(r'version = "(\d+\.\d+\.\d+)"', (ROOT / "Cargo.toml").read_text("utf-8"))
    versions = set(found)
    for lock in (ROOT / "Cargo.lock", ROOT / "rust" / "fuzz" / "Cargo.lock"):
        versions.update(re.findall(r'name = "bpe-llama(?!-fuzz)[a-z-]*"\nversion = "(.*)"', lock.read_text("utf-8")))
    assert versions == {bpe_llama.__version__} and len(found) == 5


def test_the_installed_package_passes_the_test_of_wheels() -> None:
    """CI runs this script on every platform."""
    script = Path(__file__).with_name("smoke.py")
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(f"bpe-llama {bpe_llama.__version__} works"), done.stderr
