"""`vgjax rerun`: make a result again and compare every number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vgjax.command.options import FAILED, Folder


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
        from vgjax.command.printing import print_rerun
        from vgjax.command.progress import ProgressBar
        from vgjax.sweeps.reruns import rerun

        where = {"data_dir": self.data_dir, "manual_dir": self.manual_dir}
        with ProgressBar() as bar:
            again = rerun(self.result, self.out, progress=bar.update, **where)
        print_rerun(again)
        if again.differences:
            raise SystemExit(FAILED)
