"""What a user writes to sweep over: axes over the fields of `Config` and `Hypers`, and the points they make.

Plain data in, a list of points out; nothing here needs JAX.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vgjax import settings
from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import nearest, text_of
from vgjax.settings import HINTS

AXES = ("product", "zip", "points")
MOST_POINTS = 1_000_000
DEEPEST = 10_000  # layers: enough for any network that was ever trained, and no typing error fills the memory
RANGES = ("linspace", "geomspace", "arange")
STANDS_FOR = {"depth": "hidden", "width": "hidden", "sigma_w2": "sigma_w", "sigma_b2": "sigma_b"}
FIELDS: dict[str, Any] = {  # what can be swept over, and its type
    **{"depth": int, "width": int, "sigma_w2": float, "sigma_b2": float},
    **HINTS["config"],
    **HINTS["hypers"],
}
LIMITS = {  # of those that neither `Config` nor `check_hypers` knows
    "depth": (0, DEEPEST, f"0 to {DEEPEST}"),
    "width": (1, math.inf, "whole numbers from 1"),
    "sigma_w2": (0, sys.float_info.max, "0 or more"),
    "sigma_b2": (0, sys.float_info.max, "0 or more"),
}

Step = dict[str, Any]  # swept field → value
Axis = tuple[Step, ...]  # what one axis goes through


class Point(NamedTuple):
    """One run of a grid: one setting with one seed."""

    config: Config
    hypers: Hypers
    seed: int
    coordinates: dict[str, Any]
    """Swept field → value as written."""

    def value(self, name: str) -> Any:
        """The value of a field, swept over in this point or not."""
        if name in self.coordinates:
            return self.coordinates[name]
        derived: dict[str, float] = {"depth": len(self.config.hidden), "width": (*self.config.hidden, 0)[0]}
        derived |= {"sigma_w2": self.hypers.sigma_w**2, "sigma_b2": self.hypers.sigma_b**2}
        return derived.get(name, getattr(self.hypers, name, getattr(self.config, name, None)))

    def identity(self) -> str:
        """Content address: 16 hex digits of the SHA-256 of the canonical JSON of config, hypers and seed.

        Neither the order of fields nor the way they were swept over (depth and width, or hidden) makes a difference.
        """
        content = _canonical(self.config, self.hypers) | {"seed": int(self.seed)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """A product of axes over fields of `Config` and `Hypers`, times seeds.

    Besides those fields there are depth and width (hidden = width, depth times; the one that is not swept over is the
    base's) and sigma_w2 and sigma_b2, the variances σ_w² and σ_b².

    Args:
      product: field → its values, every field an axis of its own; values are a list, or NumPy's
        {linspace: [start, stop, num]}, {geomspace: [start, stop, num]} or {arange: [start, stop, step]}, which are
        rounded to whole numbers where the field is one.
      zip: field → its values; these fields advance together, as one axis.
      points: settings of some fields each, as one axis.
      config, hypers: the base, for what is not swept over.
      seeds: how many (0, 1, …) or which.

    Raises:
      ValueError: a field or value is not allowed, two points are the same, or there is nothing to sweep over.

    Example:
      >>> grid = Grid(product={"depth": [2, 4], "sigma_w2": [1.0, 2.0]}, config=Config(hidden=(100,)), seeds=3)
      >>> len(grid), grid.expand()[-1].config.hidden, grid.expand()[-1].coordinates
      (12, (100, 100, 100, 100), {'depth': 4, 'sigma_w2': 2.0})
    """

    product: Mapping[str, Any] = field(default_factory=dict)
    zip: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    config: Config = field(default_factory=Config)
    hypers: Hypers = field(default_factory=Hypers)
    seeds: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        check_hypers(self.hypers)
        for section in AXES:
            object.__setattr__(self, section, _READERS[section](getattr(self, section)))
        object.__setattr__(self, "seeds", _seeds(self.seeds))
        if not self.axes:
            raise ValueError(f"nothing to sweep over; allowed: {', '.join(AXES)}")
        _check_fields([(name, "product") for name in self.product] + [(name, "zip") for name in self.zip], self.points)
        if self._size > MOST_POINTS:
            raise ValueError(f"the grid has {self._size} points; allowed: at most {MOST_POINTS}")
        _ = self._settings  # so that what is wrong with a point is said now

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What each axis goes through, the slowest first; the seeds, fastest of all, are not among them."""
        together = tuple(dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True))
        product = (tuple({name: value} for value in values) for name, values in self.product.items())
        return tuple(axis for axis in (*product, together, tuple(map(dict, self.points))) if axis)

    def __len__(self) -> int:
        return self._size

    @property
    def _size(self) -> int:
        n_seeds = self.seeds if isinstance(self.seeds, int) else len(self.seeds)
        return math.prod(map(len, self.axes)) * n_seeds

    def expand(self) -> list[Point]:
        """All points in row-major order: the first axis is the slowest, the seeds are the fastest."""
        seeds = range(self.seeds) if isinstance(self.seeds, int) else self.seeds
        return [
            Point(config, hypers, seed, dict(coordinates))
            for config, hypers, coordinates in self._settings
            for seed in seeds
        ]

    @cached_property
    def _settings(self) -> list[tuple[Config, Hypers, Step]]:
        """The points without their seeds, each a different one."""
        configs: dict[tuple, tuple[Config, str]] = {}
        seen: dict[tuple, Step] = {}
        made = []
        for steps in itertools.product(*self.axes):
            coordinates: Step = {name: value for step in steps for name, value in step.items()}
            changes = _underived(coordinates, self.config)
            of_hypers = {name: changes.pop(name) for name in Hypers._fields if name in changes}
            hypers = self.hypers._replace(**of_hypers)
            if of_hypers:
                check_hypers(hypers)
            if (key := tuple(changes.items())) not in configs:  # a Config takes longer to make than to find
                config = replace(self.config, **changes)
                configs[key] = config, json.dumps(_canonical(config, hypers)["config"])
            config, text = configs[key]
            if (same := seen.setdefault((text, hypers), coordinates)) is not coordinates:
                raise ValueError(
                    f"{_shown(same)} and {_shown(coordinates)} are the same point; allowed: each point once"
                )
            made.append((config, hypers, coordinates))
        return made


