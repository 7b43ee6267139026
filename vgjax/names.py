"""What a user can name: ``name``, ``name(arguments)``, ``module:function``, or the callable itself.

Every table of the package (activations, initializers, optimizers, data sets …) is a plain dict from a name to an
`Entry`; `resolve` builds what the user named, or says in one line what is allowed. Nothing that the user writes is
evaluated: arguments are literals.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import math
import os
import re
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Entry:
    """One row of a table: `make(*args, **kwargs)` builds the thing; `vgjax list` shows the rest."""

    make: Callable[..., Any]
    summary: str
    source: str


class Spec(NamedTuple):
    """A parsed ``name(arguments)``."""

    name: str
    args: tuple
    kwargs: dict[str, Any]


def parse(text: str) -> Spec:
    """Split ``name(1, key=2)`` into its parts without evaluating anything.

    >>> parse("leaky_relu(0.2)")
    Spec(name='leaky_relu', args=(0.2,), kwargs={})

    Raises:
      ValueError: the text is not a name with literal arguments.
    """
    try:
        with warnings.catch_warnings(action="error"):  # "\\d" and "1if", which Python takes with a warning
            node = ast.parse(re.sub(r"=\s*in\b", "='in'", text.strip()), mode="eval").body  # `in` is Python's own word
        if isinstance(node, ast.Name):
            return Spec(node.id, (), {})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            args = tuple(_literal(a) for a in node.args)
            return Spec(node.func.id, args, {str(k.arg): _literal(k.value) for k in node.keywords})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise ValueError(f"cannot read {reprlib.repr(text)}; allowed: a name, name(arguments) or module:function")


def _literal(node: ast.expr) -> Any:
    """A literal argument; a bare word counts as a string, so that ``xavier(factor_type=in)`` need no quotes."""
    found = node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError("1e400 is no number")
    return found


MOST_NAMES = 50  # more would bury the hint


def nearest(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest allowed name, and all of them."""
    names = list(allowed)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(name).strip().lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    if len(names) <= MOST_NAMES:
        return f"{hint}allowed: {', '.join(names)}"
    return hint.strip() or f"allowed: {len(names)} others"


def resolve(kind: str, table: Mapping[str, Entry], named: str | Callable) -> Any:
    """The thing that `named` stands for: a row of `table` called with its arguments, an import, or itself.

    Args:
      kind: what is looked up, for the message ("initializer").
      table: name → Entry.
      named: ``name``, ``name(arguments)``, ``module:function``, or a callable, which is returned as it is.

    Raises:
      ValueError: no such name, module or function; arguments that the row does not take.
    """
    if callable(named):
        return named
    if not isinstance(named, str):
        raise ValueError(f"{kind} {reprlib.repr(named)} is not allowed; {nearest(named, table)}, or module:function")
    if ":" in named:
        return import_function(kind, named)
    spec = lookup(kind, table, named)
    try:
        return table[spec.name].make(*spec.args, **spec.kwargs)
    except (TypeError, ArithmeticError) as error:
        problem = _without_function_name(error)
        raise ValueError(f"{kind} {named!r}: {problem}; allowed: {table[spec.name].summary}") from None
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None


def lookup(kind: str, table: Mapping[str, Entry], named: str) -> Spec:
    """The parsed name, once it is known to be in the table."""
    try:
        spec = parse(named)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}; {nearest(named, table)}") from None
    if spec.name not in table:
        raise ValueError(f"unknown {kind} {spec.name!r}; {nearest(spec.name, table)}, or module:function")
    return spec


def import_function(kind: str, path: str) -> Callable:
    """Import ``module:function`` (the working directory counts, as with ``python -m``)."""
    module_name, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything at import
        raise ValueError(f"{kind} {path!r}: cannot import {module_name!r} ({error})") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            raise ValueError(f"{kind} {path!r}: {module_name} has no {part!r}; {nearest(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{kind} {path!r} is not callable")
    return found


def text_of(named: str | Callable) -> str:
    """How a name is written into a file: callables as ``module:function``."""
    return named if isinstance(named, str) else f"{named.__module__}:{getattr(named, '__qualname__', repr(named))}"


def _without_function_name(error: Exception) -> str:
    return str(error).split("() ", 1)[-1]


def attempt(kind: str, named: Any, function: Callable[[], Any]) -> Any:
    """`function()`; any exception of the user's own code becomes a ValueError of one line that names it."""
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        if ":" not in text_of(named) and "allowed:" not in reason:
            reason += f"; allowed: see `vgjax list {kind}s`"
        raise ValueError(f"{kind} {text_of(named)!r} cannot be used: {reason}") from None
