"""The docstrings of the compiled module: none is empty, the stub has the same, their examples run."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bpe_llama import Sampler, Tokenizer, _core

ROOT = Path(__file__).parents[2]
STUB = (ROOT / "python/bpe_llama/_core.pyi").read_text(encoding="utf-8")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stub_docs", ROOT / "rust/python/stub_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stub_docs = _script()
STUBS = dict(stub_docs.stubs_of(ast.parse(STUB)))
CLASSES = [name for name, value in vars(_core).items() if inspect.isclass(value)]


def _members() -> list[str]:
    """The public names of the compiled module: functions, classes, methods and properties."""
    names = [name for name, value in vars(_core).items() if callable(value) and not name.startswith("_")]
    for name in CLASSES:
        names += [f"{name}.{member}" for member in vars(getattr(_core, name)) if not member.startswith("_")]
    return sorted(names)


MEMBERS = _members()


@pytest.mark.parametrize("name", MEMBERS)
def test_help_and_stub_say_the_same(name: str) -> None:
    text = stub_docs.docstring(_core, name)
    assert text, f"{name} has no docstring: write a doc comment in rust/python"
    assert text == ast.get_docstring(STUBS[name]), "run `make stubs`"


def test_the_stub_has_no_other_members() -> None:
    assert sorted(STUBS) == MEMBERS


def test_make_stubs_changes_nothing() -> None:
    assert ast.dump(ast.parse(stub_docs.with_docstrings(STUB, _core))) == ast.dump(ast.parse(STUB))


def test_make_stubs_writes_changed_docstrings() -> None:
    class Changed:
        """New.

        More.
        """

        def method(self) -> None:
            r"""A \d."""

        @property
        def size(self) -> int:
            """The size."""
            return 0

    stub = (
        "class Changed:\n    @staticmethod\n    def method(\n        self,\n    ) -> None: ...\n"
        '    @property\n    def size(self) -> int:\n        """Old."""\n'
    )
    module = ModuleType("changed")
    module.Changed = Changed  # type: ignore[attr-defined]
    tree = ast.parse(stub_docs.with_docstrings(stub, module))
    written = {name: ast.get_docstring(node) for name, node in stub_docs.stubs_of(tree)}
    assert written == {"Changed": "New.\n\nMore.", "Changed.method": "A \\d.", "Changed.size": "The size."}


@pytest.mark.parametrize("name", [name for name in MEMBERS if ">>>" in stub_docs.docstring(_core, name)])
def test_examples_run(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(stub_docs.docstring(_core, name), {}, name, None, None)
    failed: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=failed.append)
    assert result.attempted and not result.failed, "".join(failed)


@pytest.mark.parametrize(
    "member", [Tokenizer.encode, Tokenizer.decode, Tokenizer.encode_batch, Sampler.sample, Sampler]
)
def test_signatures_are_known(member: Any) -> None:
    parameters = inspect.signature(member).parameters
    assert all(parameter.default is not ... for parameter in parameters.values())
    assert len(parameters) > 2