def read_grid(path: Path) -> Grid:
    """Read a grid file (YAML or TOML): a config file with product, zip or points besides.

    Raises:
      ValueError: damaged, or a field or value that is not allowed.
      OSError: no such file.
    """
    return settings.read(path, grid_from)


def grid_from(plain: Any) -> Grid:
    """The same from plain data, as a grid file or `as_plain` hold them.

    Raises:
      ValueError: a field or value is not allowed.
    """
    axes = {}
    if isinstance(plain, dict):
        axes = {name: plain[name] for name in AXES if name in plain}
        plain = {name: value for name, value in plain.items() if name not in axes}
        for name in filter(plain.__contains__, STANDS_FOR):
            allowed = f"{STANDS_FOR[name]} here, or {name} in {', '.join(AXES)}"
            raise ValueError(f"{name} can only be swept over; allowed: {allowed}")
    for name, value in axes.items():
        if isinstance(value, dict | list) and not value:
            raise ValueError(f"{name} is empty; allowed: {_CONTENTS[name]}")
    base = settings.settings_from(plain, also=AXES)
    if len(base.hypers) > 1:
        raise ValueError(f"hypers has {len(base.hypers)} settings; allowed: one, and `points` to sweep over several")
    return Grid(**axes, config=base.config, hypers=base.hypers[0], seeds=base.seeds)


def as_plain(grid: Grid) -> dict[str, Any]:
    """A grid as plain data (JSON, with the order of the axes), which `grid_from` reads: ranges are lists by now."""
    run = settings.as_plain(grid.config, [grid.hypers], [], "")
    plain: dict[str, Any] = {"config": run["config"], "hypers": run["hypers"][0]}
    plain["seeds"] = grid.seeds if isinstance(grid.seeds, int) else list(grid.seeds)
    for section in ("product", "zip"):
        plain[section] = {
            name: [settings.plain_of({name: value})[name] for value in values]
            for name, values in getattr(grid, section).items()
        }
    plain["points"] = [settings.plain_of(point) for point in grid.points]
    return {name: value for name, value in plain.items() if name not in AXES or value}


