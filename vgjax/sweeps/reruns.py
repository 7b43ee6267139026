"""A result made again, by what it says of itself, and compared with what it was, number by number."""

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
from vgjax.settings import settings_from
from vgjax.sweeps.grid import grid_from
from vgjax.sweeps.sweep import Job, Standing
from vgjax.training import history
from vgjax.training.loop import run

UNTOLD = "it does not say how it was made; allowed: the history of a run or a sweep"
Progress = Callable[[xr.Dataset, int, int | None], None]


class Difference(NamedTuple):
    """How far a variable is from what it was."""

    share: float  # of its numbers that are not the same bits
    largest: float  # |new − old| / max(|new|, |old|); NaN where that means nothing


class Rerun(NamedTuple):
    """A result made again."""

    history: xr.Dataset
    differences: dict[str, Difference]  # variables that are not the same to the last bit
    changed: dict[str, tuple[str, str]]  # of what it was made with: there, here


def rerun(
    result: str | Path,
    folder: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Rerun:
    """Make a result again, from the settings and seeds in it, and compare.

    On one machine, with the same versions, every number is to be the same bits.

    Args:
      result: the folder of a finished run or sweep, or its history.nc.
      folder: where what is made is written; None: nowhere.
      data_dir, manual_dir: where prepared data lie, and original files for TFDS (see `vgjax.data`).
      progress: called after every chunk, with its history, the steps of the whole, and those done if not this chunk's.

    Raises:
      ValueError: the result is not finished, does not say how it was made, or can no longer be made.

    Example:
      >>> _ = run(Config(dataset="iris", hidden=(8,), epochs=1), folder="runs/one")
      >>> rerun("runs/one").differences
      {}
    """
    before, tell = _finished(Path(result)), progress or (lambda part, total, done: None)
    where = {"data_dir": data_dir, "manual_dir": manual_dir}
    devices = {"shard": before.attrs["shard"], "devices": _devices(before.attrs["devices"])}
    if "sweep" in before.attrs:
        grid = grid_from(json.loads(before.attrs["sweep"]))

        def landed(standing: Standing) -> None:
            if standing.part is not None:
                tell(standing.part, standing.total, standing.done)

        after = Job(grid, folder, **where, **devices).run(landed)  # type: ignore[arg-type]
    else:
        about = json.loads(before.attrs["run"])
        if "variables" in about:
            raise ValueError(f"{result} started from given variables, which it does not hold")
        settings = settings_from(about)
        after = run(
            settings.config,
            settings.hypers,
            settings.seeds,
            paired=settings.paired,
            dataset=load(settings.config.dataset, **where),
            folder=folder,
            lanes=about.get("lanes", 0),
            deepest=about.get("deepest", 0),
            tensorboard="none",
            progress=lambda part, total: tell(part, total, None),
            **devices,  # type: ignore[arg-type]
        ).history
    return Rerun(after, differences(before, after), _changed(before, after))


def differences(before: xr.Dataset, after: xr.Dataset) -> dict[str, Difference]:
    """The variables and coordinates of `before` that `after` does not have with the same bits (NaN as NaN)."""
    found = {}
    for name, old in before.variables.items():
        new = after.variables.get(name)
        if new is None or new.shape != old.shape or new.dtype.kind != old.dtype.kind:
            found[str(name)] = Difference(1.0, np.nan)
        elif (share := _other(old.values, new.values).mean()) > 0:
            found[str(name)] = Difference(float(share), _largest(old.values, new.values))
    return found


def _other(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return (old != new) & ~((old != old) & (new != new))


def _largest(old: np.ndarray, new: np.ndarray) -> float:
    if old.dtype.kind not in "fiu":
        return np.nan
    old, new = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(new - old) / np.maximum(np.abs(new), np.abs(old))
    relative = relative[np.isfinite(relative)]
    return float(relative.max()) if relative.size else np.nan


def _finished(path: Path) -> xr.Dataset:
    file = path / "history.nc" if path.is_dir() else path
    if not file.exists():
        there = f"{path} is not finished" if (path / "config.yaml").exists() else f"{path} holds no result"
        raise ValueError(f"{there}; allowed: the folder of a finished run or sweep, or its history.nc")
    found = history.read(file)
    if not ({"run", "sweep"} & set(found.attrs)) or not {"shard", "devices", "environment"} <= set(found.attrs):
        raise ValueError(f"{file}: {UNTOLD}")
    return found


def _devices(wanted: int) -> int:
    """As many as there were; a CPU can still be made several, if it has not computed anything yet."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", int(wanted))
    return min(int(wanted), jax.device_count())


def _changed(before: xr.Dataset, after: xr.Dataset) -> dict[str, tuple[str, str]]:
    """What the two were made with, and from, where it differs."""
    old, new = (_flat(json.loads(one.attrs["environment"])) | _source(one) for one in (before, after))
    return {name: (old[name], new[name]) for name in old if name != "date" and old[name] != new.get(name, old[name])}


def _flat(made: Mapping[str, Any]) -> dict[str, str]:
    flat = {name: value for name, value in made.items() if not isinstance(value, dict)} | made["versions"]
    return {name: str(value) for name, value in flat.items()}


def _source(one: xr.Dataset) -> dict[str, str]:
    data = json.loads(one.attrs["run"])["data"] if "run" in one.attrs else ""
    return {"data": data, "number of devices": str(one.attrs["devices"])}
