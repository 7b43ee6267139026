"""At which steps a run is instrumented: name → the steps, counted from 0, in ascending order."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable

from vgjax.names import Entry, resolve

MOST_RECORDS = 10_000_000
Cadence = Callable[[int, int], list[int]]  # (steps per epoch, steps of the run) → steps


def epoch() -> Cadence:
    """The first step of every epoch, and the last of the run."""
    return lambda per_epoch, total: _with_last(range(0, total, per_epoch), total)


def every(k: int = 1) -> Cadence:
    """Steps 0, k, 2k … and the last.

    Raises:
      ValueError: k is not a whole number from 1.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"every({k!r}) is not allowed; allowed: whole numbers from 1")
    return lambda per_epoch, total: _with_last(range(0, total, k), total)


def log(per_decade: int = 10) -> Cadence:
    """Step 0, the steps round(10^(i / per_decade)), and the last: most records are at early steps.

    Raises:
      ValueError: per_decade is not a whole number from 1 to 1000.
    """
    if not isinstance(per_decade, int) or isinstance(per_decade, bool) or not 1 <= per_decade <= 1000:
        raise ValueError(f"log({per_decade!r}) is not allowed; allowed: whole numbers from 1 to 1000")

    def steps(per_epoch: int, total: int) -> list[int]:
        spaced, i = {0}, 0
        while (step := round(10 ** (i / per_decade))) < total:
            spaced.add(step)
            i += 1
        return _with_last(spaced, total)

    return steps


def at(*steps: int) -> Cadence:
    """These steps; steps after the end of the run are left out.

    Raises:
      ValueError: no step is given, or one is not a whole number from 0.
    """
    if not steps or not all(isinstance(step, int) and not isinstance(step, bool) and step >= 0 for step in steps):
        raise ValueError(f"at{steps!r} is not allowed; allowed: whole numbers from 0")
    return lambda per_epoch, total: sorted({step for step in steps if step < total})


CADENCES: dict[str, Entry] = {
    "epoch": Entry(epoch, "the first step of every epoch, and the last", "—"),
    "every": Entry(every, "step 0, every k-th and the last: every(10); k 1", "—"),
    "log": Entry(log, "step 0, so many steps in every power of ten, and the last: log(10)", "—"),
    "at": Entry(at, "the steps that are listed: at(0, 1, 10, 100)", "—"),
}


def steps_of(named: str | Cadence, per_epoch: int, total: int) -> list[int]:
    """The instrumented steps of a run.

    >>> steps_of("log(2)", 100, 150)
    [0, 1, 3, 10, 32, 100, 149]

    Args:
      named: a row of CADENCES with its arguments, `module:function`, or the callable itself.
      per_epoch, total: steps of an epoch and of the run.

    Raises:
      ValueError: unknown cadence, wrong arguments, or a function that does not return ascending whole numbers.
    """
    steps = resolve("cadence", CADENCES, named)(per_epoch, total)
    if not isinstance(steps, list) or {*map(type, steps)} - {int}:
        raise ValueError(f"it gives {reprlib.repr(steps)}; allowed: a list of whole numbers")
    if not all(map(operator.lt, steps, steps[1:])):
        raise ValueError(f"it gives {reprlib.repr(steps)}; allowed: ascending steps, each once")
    return steps


def _with_last(steps: range | set[int], total: int) -> list[int]:
    if len(steps) > MOST_RECORDS:
        raise ValueError(f"{len(steps)} records of one run are not allowed; allowed: at most {MOST_RECORDS}")
    return sorted({*steps, total - 1})
