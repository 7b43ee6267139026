"""`python -m experiments [NAME …]`: run the reproductions, judge their rows, and write one page."""

from __future__ import annotations

import importlib
import os
import sys
import time

import tyro
from rich.console import Console
from rich.table import Table

from experiments.options import Options
from vgjax.names import nearest

SIZE_FLAGS = {"smoke": ["--smoke"], "full": ["--full"], "default": []}
EXPERIMENTS = (
    "mxnet_mnist",
    "keras_notebook",
    "glorot_histograms",
    "schoenholz_gradients",
    "poole_maps",
    "yang_batch_norm",
    "hanin_widths",
    "pennington_spectrum",
    "selu_fixed_point",
    "balduzzi_shattering",
    "lu_dying_relu",
    "hayou_edge_of_chaos",
    "tailored_relu",
)


def main() -> int:
    """Run the experiments that were asked for.

    Returns:
      Exit status: 0 when they ran, whatever the verdicts; 2 for bad input; 130 when interrupted.
    """
    options = tyro.cli(Options, prog="python -m experiments")
    try:
        return _reproduce(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume (make reproduce ARGS=--resume) and the same options", file=sys.stderr)
        return 130


def _reproduce(options: Options) -> int:
    names = options.names or EXPERIMENTS
    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"unknown experiment {name!r}; {nearest(name, EXPERIMENTS)}")
    prepare_jax(options.smoke)
    from experiments.reproduction import outcome_of, write_json
    from vgjax.environment import environment
    from vgjax.figures import save_figure
    from vgjax.report import write_page

    started = time.monotonic()
    console = Console(stderr=True)
    outcomes, seconds = [], {}
    for name in names:
        experiment_started = time.monotonic()
        console.print(f"{name} …", highlight=False)
        outcomes.append(outcome_of(importlib.import_module(f"experiments.{name}"), options))
        seconds[name] = round(time.monotonic() - experiment_started, 1)
        console.print(f"{name}: {seconds[name]:.0f} s", highlight=False)
    provenance = environment() | {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_each": seconds,
        "command": " ".join(["python -m experiments", *options.names, *SIZE_FLAGS[options.size]]),
        "size": options.size,
        "resumed": options.resume,
    }
    folder = options.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        for picture in outcome.pictures:
            save_figure(picture.figure, folder / picture.name, picture.table)
    rows = [row for outcome in outcomes for row in outcome.rows]
    write_json(options.out / "reproduction.json", rows, provenance)
    page = write_page(options.out / "report.html", outcomes, folder, provenance)
    for note in {note for outcome in outcomes for note in outcome.notes}:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    _print_table(rows)
    print(f"page: {page}\ncurves: {sys.executable} -m tensorboard.main --logdir {options.out / 'runs'}")
    return 0


def prepare_jax(smoke: bool) -> None:
    """Set the environment variables that JAX reads when it is imported."""
    import joblib

    # One device for each core, so that lanes run side by side: one small layer cannot keep several cores busy.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(joblib.cpu_count()))
    flags = os.environ.get("XLA_FLAGS", "")
    if smoke and "xla_backend_optimization_level" not in flags:  # they run for milliseconds
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()


def _print_table(rows: list) -> None:
    from vgjax.report import format_number

    table = Table("experiment", "quantity", "published", "predicted", "measured", "95 % interval", "n", "tolerance", "")
    for row in rows:
        low, high = row.interval
        numbers = [format_number(x) for x in (row.published, row.predicted, row.measured)]
        interval = f"{format_number(low)} … {format_number(high)}" if format_number(low) else ""
        table.add_row(row.experiment, row.quantity, *numbers, interval, str(row.n_seeds), row.tolerance, row.verdict)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
