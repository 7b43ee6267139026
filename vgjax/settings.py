"""Read config files (YAML or TOML) and command lines, or say in one line what is wrong with them."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import reprlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

from vgjax.config import Config, Hypers, check_hypers, typed
from vgjax.names import nearest, text_of

if TYPE_CHECKING:
    import xarray as xr

LARGEST_SEED = 2**32 - 1
MOST_SEEDS = 1_000_000
_SEEDS = f"how many, or which, whole numbers to {LARGEST_SEED}, and at most {MOST_SEEDS} of them"
HINTS = {"config": get_type_hints(Config), "hypers": get_type_hints(Hypers)}
_REFUSED = r" \2 is not allowed"
Made = TypeVar("Made")


class Settings(NamedTuple):
    """The settings of a run, as a config file holds them."""

    config: Config = Config()
    hypers: tuple[Hypers, ...] = (Hypers(),)
    seeds: int | tuple[int, ...] = 1
    paired: bool = False  # True: pair hypers[i] with seeds[i]; False: every hypers with every seed


def read_settings(path: Path) -> Settings:
    """Read a config file: fields of `Config` and `Hypers` and `seeds`, flat or as a run's own config.yaml has them.

    Raises:
      ValueError: damaged, or a field or value that is not allowed.
      OSError: no such file.
    """
    return read(path, settings_from)


def read(path: Path, make: Callable[[Any], Made]) -> Made:
    """`make(data)` for the plain data in a YAML or TOML file; error messages begin with the file's name.

    Raises:
      ValueError: damaged, or `make` refuses it.
      OSError: no such file.
    """
    try:
        return make(_parse(path))
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def settings_from(content: Any, also: tuple[str, ...] = ()) -> Settings:
    """The same from plain data, as a config file or `history.attrs["run"]` (JSON) holds them.

    Args:
      content: the plain data.
      also: more names that a message about an unknown field may suggest.

    Raises:
      ValueError: a field or value is not allowed.
    """
    if not isinstance(content, dict):
        raise ValueError("it holds no settings; allowed: lines of `field: value`")
    content = dict(content)
    config = _section(content, "config")
    hypers = content.pop("hypers", [])
    settings = [_checked(h, "hypers") for h in (hypers if isinstance(hypers, list) else [hypers])] or [{}]
    seeds = content.pop("seeds", 1)
    which_seeds(seeds)
    for name in ("data", "lanes", "deepest", "variables"):  # these say how the run was made, and are no settings
        content.pop(name, None)
    paired = converted("paired", content.pop("paired", False), bool)
    flat = {name: content.pop(name) for name in list(content) if name in HINTS["hypers"]}
    config |= _checked(content, "config", also=(*Hypers._fields, "seeds", "config", "hypers", *also))
    flat = _checked(flat, "hypers")
    found = tuple(Hypers(**(one | flat)) for one in settings)
    for setting in found:
        check_hypers(setting)
    return Settings(Config(**config), found, seeds if isinstance(seeds, int) else tuple(seeds), paired)


def as_plain(config: Config, hypers: Sequence[Hypers], seeds: Sequence[int], data: str) -> dict[str, Any]:
    """A run as plain data, which `settings_from` reads: callables as module:function, tuples as lists.

    Args:
      config, hypers, seeds: the run.
      data: where its data came from.
    """
    settings = [{name: float(value) for name, value in setting._asdict().items()} for setting in hypers]
    return {"config": plain_of(vars(config)), "hypers": settings, "seeds": list(seeds), "data": data}


def plain_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as plain data: callables as module:function, tuples as lists."""
    return {
        name: text_of(value) if callable(value) else list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }


