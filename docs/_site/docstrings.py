"""Docstrings as mkdocstrings reads them.

griffe knows the section `Examples` and no roles of Sphinx. What is compiled has its docstrings at run time.
"""

import inspect
import re
from typing import Any

import griffe

from bpe_llama import _core

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):(`[^`]+`)")
_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Called for each object that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj`` in place."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", _ROLE.sub(r"\1", obj.docstring.value))

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Give what is compiled the docstrings that ``help`` shows, where these say more than ``_core.pyi``."""
        for name in [name for name in vars(_core) if name in pkg["_core"].members]:
            found = pkg["_core"][name]
            if found.is_class and "Args:" in (getattr(_core, name).__doc__ or ""):  # they are those of `__new__`
                found.members["__init__"] = found.members["__new__"]
            self._take(found, getattr(_core, name))
            for part, obj in found.members.items() if found.is_class else ():
                self._take(obj, getattr(getattr(_core, name), part, None))

    def _take(self, obj: Any, compiled: object) -> None:
        text = compiled.__doc__ if obj.is_class or obj.is_function or inspect.isdatadescriptor(compiled) else None
        if text and (obj.docstring is None or len(text) > len(obj.docstring.value)):
            obj.docstring = griffe.Docstring(text, parent=obj)
        self.on_object(obj=obj)
