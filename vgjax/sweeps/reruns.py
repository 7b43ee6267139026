"""Make a result again from the settings in its history, and compare every number."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from vgjax.data.catalogue import load
from vgjax.settings import run_of
from vgjax.sweeps.grid import grid_from
from vgjax.sweeps.sweep import Job, Standing, SweepOptions
from vgjax.training import history
from vgjax.training.loop import run

NOT_SAID = "it does not say how it was made; allowed: the history of a run or a sweep"
Progress = Callable[[xr.Dataset, int, int | None], None]


class Difference(NamedTuple):
    """How much a variable differs from before."""

    share: float  # share of its numbers whose bits differ
    largest: float  # largest |new − old| / max(|new|, |old|); NaN if it cannot be computed


class RerunResult(NamedTuple):
    """A result made again."""

    history: xr.Dataset
    differences: dict[str, Difference]  # variables whose bits differ
    changed: dict[str, tuple[str, str]]  # software, devices, data … that differ: before, now


def rerun(
    result: str | Path,
    folder: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> RerunResult:
    """Make a result again from the settings and seeds in it, and compare.

    On one machine with the same versions, every number has the same bits.

    Args:
      result: the folder of a finished run or sweep, or its history.nc.
      folder: where the new result is written; None: nothing is written.
      data_dir, manual_dir: folders of prepared data and of original files for TFDS (see `vgjax.data`).
      progress: called after every chunk with the chunk's history, the number of all steps, and the number of steps done
        (None: it is the last step of the chunk's history).

    Raises:
      ValueError: the result is not finished, does not say how it was made, or can no longer be made.

    Example:
      >>> from vgjax import Config, run
      >>> _ = run(Config(dataset="iris", hidden=(8,), epochs=1), folder="runs/one")
      >>> rerun("runs/one").differences
      {}
    """
    before, tell = _finished_result(Path(result)), progress or (lambda part, total, done: None)
    where = {"data_dir": data_dir, "manual_dir": manual_dir}
    devices = {"shard": before.attrs["shard"], "devices": _devices(before.attrs["devices"])}
    if "sweep" in before.attrs:
        grid = grid_from(json.loads(before.attrs["sweep"]))

        def landed(standing: Standing) -> None:
            if standing.part is not None:
                tell(standing.part, standing.total, standing.done)

        after = Job(grid, SweepOptions(folder, **where, **devices)).run(landed)  # type: ignore[arg-type]
    else:
        made = run_of(before)
        if made.has_given_variables:
            raise ValueError(f"{result} started from given variables, which it does not hold")
        after = run(
            made.config,
            made.hypers,
            made.seeds,
            paired=made.paired,
            dataset=load(made.config.dataset, **where),
            folder=folder,
            lanes=made.lanes,
            deepest=made.deepest,
            tensorboard="none",
            progress=lambda part, total: tell(part, total, None),
            **devices,  # type: ignore[arg-type]
        ).history
    return RerunResult(after, differences(before, after), _changed(before, after))


def differences(before: xr.Dataset, after: xr.Dataset) -> dict[str, Difference]:
    """The variables and coordinates of `before` whose bits differ in `after`, or that it lacks; NaN equals NaN."""
    found = {}
    for name, old in before.variables.items():
        new = after.variables.get(name)
        if new is None or new.shape != old.shape or new.dtype.kind != old.dtype.kind:
            found[str(name)] = Difference(1.0, np.nan)
        elif (share := _differs(old.values, new.values).mean()) > 0:
            found[str(name)] = Difference(float(share), _largest_difference(old.values, new.values))
    return found


def _differs(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return (old != new) & ~((old != old) & (new != new))


def _largest_difference(old: np.ndarray, new: np.ndarray) -> float:
    """The largest relative difference of two arrays of numbers."""
    if old.dtype.kind not in "fiu":
        return np.nan
    old, new = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(new - old) / np.maximum(np.abs(new), np.abs(old))
    relative = relative[np.isfinite(relative)]
    return float(relative.max()) if relative.size else np.nan


def _finished_result(path: Path) -> xr.Dataset:
    """The history of a finished run or sweep."""
    file = path / "history.nc" if path.is_dir() else path
    if not file.exists():
        there = f"{path} is not finished" if (path / "config.yaml").exists() else f"{path} holds no result"
        raise ValueError(f"{there}; allowed: the folder of a finished run or sweep, or its history.nc")
    found = history.read(file)
    if not ({"run", "sweep"} & set(found.attrs)) or not {"shard", "devices", "environment"} <= set(found.attrs):
        raise ValueError(f"{file}: {NOT_SAID}")
    return found


def _devices(wanted: int) -> int:
    """As many devices as before, if there are; a CPU that has not computed anything yet can be split into several."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", int(wanted))
    return min(int(wanted), jax.device_count())


def _changed(before: xr.Dataset, after: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Software, devices and data that differ between the two."""
    old, new = (_flat(json.loads(one.attrs["environment"])) | _source(one) for one in (before, after))
    return {name: (old[name], new[name]) for name in old if name != "date" and old[name] != new.get(name, old[name])}


def _flat(made: Mapping[str, Any]) -> dict[str, str]:
    """The environment as names and texts, without nesting."""
    flat = {name: value for name, value in made.items() if not isinstance(value, dict)} | made["versions"]
    return {name: str(value) for name, value in flat.items()}


def _source(one: xr.Dataset) -> dict[str, str]:
    data = run_of(one).data or "" if "run" in one.attrs else ""
    return {"data": data, "number of devices": str(one.attrs["devices"])}
