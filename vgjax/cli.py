"""The command `vgjax`: one class a subcommand. Results go to stdout, progress and errors to stderr.

Rooms that need JAX are imported by the command that needs them, so that `--help` does not wait for it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, arg, subcommand

from vgjax.config import Config, Hypers, check_hypers
from vgjax.names import text_of
from vgjax.settings import Settings, in_one_line, parse_seeds, read_settings, seeds_as_words

FAILED = 1
BAD_INPUT = 2
STOPPED = 130
DEFAULTS = Settings()
DESCRIPTION = "See how the gradient signal fares, layer by layer: measured, predicted by theory, and explained."

Folder = Annotated[Path | None, arg(metavar="DIR")]
File = Annotated[Path | None, arg(metavar="FILE")]
Count = Annotated[int | None, arg(metavar="INT")]


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
    """How many devices to use; default: all [devices]."""
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
        from vgjax import analysis, figures
        from vgjax.checks import check_names
        from vgjax.data import load
        from vgjax.loop import run
        from vgjax.show import ProgressBar, print_run, print_signals
        from vgjax.stopping import stop_after_chunk

        for setting in settings:
            check_hypers(setting)
        check_names(self.config)
        dataset = load(self.config.dataset, self.data_dir, self.manual_dir)
        folder = self.out or _new_folder(self.config)
        how = {name: getattr(self, name) for name in ("resume", "tensorboard", "shard", "devices")}
        try:
            with ProgressBar() as bar, stop_after_chunk() as check:

                def landed(part: Any, total_steps: int) -> None:
                    bar.update(part, total_steps)
                    check()

                result = run(self.config, settings, seeds, dataset=dataset, folder=folder, progress=landed, **how)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._advice(folder)) from None
        print_run(result.history, folder, self.tensorboard != "none")
        if analysis.root_mean_squares(result.history):
            print_signals(signals := analysis.signals(result.history, dataset))
            print(f"figure      {figures.write_signal(folder / 'signal', signals, analysis.SIGNALS)}")

    def _advice(self, folder: Path) -> str:
        """How to go on after an interruption: what the folder does not know is to be said again."""
        if not (folder / "config.yaml").exists():
            return "stopped; nothing was written"
        again = ["vgjax", "train", "--resume", "--out", str(folder)]
        for name in ("tensorboard", "data_dir", "manual_dir", "shard", "devices"):
            if (value := getattr(self, name)) != getattr(Train, name):
                again += [f"--{name.replace('_', '-')}", str(value)]
        return f"stopped; go on with: {shlex.join(again)}"


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

        if self.draws < 2:
            raise ValueError(f"draws {self.draws} is not allowed; allowed: whole numbers from 2")
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
    """Folder of the page and its numbers; default: clinic/NAME [folder]."""

    def run(self) -> None:
        """Examine, write the page and print its table."""
        if not (self.initializer or self.activation):
            raise ValueError("nothing to examine; allowed: an INITIALIZER, or --activation NAME")
        if "jax" not in sys.modules:  # small lanes cannot keep several cores busy, so each core is a device
            os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))
        from vgjax.clinic import ACTIVATIONS, examine_activation, examine_initializer, write
        from vgjax.show import print_report, working

        with working() as note:
            if self.initializer:
                activations = tuple(dict.fromkeys((*ACTIVATIONS, *self.activation)))
                reports = [examine_initializer(self.initializer, activations, note)]
            else:
                reports = [examine_activation(name, note) for name in self.activation]
        for report in reports:
            page = write(report, self.out or Path("clinic", _plain(report.name)))
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is 0, 2 for bad input (said in one line) or 130 when it was interrupted.

    And 1, where `diagnose` was to fail on a finding and there is one.

    Args:
      argv: the arguments; None: the process's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without σ and × shows question marks
    try:
        parse(list(sys.argv[1:] if argv is None else argv)).run()
        sys.stdout.flush()
        return 0
    except SystemExit as done:  # tyro has printed --help, or there is a finding
        return int(done.code or 0)
    except KeyboardInterrupt as stop:
        return _say(next(iter(stop.args), "stopped"), STOPPED)
    except BrokenPipeError:  # `vgjax list | head`: what is left to print has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(f"vgjax: {error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
    except ValueError as error:
        return _say(f"vgjax: {error}", BAD_INPUT)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Out of memory" not in str(error):
            raise
        return _say("vgjax: too large for this machine; allowed: a smaller network, batch or number of lanes", FAILED)


def _say(message: str, status: int) -> int:
    print(" ".join(message.splitlines()), file=sys.stderr)
    return status


def parse(argv: list[str]) -> Any:
    """The command of that line, config file included.

    Raises:
      ValueError: an option, a value or the config file is not allowed.
      SystemExit: help was asked for and printed.
    """
    file = _config_file(argv)
    found = read_settings(file) if file else DEFAULTS
    seeds = seeds_as_words(found.seeds)
    commands: Any = Union[  # noqa: UP007  (values, not a type)
        Annotated[Train, subcommand("train", default=Train(config=found.config, hypers=found.hypers[0], seeds=seeds))],
        Annotated[Predict, subcommand("predict", default=Predict(config=found.config, hypers=found.hypers[0]))],
        Annotated[Show, subcommand("show", default=Show(config=found.config))],
        Annotated[Diagnose, subcommand("diagnose")],
        Annotated[Data, subcommand("data")],
        Annotated[Clinic, subcommand("clinic")],
        Annotated[List, subcommand("list")],
    ]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(commands, args=argv, prog="vgjax", description=DESCRIPTION)
    except SystemExit as done:
        if done.code:
            raise ValueError(in_one_line(complaint.getvalue())) from None
        raise
    if isinstance(command, Train):
        given = {word.partition("=")[0].strip("-").replace("-", "_") for word in argv if word.startswith("--")}
        new = {name: value for name, value in command.hypers._asdict().items() if name in given}
        command = replace(command, settings=tuple(setting._replace(**new) for setting in found.hypers))
    return command


def _config_file(argv: list[str]) -> Path | None:
    """The file that gives the options their defaults, needed before tyro parses: --config-file, or the run's own."""
    if argv[:1] not in (["train"], ["predict"], ["show"]):
        return None
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--config-file", "--config_file", nargs="?", type=Path)
    scan.add_argument("--out", nargs="?", type=Path)
    scan.add_argument("--resume", action="store_true")
    known, _ = scan.parse_known_args(argv)
    if known.resume and known.out and not known.config_file and (known.out / "config.yaml").is_file():
        return known.out / "config.yaml"
    return known.config_file


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
