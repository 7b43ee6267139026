"""`python -m experiments [NAME …]`: run reproductions, judge them, and write one page."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

SIZES = {"smoke": ["--smoke"], "full": ["--full"], "default": []}
EXPERIMENTS = ("mxnet_mnist", "keras_notebook")


@dataclass(frozen=True)
class Arguments:
    """Reproduce the documents and papers, each quantity with its published value, prediction, interval and verdict."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which experiments; none: all of them."""
    out: Path = Path("reproduction")
    """Where results go [folder]."""
    smoke: bool = False
    """Every step of every experiment in seconds: tests the code, reproduces nothing."""
    full: bool = False
    """Training from 8 seeds instead of 3."""
    resume: bool = False
    """Go on with an interrupted reproduction; otherwise earlier runs of the same experiments in --out are replaced."""
    data_dir: Path | None = None
    """Where prepared data are kept [folder]."""
    manual_dir: Path | None = None
    """Original files of the data sets, a folder each [folder]."""


def main() -> int:
    """Run what was asked for; 0 when it is done, whatever the verdicts; 2 on bad input."""
    arguments = tyro.cli(Arguments, prog="python -m experiments")
    names = arguments.names or EXPERIMENTS
    try:
        return _reproduce(names, arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume (make reproduce ARGS=--resume) and the same options", file=sys.stderr)
        return 130


def _reproduce(names: tuple[str, ...], arguments: Arguments) -> int:
    from vgjax.names import nearest

    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"unknown experiment {name!r}; {nearest(name, EXPERIMENTS)}")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))  # a core for every other lane: small layers
    from experiments.reproduction import Options, write_json  # cannot keep several cores busy
    from vgjax.environment import environment
    from vgjax.figures import save
    from vgjax.report import write_page

    started = time.monotonic()
    size = "smoke" if arguments.smoke else "full" if arguments.full else "default"
    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)}
    options = Options(**fields)
    console = Console(stderr=True)
    outcomes, seconds = [], {}
    for name in names:
        begun = time.monotonic()
        console.print(f"{name} …", highlight=False)
        outcomes.append(importlib.import_module(f"experiments.{name}").run(options))
        seconds[name] = round(time.monotonic() - begun, 1)
        console.print(f"{name}: {seconds[name]:.0f} s", highlight=False)
    made = environment() | {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_each": seconds,
        "command": " ".join(["python -m experiments", *arguments.names, *SIZES[size]]),
        "size": size,
        "resumed": arguments.resume,
    }
    folder = arguments.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        for picture in outcome.pictures:
            save(picture.figure, folder / picture.name)
            picture.table.to_csv(folder / f"{picture.name}.csv", index=False)
    rows = [row for outcome in outcomes for row in outcome.rows]
    write_json(arguments.out / "reproduction.json", rows, made)
    page = write_page(arguments.out / "report.html", outcomes, folder, made)
    for note in {note for outcome in outcomes for note in outcome.notes}:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    _print_table(rows)
    print(f"page: {page}\ncurves: {sys.executable} -m tensorboard.main --logdir {arguments.out / 'runs'}")
    return 0


def _print_table(rows: list) -> None:
    from vgjax.report import number

    table = Table("experiment", "quantity", "published", "predicted", "measured", "95 % interval", "n", "tolerance", "")
    for row in rows:
        low, high = row.interval
        numbers = [number(x) for x in (row.published, row.predicted, row.measured)]
        interval = f"{number(low)} … {number(high)}" if number(low) else ""
        table.add_row(row.experiment, row.quantity, *numbers, interval, str(row.n_seeds), row.tolerance, row.verdict)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
