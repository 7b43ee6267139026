"""The subcommands of `vgjax`, a class each: its fields are the options, their docstrings the help.

Rooms that need JAX are imported by the command that needs them, so that `--help` does not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, arg, subcommand

from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import text_of
from vgjax.settings import Settings, parse_seeds

FAILED = 1
MOST_DRAWS = 100_000
DEFAULTS = Settings()

Folder = Annotated[Path | None, arg(metavar="DIR")]
File = Annotated[Path | None, arg(metavar="FILE")]
Count = Annotated[int | None, arg(metavar="INT")]
Distributed = Annotated[tuple[str, ...] | None, arg(metavar="[HOST:PORT COUNT INDEX]")]


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
        _cores_are_devices()
        from vgjax import analysis, figures, parallel
        from vgjax.checks import check_names
        from vgjax.data import empty_classes, load
        from vgjax.loop import run
        from vgjax.machines import joined
        from vgjax.show import ProgressBar, print_empty_classes, print_run, print_signals
        from vgjax.stopping import stop_after_chunk, stop_at_once

        for setting in settings:
            check_hypers(setting)
        check_names(self.config)
        folder = self.out or _new_folder(self.config)
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
        again = ["vgjax", "train", "--resume", "--out", str(folder)]
        for name in ("tensorboard", "data_dir", "manual_dir", "shard", "devices"):
            if (value := getattr(self, name)) != getattr(Train, name):
                again += [f"--{name.replace('_', '-')}", str(value)]
        if self.distributed is not None:
            again += ["--distributed", *self.distributed]
        return f"stopped; go on with: {shlex.join(again)}"


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
        _cores_are_devices()
        from vgjax import map_figures, maps, parallel
        from vgjax.grid import read_grid
        from vgjax.machines import joined
        from vgjax.show import ProgressBar, print_plan, print_sweep
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
                name = folder / _plain(spec)
                print(f"figure      {map_figures.write_plot(name, history, spec, grid.config, grid.hypers)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: the same, with the folder said."""
        again = ["vgjax", "sweep", str(self.file), "--out", str(folder)]
        for name in ("lanes", "data_dir", "manual_dir", "shard", "devices"):
            if (value := getattr(self, name)) != getattr(Sweep, name):
                again += [f"--{name.replace('_', '-')}", str(value)]
        if self.distributed is not None:
            again += ["--distributed", *self.distributed]
        return f"stopped; go on with: {shlex.join([*again, *(['--plot', *self.plot] if self.plot else [])])}"


@dataclass(frozen=True)
class Predict:
    """Say, without training, how the signal ought to fare at step 0: mean-field theory, layer by layer, with a band."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    out: Annotated[Path, arg(metavar="NAME")] = Path("prediction")
    """Where NAME.png, NAME.svg and NAME.csv go [file without suffix]."""
    draws: Annotated[int, arg(metavar="INT")] = 64
    """Random networks whose spread is the band [networks]."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    manual_dir: Folder = None
    """Original files of the data set, as an alternative to downloading [folder]."""
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """The network, its data and batch size; what concerns training alone has no effect here."""
    hypers: OmitArgPrefixes[Hypers] = DEFAULTS.hypers[0]
    """Of these, σ_w and σ_b matter."""

    def run(self) -> None:
        """Predict, print and draw."""
        from vgjax import analysis, figures
        from vgjax.checks import check_names
        from vgjax.data import load
        from vgjax.show import print_prediction

        if not 2 <= self.draws <= MOST_DRAWS:
            raise ValueError(f"draws {self.draws} is not allowed; allowed: whole numbers from 2 to {MOST_DRAWS}")
        check_hypers(self.hypers)
        check_names(self.config)
        dataset = load(self.config.dataset, self.data_dir, self.manual_dir)
        predicted = analysis.prediction(self.config, self.hypers, dataset, self.draws)
        infinite = analysis.infinite_width(self.config, self.hypers, dataset)
        print_prediction(analysis.band(predicted), infinite)
        print(f"figure      {figures.write_signal(self.out, {'': analysis.band(predicted)}, analysis.SIGNALS)}")


@dataclass(frozen=True)
class Show:
    """Print the network layer by layer: shapes, parameter counts, σ_w² of the initializer."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    features: Count = None
    """Width of the input; default: the data set's [features]."""
    classes: Count = None
    """Number of logits; default: the data set's [classes]."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    config: OmitArgPrefixes[Config] = DEFAULTS.config
    """The network; what concerns training alone has no effect here."""

    def run(self) -> None:
        """Print the table."""
        from vgjax.checks import check_names
        from vgjax.model import describe
        from vgjax.show import print_network

        for name in ("features", "classes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} is not allowed; allowed: whole numbers from 1")
        check_names(self.config)
        features, classes = self.features, self.classes
        if not (features and classes):
            own = _sizes(self.config.dataset, self.data_dir)
            features, classes = features or own[0], classes or own[1]
        print_network(describe(self.config, features, classes), features)


@dataclass(frozen=True)
class Diagnose:
    """Say what is wrong with a run's network, with evidence, cause and what to try; and write diagnosis.json to it."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run, finished or not."""
    json: FlagCreatePairsOff[bool] = False
    """Print the findings as JSON."""
    fail_on: Literal["serious", "warning", "never"] = "never"
    """End with status 1 where there is a finding as serious as this, or more."""
    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""

    def run(self) -> None:
        """Diagnose, print and write."""
        from vgjax.diagnosis import SEVERITIES, diagnose, write
        from vgjax.history import load
        from vgjax.show import print_diagnosis

        diagnosis = diagnose(load(self.folder), data_dir=self.data_dir)
        path = write(diagnosis, self.folder)
        if self.json:
            print(diagnosis.as_json(), end="")
        else:
            print_diagnosis(diagnosis, path)
        severe = {"serious": SEVERITIES[:1], "warning": SEVERITIES, "never": ()}[self.fail_on]
        if any(finding.severity in severe for finding in diagnosis.findings):
            raise SystemExit(FAILED)


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
        from vgjax.reruns import rerun
        from vgjax.show import ProgressBar, print_rerun

        where = {"data_dir": self.data_dir, "manual_dir": self.manual_dir}
        with ProgressBar() as bar:
            again = rerun(self.result, self.out, progress=bar.update, **where)
        print_rerun(again)
        if again.differences:
            raise SystemExit(FAILED)


