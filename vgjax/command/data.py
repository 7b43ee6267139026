"""`vgjax data`: prepare data sets, and list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from vgjax.command.options import DataDir, ManualDir


@dataclass(frozen=True)
class Prepare:
    """Download or read a data set, and store it as plain arrays."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A name from `vgjax list datasets`, any TFDS image classification set, or a folder of IDX files."""
    data_dir: DataDir = None
    manual_dir: ManualDir = None

    def run(self) -> None:
        """Prepare, and print what the data set holds."""
        from vgjax.data.catalogue import prepare

        made = prepare(self.name, self.data_dir, self.manual_dir)
        shape = "×".join(map(str, made.shape))
        counts = f"{len(made.train_labels)} training and {len(made.test_labels)} test examples"
        print(f"{made.name}: {counts} of {shape}, {made.classes} classes ({made.source})")


@dataclass(frozen=True)
class Listing:
    """List the data sets, and which of them are prepared, and where."""

    data_dir: DataDir = None

    def run(self) -> None:
        """Print the table."""
        from vgjax.command.printing import print_table
        from vgjax.data.catalogue import ready

        columns = ("name", "ready", "train", "test", "shape", "classes", "where", "source")
        cells = []
        for row in ready(self.data_dir):
            shape = None if row["shape"] is None else "×".join(map(str, row["shape"]))
            shown = row | {"ready": "yes" if row["ready"] else "no", "shape": shape}
            cells.append([shown[column] for column in columns])
        print_table("data sets", columns, cells, ("train", "test", "shape", "classes"))


@dataclass(frozen=True)
class Data:
    """Prepare data sets, or list them."""

    action: OmitSubcommandPrefixes[Annotated[Prepare, subcommand("prepare")] | Annotated[Listing, subcommand("list")]]

    def run(self) -> None:
        """Run `prepare` or `list`."""
        self.action.run()
