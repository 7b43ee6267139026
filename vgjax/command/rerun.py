"""`vgjax rerun`: make a result again and compare every number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from vgjax.command.options import FAILED, DataDir, Folder, ManualDir

if TYPE_CHECKING:
    from vgjax.sweeps.reruns import RerunResult


@dataclass(frozen=True)
class Rerun:
    """Make a run or a sweep again, from the settings and seeds in its result, and compare every number.

    It also lists which versions, machine, data or number of devices have changed. It ends with status 1 if a number is
    not the same to the last bit.
    """

    result: Annotated[Positional[Path], arg(metavar="RESULT")]
    """Folder of a finished run or sweep, or its history.nc."""
    out: Folder = None
    """Keep the new result in this folder; default: it is not kept [folder]."""
    data_dir: DataDir = None
    manual_dir: ManualDir = None

    def run(self) -> None:
        """Run again, compare and print the differences."""
        from vgjax.command.progress import ProgressBar
        from vgjax.sweeps.reruns import rerun

        folders = {"data_dir": self.data_dir, "manual_dir": self.manual_dir}
        with ProgressBar() as bar:
            comparison = rerun(self.result, self.out, progress=bar.update, **folders)
        print_comparison(comparison)
        if comparison.differences:
            raise SystemExit(FAILED)


def print_comparison(comparison: RerunResult) -> None:
    """Print which variables differ, if any, and what has changed: versions, machine, data, number of devices."""
    from vgjax.command.printing import print_table

    lanes, n = comparison.history.sizes["lane"], len(comparison.history.variables)
    if not comparison.differences:
        print(f"the same to the last bit: {n} variables of {lanes} lane{'s' if lanes > 1 else ''}")
    else:
        rows = [
            (name, f"{one.share:.3g}", "" if math.isnan(one.largest) else f"{one.largest:.3g}")
            for name, one in comparison.differences.items()
        ]
        columns = ("variable", "share of numbers", "largest relative difference")
        print_table(f"{len(rows)} of {n} variables differ", columns, rows, columns[1:])
    if comparison.changed:
        changes = [(name, *there_and_here) for name, there_and_here in comparison.changed.items()]
        print_table("made with", ("what", "there", "here"), changes)
