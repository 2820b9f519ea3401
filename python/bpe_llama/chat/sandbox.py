"""The jinja2 environment of chat templates: sandboxed, and every operation counted by a `Meter`.

jinja2's sandbox denies a template access to the interpreter's internals, but does not limit memory or time. Here the
compiled code counts each iteration, and `operations` checks operators, calls, filters and tests before they run.

Source: https://jinja.palletsprojects.com/en/stable/sandbox/ (operator interception), and the settings that
``transformers.utils.chat_template_utils`` renders with.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import update_wrapper
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_join
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.tests import TESTS
from jinja2.utils import Namespace, generate_lorem_ipsum
from markupsafe import Markup

from bpe_llama.chat import operations, provenance
from bpe_llama.chat.compiler import CheckedCode
from bpe_llama.chat.limits import LimitError, Meter
from bpe_llama.chat.operations import write_json
from bpe_llama.chat.provenance import Traced, attributed, concatenated, untraced

_MAX_ARGUMENTS = 1000  # of a call, which may store them all


class Generation(Extension):
    """``{% generation %}...{% endgeneration %}``: records the span of the assistant's text and renders it unchanged."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block as a call, as in transformers, with the same scopes."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("note_span"), [], [], body).set_lineno(line)

    @pass_eval_context
    def note_span(self, _context: Any, caller: Callable[[], str]) -> str:
        """Return the text of the block, and record its place in the whole text."""
        text = caller()
        environment = cast(ChatEnvironment, self.environment)
        environment.blocks.append((environment.written, text))
        return text


class _ChatNamespace(Namespace):
    """jinja2's ``namespace`` without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **variables: Any) -> None:
        self, args = args[0], args[1:]
        Namespace.__init__(self, *args, **variables)
        for name in dict(*args, **variables):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: the name begins with an underscore")


class _ChatDict:
    """The ``dict`` of templates, which has no other attribute than ``fromkeys``."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _CheckedFormatter(SandboxedFormatter):
    """``str.format`` in the sandbox, with padding and nested values checked."""

    written = 0

    @property
    def meter(self) -> Meter:
        return cast(ChatEnvironment, self._env).meter

    def format_field(self, value: Any, form: str) -> Any:
        self.meter.check_widths(form)
        self.meter.measure(value)
        text = super().format_field(value, form)
        self.written += len(text)
        self.meter.check_length(self.written)
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            self.meter.measure(value)
        return super().convert_field(value, conversion)


