"""The subcommands of `vgjax` that train, a class each: its fields are the options, their docstrings the help.

Rooms that need JAX are imported by the command that needs them, so that `--help` does not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, Suppress, arg

from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import text_of
from vgjax.options import DEFAULTS, FAILED, Count, Distributed, File, Folder, cores_are_devices, plain_name
from vgjax.settings import parse_seeds


@dataclass(frozen=True)
class Train:
    """Train every lane (hypers × seeds × replicas) as one compiled program, and record how its gradients fare."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    seeds: Annotated[tuple[str, ...], arg(metavar="N | SEED SEED …")] = ("1",)
    """How many, counted from 0; or which: two or more, or one and a comma (`--seeds 7,`) [seeds]."""
    out: Folder = None
    """Folder of the run; default: runs/DATASET-ACTIVATION-INITIALIZER-TIME [folder]."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with the run in --out from its last checkpoint; its config need not be repeated."""
    tensorboard: Literal["all", "first", "none"] = "all"
    """Lanes that are written to TensorBoard; none: no train.log either, and no wait for TensorFlow."""
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
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """What changes shapes or the compiled program."""
    hypers: OmitArgPrefixes[Hypers] = DEFAULTS.hypers[0]
    """Numbers, which do not; where a config file has several settings, an option replaces the number in all of them."""
    settings: Suppress[tuple[Hypers, ...]] = ()  # the file's, with the options in them

    def run(self) -> None:
        """Train, and say what came of it."""
        seeds, settings = parse_seeds(self.seeds), self.settings or (self.hypers,)
        if self.resume and not (self.out and (self.out / "config.yaml").is_file()):
            problem = f"{self.out} holds no run" if self.out else "no --out"
            raise ValueError(f"--resume: {problem}; allowed: --out DIR, the folder of a run")
        cores_are_devices()
        from vgjax import analysis, figures, parallel
        from vgjax.checks import check_names
        from vgjax.data import empty_classes, load
        from vgjax.loop import run
        from vgjax.machines import joined
        from vgjax.progress import ProgressBar
        from vgjax.show import print_empty_classes, print_run, print_signals
        from vgjax.stopping import stop_after_chunk, stop_at_once

        for setting in settings:
            check_hypers(setting)
        check_names(self.config)
        folder = self.out or new_folder(self.config)
        how = {name: getattr(self, name) for name in ("resume", "tensorboard", "shard", "devices")}
        find = functools.partial(load, self.config.dataset, self.data_dir, self.manual_dir)
        advice = functools.partial(self._advice, folder)
        with joined(self.distributed):
            dataset = parallel.at_first(find) or find()  # which may have to be prepared, once
            with _advised(advice, folder / "config.yaml"), ProgressBar() as bar, stop_after_chunk(advice) as check:

                def landed(part: Any, total_steps: int) -> None:
                    if parallel.is_first():
                        bar.update(part, total_steps)
                    check()

                result = run(self.config, settings, seeds, dataset=dataset, folder=folder, progress=landed, **how)
        if not parallel.is_first():
            return
        with stop_at_once(advice):
            print_run(result.history, folder, self.tensorboard != "none")
            print_empty_classes(empty_classes(dataset, self.config.holdout), dataset.classes)
            if analysis.root_mean_squares(result.history):
                print_signals(signals := analysis.signals(result.history, dataset))
                print(f"figure      {figures.write_signal(folder / 'signal', signals, analysis.SIGNALS)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: what the folder does not know is to be said again."""
        from vgjax.parallel import is_first

        if not is_first():
            return "stopped"
        if not (folder / "config.yaml").exists():
            return "stopped; nothing was written"
        said = _said(self, "tensorboard", "data_dir", "manual_dir", "shard", "devices")
        return f"stopped; go on with: {shlex.join(['vgjax', 'train', '--resume', '--out', str(folder), *said])}"


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
        from vgjax import map_figures, maps, parallel
        from vgjax.grid import read_grid
        from vgjax.machines import joined
        from vgjax.progress import ProgressBar
        from vgjax.show import print_plan, print_sweep
        from vgjax.stopping import stop_after_chunk, stop_at_once
        from vgjax.sweeps import Job

        grid = read_grid(self.file)
        for spec in self.plot:
            maps.check_plot(spec, grid.expand())
        folder = self.out or Path("sweeps", self.file.stem)
        how = {name: getattr(self, name) for name in ("data_dir", "manual_dir", "lanes", "shard", "devices")}
        advice = functools.partial(self._advice, folder)
        with joined(self.distributed):
            job = Job(grid, folder, **how)
            if parallel.is_first():
                print_plan(job.plan)
            if self.dry_run:
                return
            with _advised(advice, folder / "grid.yaml"), ProgressBar() as bar, stop_after_chunk(advice) as check:

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
        said = _said(self, "lanes", "data_dir", "manual_dir", "shard", "devices")
        said += ["--plot", *self.plot] if self.plot else []
        return f"stopped; go on with: {shlex.join(['vgjax', 'sweep', str(self.file), '--out', str(folder), *said])}"


@dataclass(frozen=True)
class Rerun:
    """Make a run or a sweep again, from the settings and seeds in its result, and compare every number.

    Ends with status 1 where one is not the same to the last bit; what it was made with is compared then too.
    """

    result: Annotated[Positional[Path], arg(metavar="RESULT")]
    """Folder of a finished run or sweep, or its history.nc."""
    out: Folder = None
    """Keep what is made in this folder; default: nothing is kept [folder]."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    manual_dir: Folder = None
    """Original files of the data set, as an alternative to downloading [folder]."""

    def run(self) -> None:
        """Run again, compare and say what differs."""
        from vgjax.progress import ProgressBar
        from vgjax.reruns import rerun
        from vgjax.show import print_rerun

        where = {"data_dir": self.data_dir, "manual_dir": self.manual_dir}
        with ProgressBar() as bar:
            again = rerun(self.result, self.out, progress=bar.update, **where)
        print_rerun(again)
        if again.differences:
            raise SystemExit(FAILED)


@contextlib.contextmanager
def _advised(advice: Callable[[], str], file: Path) -> Iterator[None]:
    """Say with an interruption how to go on, and with what the disk refuses too, once that file is there."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(advice(), *stop.args) from None
    except OSError as error:
        if error.strerror and file.exists():
            error.strerror += f"; {advice()}"
        raise


def _said(command: Train | Sweep, *options: str) -> list[str]:
    """Those of the options that were given, and the processes, as they are typed."""
    given = {name: value for name in options if (value := getattr(command, name)) != getattr(type(command), name)}
    said = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return said if command.distributed is None else [*said, "--distributed", *command.distributed]


def new_folder(config: Config) -> Path:
    names = [plain_name(text_of(named)) for named in (config.dataset, config.activation, config.initializer)]
    return Path("runs", "-".join([*names, time.strftime("%Y%m%d-%H%M%S")]))