def _canonical(config: Config, hypers: Hypers) -> dict[str, Any]:
    """A setting as plain data in which equal numbers are written alike: 0, 0.0 and -0.0."""
    parts = {"config": settings.plain_of(vars(config)), "hypers": hypers._asdict()}
    return {
        part: {name: float(value) + 0.0 if HINTS[part][name] is float else value for name, value in fields.items()}
        for part, fields in parts.items()
    }


def _underived(coordinates: Step, base: Config) -> Step:
    """The same in fields of `Config` and `Hypers` alone."""
    changes = {name: value for name, value in coordinates.items() if name not in STANDS_FOR}
    for name in ("sigma_w2", "sigma_b2"):
        if name in coordinates:
            changes[STANDS_FOR[name]] = math.sqrt(coordinates[name])
    if "depth" in coordinates or "width" in coordinates:
        if "width" not in coordinates and len(set(base.hidden)) != 1:
            has = f"has several: {reprlib.repr(list(base.hidden))}" if base.hidden else "is empty"
            raise ValueError(
                f"depth needs one width, and hidden {has}; allowed: `width` too, or a hidden of equal widths"
            )
        depth = coordinates.get("depth", len(base.hidden))
        width = coordinates["width"] if "width" in coordinates else base.hidden[0]
        changes["hidden"] = (width,) * depth
    return changes


def _check_fields(axes: list[tuple[str, str]], points: Sequence[Mapping[str, Any]]) -> None:
    """No field is swept over twice, under whatever name."""
    section_of: dict[str, str] = {}
    for name, section in [*axes, *((name, "points") for name in dict.fromkeys(itertools.chain(*points)))]:
        if name in section_of:
            raise ValueError(f"{name} is in {section_of[name]} and in {section}; allowed: one axis for each field")
        section_of[name] = section
    for name, original in STANDS_FOR.items():
        if name in section_of and original in section_of:
            raise ValueError(f"{name} and {original} are both swept over; allowed: {name}, or {original} itself")


def _product(content: Any) -> dict[str, tuple]:
    return {name: _values(name, values, distinct=True) for name, values in _mapping("product", content).items()}


def _zip(content: Any) -> dict[str, tuple]:
    columns = {name: _values(name, values, distinct=False) for name, values in _mapping("zip", content).items()}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise ValueError(f"the fields of zip have different numbers of values ({lengths}); allowed: equally many")
    return columns


def _points(content: Any) -> tuple[Step, ...]:
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ValueError(f"points {reprlib.repr(content)} is not allowed; allowed: {_CONTENTS['points']}")
    return tuple({name: _value(name, value) for name, value in _mapping("points", one).items()} for one in content)


_READERS = {"product": _product, "zip": _zip, "points": _points}
_CONTENTS = {
    "product": "lines of `field: [value, …]`",
    "zip": "lines of `field: [value, …]`",
    "points": "a list of {field: value, …}",
}


def _mapping(section: str, content: Any) -> Mapping[str, Any]:
    """The content of a section, its names checked."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{section} {reprlib.repr(content)} is not allowed; allowed: {_CONTENTS[section]}")
    for name in content:
        if name == "seeds":
            raise ValueError(f"seeds is not allowed in {section}; allowed: `seeds` on a line of its own")
        if name not in FIELDS:
            raise ValueError(f"unknown field {reprlib.repr(name)} in {section}; {nearest(name, FIELDS)}")
    return content


def _values(name: str, values: Any, distinct: bool) -> tuple:
    """What a field goes through, checked; `distinct`: numbers that rounding makes equal are one."""
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
    """One value of a field, converted; what `Config` and `check_hypers` check is left to them."""
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
    if not all(math.isfinite(2 * number) for number in numbers):  # so that differences are finite too
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


def _seeds(seeds: Any) -> int | tuple[int, ...]:
    """How many, or which, checked."""
    which = settings.which_seeds(seeds)
    if len(set(which)) < len(which):
        raise ValueError(f"seeds {reprlib.repr(seeds)} is not allowed; allowed: how many, or which, each once")
    return seeds if isinstance(seeds, int) else tuple(which)


def _shown(coordinates: Step) -> str:
    """A point as text, for messages."""
    words = (f"{name} {text_of(v) if callable(v) else reprlib.repr(v)}" for name, v in coordinates.items())
    return f"({', '.join(words) or 'the base'})"
