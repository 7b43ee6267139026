"""How often `vgjax diagnose` is right: runs with a fault built in, and healthy ones, each labelled by construction.

Claim: among the runs that the rules were not built on, at least 95 % have their label as the first finding, and at most
2 % of the healthy runs have any finding at all.

Command: `python -m experiments.calibration` (about 5 minutes on 2 cores; `--half building` or `--half trial` alone).

A *bench* is one network on one data set; its lanes are the runs. The label of a run follows from how it was set up
(`experiments/benches.py`), whatever came of its training. The bounds of the rules were chosen on the benches with an
even number. The benches with an odd number were written before the rules were frozen, and first run afterwards.

A healthy run is right if it has no finding, not even a warning; any other run is right if its label is the first
finding.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff

from experiments.__main__ import prepare_jax
from experiments.benches import BENCHES, LABELS

RESULTS = Path(__file__).parent / "results" / "calibration.json"
HALVES = ("building", "trial")
SHOWN = ("dataset", "scaling", "hidden", "activation", "initializer", "norm", "branch", "optimizer", "clip", "epochs")


def diagnose_bench(i: int, smoke: bool = False) -> list[dict[str, Any]]:
    """Run a bench and diagnose each lane alone: a row with its label, what was found, and the numbers."""
    from vgjax.data.catalogue import load
    from vgjax.diagnosis.rules import diagnose
    from vgjax.training.loop import run

    bench, rows = BENCHES[i], []
    config = replace(bench.config, steps=2) if smoke else bench.config
    data = load(config.dataset)
    history = run(config, [hypers for _, hypers in bench.lanes], [i], dataset=data, devices=1).history
    losses = history["train_loss"].values[:, [0, -1]]
    for lane, (label, hypers) in enumerate(bench.lanes):
        diagnosis = diagnose(history.isel(lane=[lane]), data)
        first = json.loads(diagnosis.as_json())["findings"][:1]
        found = first[0]["rule"] if first else "healthy"
        rows.append(
            {
                "bench": i,
                "half": HALVES[i % 2],
                "network": {name: getattr(config, name) for name in SHOWN},
                "hypers": hypers._asdict(),
                "label": label,
                "found": found,
                "right": found == label,
                "finding": first[0] if first else None,
                "also_found": [one.rule for one in diagnosis.findings[1:]],
                "train_loss": [x if math.isfinite(x) else None for x in losses[lane].tolist()],
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one half: number of runs, share right, share of false alarms, and the confusion matrix."""
    healthy = [row for row in rows if row["label"] == "healthy"]
    confusion: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = confusion.setdefault(row["label"], {})
        counts[row["found"]] = counts.get(row["found"], 0) + 1
    return {
        "runs": len(rows),
        "right": sum(row["right"] for row in rows) / max(len(rows), 1),
        "healthy": len(healthy),
        "false_alarms": sum(not row["right"] for row in healthy) / max(len(healthy), 1),
        "confusion": {label: confusion[label] for label in LABELS if label in confusion},
    }


@dataclass(frozen=True)
class Options:
    """Calibrate the diagnosis on runs with a fault built in and on healthy ones."""

    half: Literal["both", "building", "trial"] = "both"
    """Which benches to run: those that the rules were built on, the others, or both."""
    smoke: FlagCreatePairsOff[bool] = False
    """Run two benches for two steps: this tests the code and calibrates nothing."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = RESULTS
    """Where the rows go [file]."""


def main() -> int:
    """Run the benches, print the confusion matrix, write the rows."""
    options = tyro.cli(Options, prog="python -m experiments.calibration")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # each process has one core
    prepare_jax(smoke=True)  # its programs run for milliseconds
    import joblib

    from vgjax.environment import environment

    started, halves = time.monotonic(), [half for half in HALVES if options.half in ("both", half)]
    benches = [i for i in range(len(BENCHES)) if HALVES[i % 2] in halves]
    if options.smoke:
        benches = benches[:2]
    rows = []
    with ProcessPoolExecutor(joblib.cpu_count(), multiprocessing.get_context("spawn")) as workers:
        for part in workers.map(diagnose_bench, benches, [options.smoke] * len(benches)):
            rows += part
            for row in (row for row in part if not row["right"]):
                print(f"bench {row['bench']}: {row['label']} → {row['found']}", file=sys.stderr)
    summaries = {half: summary([row for row in rows if row["half"] == half]) for half in halves}
    for half, one in summaries.items():
        _print_confusion(half, one)
    provenance = environment() | {"seconds": round(time.monotonic() - started, 1), "seeds": "the bench's number"}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(_json(row) for row in rows)
    options.out.write_text(
        f'{{"summary": {_json(summaries)},\n"environment": {_json(provenance)},\n"rows": [\n{lines}\n]}}\n'
    )
    print(f"rows: {options.out}")
    return 0


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _print_confusion(name: str, one: dict[str, Any]) -> None:
    found = sorted({rule for counts in one["confusion"].values() for rule in counts}, key=[*LABELS].index)
    right, alarms = 100 * one["right"], 100 * one["false_alarms"]
    print(f"{name}: {one['runs']} runs, {right:.1f} % right; {one['healthy']} healthy, false alarms {alarms:.1f} %")
    table = Table("label \\ found", *found)
    for label, counts in one["confusion"].items():
        table.add_row(label, *(str(counts.get(rule, "")) for rule in found))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