class _CheckedEscapeFormatter(_CheckedFormatter, SandboxedEscapeFormatter):
    """`Markup.format` in the sandbox, likewise."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one rendering: jinja2's sandbox with transformers' settings, and a `Meter`.

    Args:
        meter: Counts the cost.
        now: The time for ``strftime_now``.
    """

    code_generator_class = CheckedCode
    own = staticmethod(provenance.own)
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, meter: Meter, now: datetime) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # else the compiler would evaluate constants, uncounted
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        self.meter = meter
        self.now = now
        self.keep = meter.keep
        self.count_step = meter.charge
        self.written = 0
        self.blocks: list[tuple[int, str]] = []
        self.finalize = self._print
        self.concat = self._join_output  # type: ignore[method-assign]
        self.filters = dict(_FILTERS)
        self.tests = dict(_TESTS)
        self.globals.update(
            raise_exception=self._refuse,
            strftime_now=self._write_time,
            lipsum=self._write_lipsum,
            namespace=_ChatNamespace,
            dict=_ChatDict(),
        )

    def check_key(self, key: Any) -> Any:
        """Return the key of a mapping after a check that hashing it takes bounded time."""
        if not isinstance(key, str):
            self.meter.measure(key)
        return key

    def compare(self, name: str, left: Any, right: Any) -> Any:
        """Return the result of the comparison operator of this name."""
        return operations.compare(self.meter, name, left, right)

    def concatenate(self, join: Callable[[Iterable[Any]], str], items: tuple[Any, ...]) -> str:
        """Return the text of ``a ~ b``."""
        self.meter.check_length(sum(map(self.meter.measure, items)))
        texts = [item if isinstance(item, str) else attributed(str(item), item) for item in items]
        return self.keep(concatenated(texts) if join is str_join else join(items))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return ``obj[argument]`` or an undefined value, as the sandbox allows."""
        if not isinstance(argument, (str, int)):
            self.meter.measure(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return the result of a binary operator, after a check of its size."""
        operations.check_operator(self.meter, operator, left, right)
        return self.keep(attributed(super().call_binop(context, operator, left, right), [left, right]))

    def call(__self, __context: Context, __function: Any, *args: Any, **options: Any) -> Any:
        """Return the result of a call from the template, after a check of its cost."""
        meter = __self.meter
        meter.charge(8 if isinstance(__function, Macro) else 2)
        if len(args) + len(options) > _MAX_ARGUMENTS:
            raise LimitError(f"it calls a function with more than {_MAX_ARGUMENTS:,} arguments")
        if isinstance(__function, (types.BuiltinMethodType, types.MethodType)):
            owner = __function.__self__
            if isinstance(owner, (str, bytes, int, list, tuple, dict)):
                args = operations.check_method(meter, owner, __function.__name__, args, options)
            elif isinstance(owner, LoopContext):
                for value in args:
                    meter.measure(value)
        owner = getattr(__function, "__self__", None)
        result = attributed(super().call(__context, __function, *args, **options), [owner, args, options])
        if type(result) is list:  # usually of ``split``, so of texts
            meter.check_length(8 * len(result))
            return meter.keep(result, item_size=64)
        return meter.keep(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return ``str.format`` or ``format_map`` with the checks of sandbox and meter; None for any other value."""
        if not isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            return None
        text, name = value.__self__, value.__name__
        if not isinstance(text, str) or name not in ("format", "format_map"):
            return None

        def format_checked(*args: Any, **options: Any) -> str:
            if name == "format_map":
                if len(args) != 1 or options:
                    raise TypeError("format_map() takes exactly one argument")
                options, args = args[0], ()
            formatter = (
                _CheckedEscapeFormatter(self, escape=text.escape)
                if isinstance(text, Markup)
                else _CheckedFormatter(self)
            )
            made = formatter.vformat(text, args, options)
            return self.keep(text.formatted(made, args, options) if isinstance(text, Traced) else type(text)(made))

        return update_wrapper(format_checked, value)

    @pass_context
    def _print(self, _context: Context | None, value: Any) -> Any:
        """Return the text of ``{{ value }}``."""
        if isinstance(value, str):
            return value
        self.meter.measure(value)
        return self.keep(attributed(str(value), value))

    def _join_output(self, pieces: Iterable[str]) -> str:
        """Return the text of a macro, a block or a ``{% set %}`` body."""
        parts, length = [], 0
        for piece in pieces:
            length += len(piece)
            self.meter.check_length(length)
            parts.append(piece)
        return self.keep(concatenated(parts))

    def _refuse(self, message: Any) -> None:
        raise TemplateError(untraced(self._print(None, message)))

    def _write_time(self, form: str) -> str:
        if len(form) > 1000:
            raise LimitError("the format of strftime_now is longer than 1,000 characters")
        return self.now.strftime(form)

    def _write_lipsum(self, n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
        self.meter.charge(abs(n * max))
        return generate_lorem_ipsum(n, html, min, max)


class _Lazy:
    """The items of a lazy filter, each counted as a step."""

    __slots__ = ("_depth", "_items", "_meter")  # underscores, which templates cannot read

    def __init__(self, meter: Meter, items: Iterable[Any], depth: int) -> None:
        if depth > 50:
            raise LimitError("it applies more than 50 filters to one sequence, one after another")
        self._meter = meter
        self._items = iter(items)
        self._depth = depth

    def __iter__(self) -> _Lazy:
        return self

    def __next__(self) -> Any:
        self._meter.charge()
        return next(self._items)


def _pass_first(function: Callable[..., Any]) -> Callable[[Context], tuple[Any, ...]]:
    """Return the arguments that jinja2 passes to a filter or test before its input."""
    kind = getattr(function, "jinja_pass_arg", None)
    name = None if kind is None else kind.name
    if name == "context":
        return lambda context: (context,)
    if name == "eval_context":
        return lambda context: (context.eval_ctx,)
    return (lambda context: (context.environment,)) if name == "environment" else lambda context: ()


def _check_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter with a check before it."""
    pass_first = _pass_first(function)
    item_size = 160 if name == "list" else 8  # the characters of a text are texts themselves

    @pass_context
    def filter_checked(context: Context, *args: Any, **options: Any) -> Any:
        meter = cast(ChatEnvironment, context.environment).meter
        depth = args[0]._depth + 1 if args and isinstance(args[0], _Lazy) else 0
        args = operations.check_filter(meter, name, args, options)
        result = attributed(function(*pass_first(context), *args, **options), [args, options])
        return _Lazy(meter, result, depth) if isinstance(result, types.GeneratorType) else meter.keep(result, item_size)

    return filter_checked


def _check_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a test (``is ...``) with a check before it."""
    pass_first = _pass_first(function)

    @pass_context
    def test_checked(context: Context, *args: Any, **options: Any) -> Any:
        operations.check_test(cast(ChatEnvironment, context.environment).meter, name, args)
        return function(*pass_first(context), *args, **options)

    return test_checked


@pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    meter = cast(ChatEnvironment, context.environment).meter
    return write_json(meter, value, ensure_ascii, indent, separators, sort_keys)


@pass_eval_context
def _join(context: Any, value: Any, d: str = Traced("", b""), attribute: Any = None) -> str:
    return do_join(context, value, d, attribute)


_FILTERS: dict[str, Any] = {
    name: _check_filter(name, function) for name, function in {**FILTERS, "join": _join}.items()
}
_FILTERS["tojson"] = _to_json
_TESTS: dict[str, Any] = {name: _check_test(name, cast(Any, function)) for name, function in TESTS.items()}
