"""Compile a chat template to Python: jinja2's code generator, with a call to the environment for each operation.

The calls are methods of `sandbox.ChatEnvironment`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame


class CheckedCode(CodeGenerator):
    """Compiles a template to Python that calls the environment for each operation."""

    # jinja2 calls these by the name of the syntax node.
    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """Write a loop that counts its iterations, including those that its condition skips."""
        # The name of an EnvironmentAttribute is written unchanged, so this is a call without jinja2's checks.
        count = nodes.EnvironmentAttribute("count_step()", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.Or(count, node.test, lineno=node.lineno)  # charge returns None
        super().visit_For(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Write a comparison as a call, unless one side is a short constant."""
        first, last = node.expr, node.ops[-1]
        if len(node.ops) == 1 and (_is_short(last.expr) or (_is_short(first) and last.op not in ("in", "notin"))):
            super().visit_Compare(node, frame)
            return
        # `a < b < c` is `a < b and b < c` with b evaluated once.
        self.write("(")
        left: nodes.Expr | str = node.expr
        for place, operand in enumerate(node.ops):
            self.write(f"{' and ' if place else ''}environment.compare({operand.op!r}, ")
            if isinstance(left, str):
                self.write(left)
            else:
                self.visit(left, frame)
            self.write(", ")
            if place + 1 < len(node.ops):
                left = self.temporary_identifier()
                self.write(f"({left} := ")
                self.visit(operand.expr, frame)
                self.write(")")
            else:
                self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        """Write a text as text of the template."""
        if isinstance(node.value, str):
            self.write(f"environment.own({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        """Write text between tags as text of the template."""
        self._write_call("own", super().visit_TemplateData, node, frame)

    def _write_call(self, method: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        """Write a call of the environment with the code of a node as its argument."""
        self.write(f"environment.{method}(")
        visit(node, frame)
        self.write(")")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({super()._output_const_repr(group)})"

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Write ``a ~ b`` as a call."""
        escapes = "context.eval_ctx.autoescape" if frame.eval_ctx.volatile else str(frame.eval_ctx.autoescape)
        self.write(f"environment.concatenate(markup_join if {escapes} else str_join, (")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """Write a slice whose size is counted."""
        if isinstance(node.arg, nodes.Slice):
            self._write_call("keep", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """Write a list whose size is counted."""
        self._write_call("keep", super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Write a tuple whose size is counted."""
        if node.ctx == "load":
            self._write_call("keep", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """Write a mapping whose size is counted and whose keys are checked."""
        self.write("environment.keep({")
        for item in node.items:
            self.write("environment.check_key(")
            self.visit(item.key, frame)
            self.write("): ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")


def _is_short(node: nodes.Expr) -> bool:
    """Return whether an expression is a constant that compares in constant time."""
    return isinstance(node, nodes.Const) and (not isinstance(node.value, str) or len(node.value) < 1000)
