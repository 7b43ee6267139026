"""What a user can name: ``name``, ``name(arguments)``, ``module:function``, or the callable itself.

Every table of the package (activations, initializers, optimizers, data sets …) is a plain dict from a name to an
`Entry`; `resolve` turns what the user wrote into the thing, or says in one line what would have been allowed.
Nothing that the user writes is evaluated: arguments are literals.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_PARSING = threading.Lock()  # two threads at once: "AST constructor recursion depth mismatch", in Python 3.11


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
        with _PARSING:
            node = ast.parse(re.sub(r"=\s*in\b", "='in'", text.strip()), mode="eval").body  # `in` is Python's own word
        if isinstance(node, ast.Name):
            return Spec(node.id, (), {})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            args = tuple(_literal(a) for a in node.args)
            return Spec(node.func.id, args, {str(k.arg): _literal(k.value) for k in node.keywords})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise ValueError(f"cannot read {text!r}: write a name, name(arguments) or module:function")


def _literal(node: ast.expr) -> Any:
    """A literal argument; a bare word counts as a string, so that ``xavier(factor_type=in)`` need no quotes."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


MOST_NAMES = 50  # more would bury the hint


def nearest(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest allowed name, and all of them."""
    names = list(allowed)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}" if len(names) <= MOST_NAMES else hint.strip() or f"{len(names)} others"


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
    if ":" in named:
        return import_function(kind, named)
    spec = lookup(kind, table, named)
    try:
        return table[spec.name].make(*spec.args, **spec.kwargs)
    except TypeError as error:
        raise ValueError(f"{kind} {named!r}: {_without_function_name(error)}") from None


def lookup(kind: str, table: Mapping[str, Entry], named: str) -> Spec:
    """The parsed name, once it is known to be in the table."""
    spec = parse(named)
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
    except Exception as error:  # a stranger's module may raise anything at import
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


def _without_function_name(error: TypeError) -> str:
    return str(error).split("() ", 1)[-1]
