"""Copies the docstrings of the compiled module to its stub: ``python rust/python/stub_docs.py`` (`make stubs`).

The doc comments of the bindings are the one source of these docstrings: `help` shows them at run time, and the stub,
which editors and the site read, holds a copy. A test compares both. Signatures in the stub are written by hand, and
mypy's stubtest compares them with the module.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

Documented = ast.ClassDef | ast.FunctionDef


def stubs_of(tree: ast.Module) -> list[tuple[str, Documented]]:
    """Return the classes, methods, properties and functions of a stub by qualified name, special methods left out."""
    found: list[tuple[str, Documented]] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found.append((node.name, node))
            members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            found += [(f"{node.name}.{member.name}", member) for member in members if not _is_left_out(member)]
        elif isinstance(node, ast.FunctionDef):
            found.append((node.name, node))
    return found


def _is_left_out(member: ast.FunctionDef) -> bool:
    is_setter = any(isinstance(decorator, ast.Attribute) for decorator in member.decorator_list)
    return member.name.startswith("_") or is_setter


def docstring(module: ModuleType, name: str) -> str:
    """Return the docstring at run time of a qualified name, or ``""``."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return inspect.cleandoc(found.__doc__ or "")


def with_docstrings(stub: str, module: ModuleType) -> str:
    """Return the text of a stub with the docstrings of a module in place of its own."""
    lines = stub.split("\n")
    for name, node in reversed(stubs_of(ast.parse(stub))):
        text = docstring(module, name)
        indent = " " * (node.col_offset + 4)
        written = [f'{indent}{"r" if chr(92) in text else ""}"""{text}'] if text else []
        written = [line if line.strip() else "" for line in "\n".join(written).replace("\n", f"\n{indent}").split("\n")]
        if text:
            written[-1:] = [f'{written[-1]}"""'] if len(written) == 1 else [written[-1], f'{indent}"""']
        body = node.body
        first, last = body[0], body[0]
        has_docstring = ast.get_docstring(node) is not None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.value.value is ...:
            # `def f() -> int: ...` on one line: the docstring stands below it.
            row = first.lineno - 1
            head = lines[row][: first.col_offset].rstrip()
            lines[row : row + 1] = [head, *written] if text else [f"{head} ..."]
        elif has_docstring:
            end = last.end_lineno or last.lineno
            lines[first.lineno - 1 : end] = written
        else:  # a class without a docstring
            row = min([first.lineno, *(line.lineno for line in getattr(first, "decorator_list", []))]) - 1
            lines[row:row] = [*written, ""] if text else []
    return "\n".join(lines)


def main() -> int:
    """Rewrite the stub, and return the exit code."""
    from bpe_llama import _core

    path = Path(__file__).parents[2] / "python" / "bpe_llama" / "_core.pyi"
    path.write_text(with_docstrings(path.read_text(encoding="utf-8"), _core), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