def _parse(path: Path) -> Any:
    """The file's content as plain data; nothing in it is executed."""
    if path.suffix == ".toml":
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"cannot read a {path.suffix or 'file without suffix'}; allowed: .yaml, .yml, .toml")
    import yaml

    class Strict(yaml.SafeLoader):
        """Refuses a field that is there twice; plain YAML silently keeps the second."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{reprlib.repr(twice[0])} is there twice; allowed: each field once")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Strict)
    except yaml.YAMLError as error:
        raise ValueError(f"damaged: {' '.join(str(error).split())}") from None


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    return _checked(content.pop(name, {}), name)


def _checked(fields: Any, section: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of one section, converted; `also`: more names that a message may suggest."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"{section} {reprlib.repr(fields)} is not allowed; allowed: lines of `field: value`")
    hints = HINTS[section]
    for name in fields:
        if name not in hints:
            raise ValueError(f"unknown field {reprlib.repr(name)}; {nearest(name, [*hints, *also])}")
    return {name: converted(name, value, hints[name]) for name, value in fields.items()}


def converted(name: str, value: Any, hint: Any) -> Any:
    """A field's value from plain data (lists, and numbers as text), as its type hint wants it.

    Raises:
      ValueError: the value is of another type.
    """
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    return typed(name, value, hint)


def which_seeds(seeds: Any) -> list[int]:
    """The seeds as a list; a single number n stands for 0 … n − 1.

    >>> which_seeds(2), which_seeds([7, 3])
    ([0, 1], [7, 3])

    Raises:
      ValueError: no seeds, too many, or something that is not a seed.
    """
    which: list[int] = []
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        which = list(range(int(seeds))) if seeds <= MOST_SEEDS else []
    else:
        with contextlib.suppress(ValueError):
            which = list(typed("seeds", seeds, tuple[int, ...]))
    if not which or not all(0 <= seed <= LARGEST_SEED for seed in which):
        raise ValueError(f"seeds {reprlib.repr(seeds)} is not allowed; allowed: {_SEEDS}")
    return which


def parse_seeds(words: Sequence[str]) -> int | tuple[int, ...]:
    """One number: how many seeds; several, or one with a comma: which.

    >>> parse_seeds(["8"]), parse_seeds(["3", "5"]), parse_seeds(["7,"])
    (8, (3, 5), (7,))
    """
    text = " ".join(words)
    parts = text.replace(",", " ").split()
    which = tuple(int(part) if part.isdecimal() and len(part) < 20 else -1 for part in parts)
    found = which[0] if len(which) == 1 and "," not in text else which
    with contextlib.suppress(ValueError):
        which_seeds(found)
        return found
    raise ValueError(f"seeds {reprlib.repr(text)} is not allowed; allowed: {_SEEDS}")


def seeds_as_words(seeds: int | tuple[int, ...]) -> tuple[str, ...]:
    """The words that `parse_seeds` reads as these seeds."""
    if isinstance(seeds, int):
        return (str(seeds),)
    return tuple(map(str, seeds)) if len(seeds) != 1 else (f"{seeds[0]},",)


def in_one_line(box: str) -> str:
    """What is wrong, what is allowed and the nearest valid name, from the box of several lines that tyro draws."""
    # Why regexes: tyro 1.0 prints its errors in such a box and exits; it raises nothing that holds their parts.
    # cyclopts 5.5 does, but in a trial the command grew from 1481 to 1503 lines, and `--no-bias=1` was accepted.
    # The regexes can go when tyro raises such errors, or when cyclopts refuses what tyro refuses.
    plain = re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯]", "", box).partition("\n")[2]  # the first line is its title
    parts = [" ".join(part.split()) for part in re.split(r"^ *[─-]+ *$", plain, flags=re.M)]
    what, *hints = [part for part in parts if part]
    what = (
        re.sub(r"^Error parsing (\S*\.(config|hypers): )?", "", what).partition(" Arguments are applied")[0].rstrip(".")
    )
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '(.*)'. Expected one of (\(.*\))", what):
        return f"{choice[2]} {choice[1]!r} is not allowed; {nearest(choice[1], ast.literal_eval(choice[3]))}"
    what = re.sub(
        r": (invalid literal for int\(\) with base 10|could not convert string to float):? (.*)", _REFUSED, what
    )
    what = re.sub(r": (no type matching) .* could be instantiated from \[(.*?)\]\..*", _REFUSED, what)
    for hint in hints:
        if usage := re.match(r"Argument helptext: (-.*?\S) [A-Z]\w* [a-z]", hint):
            return f"{what}; allowed: {usage[1]}"
        if meant := re.match(r"Perhaps you meant: (--[\w-]+).*? in (vgjax [a-z ]+) --help", hint):
            return f"{what}; did you mean {meant[1]!r} of `{meant[2]}`? allowed: see `{meant[2]} --help`"
        if commands := re.match(r"Available subcommands: (.*)", hint):
            return f"{what}; {nearest(what.split(': ')[-1].split(',')[0], commands[1].split(', '))}"
    return what if "allowed:" in what else f"{what}; allowed: see `vgjax --help`"


class Run(NamedTuple):
    """A run, as its `config.yaml` and the attribute `run` of its history describe it."""

    config: Config
    hypers: tuple[Hypers, ...]
    seeds: int | tuple[int, ...]
    paired: bool  # whether hypers[i] is paired with seeds[i]
    data: str | None  # where the data came from; None: the description does not say
    lanes: int  # lanes of the compiled program; 0: as many as the run has
    deepest: int  # hidden layers of the compiled program; 0: as many as the run has
    has_given_variables: bool  # whether it started from variables that the description does not hold


def run_from(about: dict[str, Any]) -> Run:
    """Read the description of a run: what `as_plain` made, with what `vgjax.run` added.

    Raises:
      ValueError: a field or value is not allowed.
    """
    lanes, deepest = about.get("lanes", 0), about.get("deepest", 0)
    return Run(*settings_from(about), about.get("data"), lanes, deepest, "variables" in about)


def run_of(history: xr.Dataset) -> Run:
    """The run that a history comes from.

    Raises:
      ValueError: the history does not say; allowed: one that `vgjax.run` gave.
    """
    if "run" not in history.attrs:
        raise ValueError("the history does not say which run it is; allowed: what vgjax.run gave or wrote")
    return run_from(json.loads(history.attrs["run"]))


def is_same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of the same run; how many lanes its program is compiled for may differ."""
    return one | {"lanes": 0} == other | {"lanes": 0}
