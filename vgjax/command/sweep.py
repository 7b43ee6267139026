"""`vgjax sweep`: run every point of a grid, and draw maps of the results."""

from __future__ import annotations

import functools
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vgjax.command.options import (
    Count,
    DataDir,
    Devices,
    Distributed,
    Folder,
    ManualDir,
    Shard,
    safe_name,
    use_cores_as_devices,
)
from vgjax.command.stopping import add_advice, changed_options, stop_after_chunk, stop_at_once

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from vgjax.sweeps.plan import Slice, SweepPlan
    from vgjax.sweeps.sweep import Job


@dataclass(frozen=True)
class Sweep:
    """Run every point of a grid, many at once where they share a program, and draw maps of the results.

    The same command goes on with a sweep that was stopped; if the grid has grown, only the new points are run.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """YAML or TOML: a config file that also says what to vary, in `product`, `zip` or `points` [file]."""
    out: Folder = None
    """Folder of the sweep; default: sweeps/NAME, by the file's name [folder]."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print how many runs and programs there are, and estimates of their time and memory; run nothing."""
    plot: Annotated[tuple[str, ...], arg(metavar="X,Y,VALUE …")] = ()
    """Figures: X,VALUE for a curve; X,Y,VALUE for a heat map, or for a curve for each Y if Y is a name [names]."""
    lanes: Count = None
    """Largest number of lanes that run at once; default: as many as fit into the memory [lanes]."""
    data_dir: DataDir = None
    manual_dir: ManualDir = None
    shard: Shard = "auto"
    devices: Devices = None
    distributed: Distributed = None

    def run(self) -> None:
        """Plan, train, print the results and draw the figures."""
        use_cores_as_devices()
        from vgjax.sweeps import map_figures, tables
        from vgjax.sweeps.grid import read_grid
        from vgjax.sweeps.sweep import Job, SweepOptions
        from vgjax.training import parallel
        from vgjax.training.processes import joined

        grid = read_grid(self.file)
        for spec in self.plot:
            tables.check_plot(spec, grid.expand())
        folder = self.out or Path("sweeps", self.file.stem)
        how = {name: getattr(self, name) for name in ("data_dir", "manual_dir", "lanes", "shard", "devices")}
        advice = functools.partial(self._advice, folder)
        with joined(self.distributed):
            job = Job(grid, SweepOptions(folder, **how))
            if parallel.is_first():
                print_plan(job.plan)
            if self.dry_run:
                return
            history = _run_job(job, folder, advice)
        if not parallel.is_first():
            return
        with stop_at_once(advice):
            print_sweep(history, folder)
            for spec in self.plot:
                name = folder / safe_name(spec)
                print(f"figure      {map_figures.write_plot(name, history, spec, grid.config, grid.hypers)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: with the same command, and its folder as --out."""
        words = changed_options(self, "lanes", "data_dir", "manual_dir", "shard", "devices")
        words += ["--plot", *self.plot] if self.plot else []
        return f"stopped; go on with: {shlex.join(['vgjax', 'sweep', str(self.file), '--out', str(folder), *words])}"


def _run_job(job: Job, folder: Path, advice: Callable[[], str]) -> xr.Dataset:
    """Run the sweep with a progress bar; a signal stops it after a chunk."""
    from vgjax.command.progress import ProgressBar
    from vgjax.training import parallel

    with add_advice(advice, folder / "grid.yaml"), ProgressBar() as bar, stop_after_chunk(advice) as check:

        def after_chunk(standing: Any) -> None:
            if parallel.is_first():
                prefix = f"slice {standing.number} of {standing.slices}  "
                bar.update(standing.part, standing.total, standing.done, prefix)
            check()

        return job.run(after_chunk, lambda note: print(note, file=sys.stderr))


def print_plan(plan: SweepPlan) -> None:
    """Print what a sweep is going to do: which programs, for how many runs, and the time and memory they need.

    Args:
      plan: by `vgjax.sweeps.plan.estimate`.
    """
    from vgjax.command.printing import print_table
    from vgjax.names import text_of

    programs: dict[Any, list[Slice]] = {}
    for one in plan.slices:
        programs.setdefault(one.program, []).append(one)
    rows = []
    for slices in programs.values():
        depths = sorted({len(one.config.hidden) for one in slices})
        names = (text_of(slices[0].config.activation), text_of(slices[0].config.initializer))
        runs = sum(len(one.points) for one in slices)
        hidden = slices[0].config.hidden
        width = hidden[0] if len(set(hidden)) == 1 else "-".join(map(str, hidden))
        rows.append([*names, width, ", ".join(map(str, depths)), runs, len(slices), slices[0].lanes])
    columns = ["activation", "initializer", "width", "hidden layers", "runs", "slices", "lanes at once"]
    print_table("Programs to compile", columns, rows, columns[4:])
    needed, free = (number / 1e9 for number in (plan.bytes_needed, plan.bytes_there))
    print(f"runs        {plan.points}, of which {plan.finished} are finished already")
    print(f"programs    {plan.programs} to compile, for {len(plan.slices)} slices of lanes")
    print(f"memory      about {needed:.2g} GB at once, of {free:.2g} GB that are free")
    print(f"time        about {_duration(plan.seconds)}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_sweep(history: xr.Dataset, folder: Path) -> None:
    """Print the results of a sweep, and where they are."""
    from vgjax.sweeps.tables import best

    print_best(best(history), "validation_accuracy")
    lanes = history.sizes["lane"]
    if diverged := int((history["first_bad_step"] >= 0).sum()):
        print(f"diverged    {diverged} of {lanes} lanes: first_bad_step in {folder / 'lanes.csv'}")
    if zeroed := int((history["clipped_to_zero"] > 0).any("evaluation").sum()):
        print(f"clipped     {zeroed} of {lanes} lanes to zeros: clipped_to_zero in {folder / 'evaluations.csv'}")
    print(f"history     {folder / 'history.nc'}\nstatistics  {folder / 'statistics.csv'}")


def print_best(table: pd.DataFrame, value: str) -> None:
    """Print the best settings of a sweep, the best first.

    Args:
      table: by `vgjax.sweeps.tables.best`.
      value: the variable by which they are ranked.
    """
    from pandas.api.types import is_numeric_dtype

    from vgjax.command.printing import print_table

    names = list(table.columns[: table.columns.get_loc("value")])
    rows = []
    for row in table.to_dict("records"):
        point = [f"{row[name]:.4g}" if isinstance(row[name], float) else row[name] for name in names]
        interval = None if math.isnan(row["low"]) else f"{row['low']:.4g} … {row['high']:.4g}"
        rows.append([*point, f"{row['value']:.4g}", interval, row["n"], row["diverged"] or None])
    columns = [*names, value.replace("_", " "), "95 % interval", "seeds", "lanes diverged"]
    numbers = [name for name in columns if name not in names or is_numeric_dtype(table[name])]
    print_table("Best settings, mean over seeds", columns, rows, numbers)
