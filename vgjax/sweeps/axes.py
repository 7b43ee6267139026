"""Read the axes of a grid: lists of values, ranges as in NumPy, and points."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vgjax import settings
from vgjax.names import nearest
from vgjax.settings import HINTS

AXES = ("product", "zip", "points")
MOST_POINTS = 1_000_000
DEEPEST = 10_000  # layers; deeper than any trained network, but a typing error cannot fill the memory
RANGES = ("linspace", "geomspace", "arange")
STANDS_FOR = {"depth": "hidden", "width": "hidden", "sigma_w2": "sigma_w", "sigma_b2": "sigma_b"}
FIELDS: dict[str, Any] = {  # every field that can be swept → its type
    **{"depth": int, "width": int, "sigma_w2": float, "sigma_b2": float},
    **HINTS["config"],
    **HINTS["hypers"],
}
LIMITS = {  # of the fields that neither `Config` nor `check_hypers` checks
    "depth": (0, DEEPEST, f"0 to {DEEPEST}"),
    "width": (1, math.inf, "whole numbers from 1"),
    "sigma_w2": (0, sys.float_info.max, "0 or more"),
    "sigma_b2": (0, sys.float_info.max, "0 or more"),
}
Step = dict[str, Any]  # swept field → value
CONTENTS = {
    "product": "lines of `field: [value, …]`",
    "zip": "lines of `field: [value, …]`",
    "points": "a list of {field: value, …}",
}


def product_axes(content: Any) -> dict[str, tuple]:
    """Read the section `product`: field → its distinct values."""
    return {name: _values(name, values, distinct=True) for name, values in _mapping("product", content).items()}


def zip_axes(content: Any) -> dict[str, tuple]:
    """Read the section `zip`: field → its values, equally many of each."""
    columns = {name: _values(name, values, distinct=False) for name, values in _mapping("zip", content).items()}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise ValueError(f"the fields of zip have different numbers of values ({lengths}); allowed: equally many")
    return columns


def listed_points(content: Any) -> tuple[Step, ...]:
    """Read the section `points`."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ValueError(f"points {reprlib.repr(content)} is not allowed; allowed: {CONTENTS['points']}")
    return tuple({name: _value(name, value) for name, value in _mapping("points", one).items()} for one in content)


def _mapping(section: str, content: Any) -> Mapping[str, Any]:
    """Check the names in a section."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{section} {reprlib.repr(content)} is not allowed; allowed: {CONTENTS[section]}")
    for name in content:
        if name == "seeds":
            raise ValueError(f"seeds is not allowed in {section}; allowed: `seeds` on a line of its own")
        if name not in FIELDS:
            raise ValueError(f"unknown field {reprlib.repr(name)} in {section}; {nearest(name, FIELDS)}")
    return content


def _values(name: str, values: Any, distinct: bool) -> tuple:
    """The values of a field, checked; `distinct`: numbers that become equal by rounding count once."""
    if isinstance(values, Mapping):
        found = _range(name, values)
        if FIELDS[name] is int:
            found = [round(value) for value in found]
            found = list(dict.fromkeys(found)) if distinct else found
    else:
        found = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(found, Sequence) or isinstance(found, str):
            allowed = f"[value, …] or {{{' | '.join(RANGES)}: [number, …]}}"
            raise ValueError(f"{name} {reprlib.repr(values)} is not allowed; allowed: {allowed}")
    if not found:
        raise ValueError(f"{name} has no values; allowed: at least one")
    return tuple(_value(name, value) for value in found)


def _value(name: str, value: Any) -> Any:
    """One value of a field, converted to its type; `Config` and `check_hypers` check the rest."""
    if callable(value) and FIELDS[name] is str:
        return value
    plain = value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value
    found = settings.converted(name, plain, FIELDS[name])
    if name in LIMITS:
        least, most, allowed = LIMITS[name]
        if not least <= found <= most:
            raise ValueError(f"{name} {found} is not allowed; allowed: {allowed}")
    return found


def _range(name: str, words: Mapping[str, Any]) -> list[float]:
    """The numbers of {linspace: [start, stop, num]}, {geomspace: …} or {arange: …}."""
    if FIELDS[name] not in (int, float):
        raise ValueError(f"{name} is not a number and has no range; allowed: [value, …]")
    if len(words) != 1 or not words.keys() <= set(RANGES):
        strange = next((word for word in words if word not in RANGES), "")
        raise ValueError(f"{name} {reprlib.repr(dict(words))} is not a range; {nearest(strange, RANGES)}")
    [(kind, given)] = words.items()
    what, allowed = f"{name} {kind} {reprlib.repr(given)}", "[start, stop, num]"
    if kind == "arange":
        allowed = "[stop], [start, stop] or [start, stop, step]"
    if not isinstance(given, list | tuple) or len(given) not in ((1, 2, 3) if kind == "arange" else (3,)):
        raise ValueError(f"{what} is not allowed; allowed: {allowed}")
    numbers = [settings.converted(f"{name} {kind}", number, float) for number in given]
    if not all(math.isfinite(2 * number) for number in numbers):  # so that differences are finite as well
        raise ValueError(f"{what} is not allowed; allowed: finite numbers")
    import numpy as np

    if kind == "arange":
        start, stop, step = ((0.0, numbers[0], 1.0) if len(numbers) == 1 else (*numbers, 1.0))[:3]
        if step == 0:
            raise ValueError(f"{what} is not allowed; allowed: a step other than 0")
        if (stop - start) / step > MOST_POINTS:
            raise ValueError(f"{what} has too many values; allowed: at most {MOST_POINTS}")
        return np.arange(start, stop, step).tolist()
    start, stop, num = numbers[0], numbers[1], given[2]
    if type(num) is not int or not 1 <= num <= MOST_POINTS:
        raise ValueError(f"{what} is not allowed; allowed: num a whole number from 1 to {MOST_POINTS}")
    if kind == "geomspace" and min(start, stop) <= 0:
        raise ValueError(f"{what} is not allowed; allowed: start and stop above 0")
    return getattr(np, kind)(start, stop, num).tolist()
