"""The grid of a sweep: axes over the fields of `Config` and `Hypers`, and the points that they give.

This module does not need JAX.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vgjax import settings
from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import text_of
from vgjax.settings import HINTS
from vgjax.sweeps.axes import AXES, CONTENTS, MOST_POINTS, STANDS_FOR, Step, listed_points, product_axes, zip_axes

Axis = tuple[Step, ...]  # the steps of one axis


class Point(NamedTuple):
    """One run of a grid: one setting with one seed."""

    config: Config
    hypers: Hypers
    seed: int
    coordinates: dict[str, Any]
    """Swept field → its value as the user wrote it."""

    def value(self, name: str) -> Any:
        """The value of a field, swept or not."""
        if name in self.coordinates:
            return self.coordinates[name]
        derived: dict[str, float] = {"depth": len(self.config.hidden), "width": (*self.config.hidden, 0)[0]}
        derived |= {"sigma_w2": self.hypers.sigma_w**2, "sigma_b2": self.hypers.sigma_b**2}
        return derived.get(name, getattr(self.hypers, name, getattr(self.config, name, None)))

    def identity(self) -> str:
        """The first 16 hex digits of the SHA-256 of config, hypers and seed as canonical JSON.

        It depends neither on the order of the fields nor on how they were swept (by depth and width, or by hidden).
        """
        content = _canonical(self.config, self.hypers) | {"seed": int(self.seed)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """A product of axes over fields of `Config` and `Hypers`, times seeds.

    There are four more fields: depth and width, which give `hidden` (width, depth times; the one that is not swept
    comes from the base), and sigma_w2 and sigma_b2, the variances σ_w² and σ_b².

    Args:
      product: field → its values; every field is an axis. Values are a list, or {linspace: [start, stop, num]},
        {geomspace: [start, stop, num]} or {arange: [start, stop, step]} as in NumPy (rounded for integer fields).
      zip: field → its values; these fields advance together as one axis.
      points: a list of settings, {field: value, …}, as one axis.
      config, hypers: the base; gives the fields that are not swept.
      seeds: how many (0, 1, …) or which.

    Raises:
      ValueError: a field or value is not allowed, two points are the same, or no field is swept.

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
        _ = self._settings  # raises now if a point is not allowed

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, the slowest first, without the seeds, which are the fastest axis."""
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
        """The points without their seeds; each occurs once."""
        configs: dict[tuple, tuple[Config, str]] = {}
        seen: dict[tuple, Step] = {}
        made = []
        for steps in itertools.product(*self.axes):
            coordinates: Step = {name: value for step in steps for name, value in step.items()}
            changes = _as_config_fields(coordinates, self.config)
            of_hypers = {name: changes.pop(name) for name in Hypers._fields if name in changes}
            hypers = self.hypers._replace(**of_hypers)
            if of_hypers:
                check_hypers(hypers)
            if (key := tuple(changes.items())) not in configs:  # looking up a Config is faster than making one
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
    """Read a grid file (YAML or TOML): a config file that also has product, zip or points.

    Raises:
      ValueError: damaged, or a field or value that is not allowed.
      OSError: no such file.
    """
    return settings.read(path, grid_from)


def grid_from(plain: Any) -> Grid:
    """Make a grid from plain data, as a grid file or `grid_as_plain` gives them.

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
            raise ValueError(f"{name} is empty; allowed: {CONTENTS[name]}")
    base = settings.settings_from(plain, also=AXES)
    if len(base.hypers) > 1:
        raise ValueError(f"hypers has {len(base.hypers)} settings; allowed: one, and `points` to sweep over several")
    return Grid(**axes, config=base.config, hypers=base.hypers[0], seeds=base.seeds)


def grid_as_plain(grid: Grid) -> dict[str, Any]:
    """A grid as plain data (for JSON), which `grid_from` reads; keeps the order of the axes, ranges become lists."""
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
    """A setting as plain data in which equal numbers have the same text: 0, 0.0 and -0.0."""
    parts = {"config": settings.plain_of(vars(config)), "hypers": hypers._asdict()}
    return {
        part: {name: float(value) + 0.0 if HINTS[part][name] is float else value for name, value in fields.items()}
        for part, fields in parts.items()
    }


def _as_config_fields(coordinates: Step, base: Config) -> Step:
    """Replace depth, width, sigma_w2 and sigma_b2 by fields of `Config` and `Hypers`."""
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
    """Refuse a field that is swept twice, also under another name."""
    section_of: dict[str, str] = {}
    for name, section in [*axes, *((name, "points") for name in dict.fromkeys(itertools.chain(*points)))]:
        if name in section_of:
            raise ValueError(f"{name} is in {section_of[name]} and in {section}; allowed: one axis for each field")
        section_of[name] = section
    for name, original in STANDS_FOR.items():
        if name in section_of and original in section_of:
            raise ValueError(f"{name} and {original} are both swept over; allowed: {name}, or {original} itself")


_READERS = {"product": product_axes, "zip": zip_axes, "points": listed_points}


def _seeds(seeds: Any) -> int | tuple[int, ...]:
    """Check the seeds: how many, or which."""
    which = settings.which_seeds(seeds)
    if len(set(which)) < len(which):
        raise ValueError(f"seeds {reprlib.repr(seeds)} is not allowed; allowed: how many, or which, each once")
    return seeds if isinstance(seeds, int) else tuple(which)


def _shown(coordinates: Step) -> str:
    """A point as text for messages."""
    words = (f"{name} {text_of(v) if callable(v) else reprlib.repr(v)}" for name, v in coordinates.items())
    return f"({', '.join(words) or 'the base'})"
