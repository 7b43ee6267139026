"""`vgjax sweep`: run every point of a grid, and draw maps of what came of it."""

from __future__ import annotations

import functools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vgjax.command.options import Count, Distributed, Folder, cores_are_devices, plain_name
from vgjax.command.stopping import options_as_typed, saying_how_to_go_on


@dataclass(frozen=True)
class Sweep:
    """Run every point of a grid, those that share a program at once, and draw maps of what came of it.

    Said again, it goes on where it stopped; where the grid has grown, only what is new is run.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """YAML or TOML: a config file, and what to sweep over in `product`, `zip` or `points` [file]."""
    out: Folder = None
    """Folder of the sweep; default: sweeps/NAME, by the file's name [folder]."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Say how many runs and programs there are, and what time and memory they take about; run nothing."""
    plot: Annotated[tuple[str, ...], arg(metavar="X,Y,VALUE …")] = ()
    """Figures: X,VALUE for a curve; X,Y,VALUE for a heat map, or a curve for each Y that is a name [names]."""
    lanes: Count = None
    """Most lanes that run at once; default: what the memory holds [lanes]."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    manual_dir: Folder = None
    """Original files of the data set, as an alternative to downloading [folder]."""
    shard: Literal["auto", "lanes", "batch"] = "auto"
    """What the devices share; auto: the lanes where they divide, else the batch."""
    devices: Count = None
    """How many devices to use; default: all, and every core of a CPU is one [devices]."""
    distributed: Distributed = None
    """Be one process of a job: detected (Slurm, Open MPI, Kubernetes, Cloud TPU), or given by process 0's address."""

    def run(self) -> None:
        """Plan, train, draw and say what came of it."""
        cores_are_devices()
        from vgjax.command.printing import print_plan, print_sweep
        from vgjax.command.progress import ProgressBar
        from vgjax.command.stopping import stop_after_chunk, stop_at_once
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
            with (
                saying_how_to_go_on(advice, folder / "grid.yaml"),
                ProgressBar() as bar,
                stop_after_chunk(advice) as check,
            ):

                def landed(standing: Any) -> None:
                    if parallel.is_first():
                        where = f"slice {standing.number} of {standing.slices}  "
                        bar.update(standing.part, standing.total, standing.done, where)
                    check()

                history = job.run(landed, lambda note: print(note, file=sys.stderr))
        if not parallel.is_first():
            return
        with stop_at_once(advice):
            print_sweep(history, folder)
            for spec in self.plot:
                name = folder / plain_name(spec)
                print(f"figure      {map_figures.write_plot(name, history, spec, grid.config, grid.hypers)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: the same, with the folder said."""
        words = options_as_typed(self, "lanes", "data_dir", "manual_dir", "shard", "devices")
        words += ["--plot", *self.plot] if self.plot else []
        return f"stopped; go on with: {shlex.join(['vgjax', 'sweep', str(self.file), '--out', str(folder), *words])}"