@dataclass(frozen=True)
class Prepare:
    """Download or read a data set, and keep it as plain arrays."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A name from `vgjax list datasets`, any TFDS image classification set, or a folder of IDX files."""
    data_dir: Folder = None
    """Where to keep it; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""
    manual_dir: Folder = None
    """Original files, as an alternative to downloading [folder]."""

    def run(self) -> None:
        """Prepare, and say what it is."""
        from vgjax.data import prepare

        made = prepare(self.name, self.data_dir, self.manual_dir)
        shape = "×".join(map(str, made.shape))
        counts = f"{len(made.train_labels)} training and {len(made.test_labels)} test examples"
        print(f"{made.name}: {counts} of {shape}, {made.classes} classes ({made.source})")


@dataclass(frozen=True)
class Ready:
    """List the data sets: which are ready, and where."""

    data_dir: Folder = None
    """Where prepared data lie; default: VGJAX_DATA_DIR, TFDS_DATA_DIR or the user's cache [folder]."""

    def run(self) -> None:
        """Print the table."""
        from vgjax.data import ready
        from vgjax.show import print_data

        print_data(ready(self.data_dir))


@dataclass(frozen=True)
class Data:
    """Prepare data sets, or list them."""

    what: OmitSubcommandPrefixes[Annotated[Prepare, subcommand("prepare")] | Annotated[Ready, subcommand("list")]]

    def run(self) -> None:
        """Do what is asked."""
        self.what.run()


@dataclass(frozen=True)
class Clinic:
    """Examine an initializer, or an activation, of your own: whom it resembles, and what it does to signals."""

    initializer: Annotated[Positional[str], arg(metavar="INITIALIZER")] = ""
    """module:function or a name from `vgjax list initializers`; none: each --activation is examined."""
    activation: Annotated[tuple[str, ...], arg(metavar="NAME …")] = ()
    """Activations to examine it with, besides tanh, relu and sigmoid; or to be examined themselves [names]."""
    out: Folder = None
    """Folder of the page and its numbers, with a folder each where several are examined; default: clinic/NAME."""

    def run(self) -> None:
        """Examine, write the page and print its table."""
        if not (self.initializer or self.activation):
            raise ValueError("nothing to examine; allowed: an INITIALIZER, or --activation NAME")
        _cores_are_devices()
        from vgjax.clinic import ACTIVATIONS, examine_activation, examine_initializer, write
        from vgjax.show import print_report, working

        with working() as note:
            if self.initializer:
                activations = tuple(dict.fromkeys((*ACTIVATIONS, *self.activation)))
                reports = [examine_initializer(self.initializer, activations, note)]
            else:
                reports = [examine_activation(name, note) for name in self.activation]
        for report in reports:
            name = _plain(report.name)
            folder = self.out or Path("clinic", name)
            page = write(report, folder / name if self.out and len(reports) > 1 else folder)
            print_report(report, page)


Topic = Literal["initializers", "activations", "optimizers", "schedules", "clips", "cadences", "families", "datasets"]


@dataclass(frozen=True)
class List:
    """List what can be named, each with one line and its source."""

    topics: Annotated[Positional[tuple[Topic, ...]], arg(metavar="TOPIC …")] = ()
    """Any of initializers, activations, optimizers, schedules, clips, cadences, families, datasets; none: all."""

    def run(self) -> None:
        """Print the tables."""
        from vgjax.show import TOPICS, print_names

        print_names(self.topics or tuple(TOPICS))


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


def _cores_are_devices() -> None:
    """A small lane cannot keep several cores busy, so each core takes lanes of its own."""
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))


def _new_folder(config: Config) -> Path:
    names = [_plain(text_of(named)) for named in (config.dataset, config.activation, config.initializer)]
    return Path("runs", "-".join([*names, time.strftime("%Y%m%d-%H%M%S")]))


def _plain(name: str) -> str:
    """A name that can be a folder's."""
    return re.sub(r"[^\w.=]+", "_", name).strip("_.")


def _sizes(dataset: Any, data_dir: Path | None) -> tuple[int, int]:
    from vgjax.data import DATASETS, DataUnavailable, load

    if row := DATASETS.get(str(dataset)):
        return row.features, row.classes
    try:
        found = load(dataset, data_dir)
    except DataUnavailable:
        raise ValueError(f"data set {dataset!r} is not at hand; say --features and --classes") from None
    return found.train_inputs.shape[1], found.classes
