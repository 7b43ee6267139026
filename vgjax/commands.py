"""The other subcommands of `vgjax`: what theory, a data set, an initializer or a run's result has to say.

Rooms that need JAX are imported by the command that needs them, so that `--help` does not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from vgjax.config import Config, Hypers, check_hypers
from vgjax.options import DEFAULTS, FAILED, Count, File, Folder, cores_are_devices, plain_name

MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Predict:
    """Say, without training, how the signal ought to fare at step 0: mean-field theory, layer by layer, with a band."""

    config_file: File = None
    """YAML or TOML with any of the fields below, or the config.yaml of a run; options overrule it [file]."""
    out: Annotated[Path, arg(metavar="NAME")] = Path("prediction")
    """Where NAME.png, NAME.svg and NAME.csv go, and NAME.json, which says how they were made [file without suffix]."""
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
        from vgjax.environment import environment
        from vgjax.files import whole
        from vgjax.report import as_json
        from vgjax.settings import as_plain
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
        with whole(Path(f"{self.out}.json")) as temporary:
            made = as_plain(self.config, [self.hypers], [0], dataset.source) | {"draws": self.draws}
            temporary.write_text(as_json(made | {"environment": environment()}, indent=1) + "\n", encoding="utf-8")


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
    """Folder of the page and its numbers, with a folder each where several are examined; default: clinic/NAME."""

    def run(self) -> None:
        """Examine, write the page and print its table."""
        if not (self.initializer or self.activation):
            raise ValueError("nothing to examine; allowed: an INITIALIZER, or --activation NAME")
        cores_are_devices()
        from vgjax.clinic import ACTIVATIONS, examine_activation, examine_initializer, write
        from vgjax.progress import working
        from vgjax.show import print_report

        with working() as note:
            if self.initializer:
                activations = tuple(dict.fromkeys((*ACTIVATIONS, *self.activation)))
                reports = [examine_initializer(self.initializer, activations, note)]
            else:
                reports = [examine_activation(name, note) for name in self.activation]
        for report in reports:
            name = plain_name(report.name)
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


def _sizes(dataset: Any, data_dir: Path | None) -> tuple[int, int]:
    from vgjax.data import DATASETS, DataUnavailable, load

    if row := DATASETS.get(str(dataset)):
        return row.features, row.classes
    try:
        found = load(dataset, data_dir)
    except DataUnavailable:
        raise ValueError(f"data set {dataset!r} is not at hand; say --features and --classes") from None
    return found.train_inputs.shape[1], found.classes
