"""`vgjax data`: prepare data sets and list those that are ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from vgjax.command.options import Folder


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
        from vgjax.data.catalogue import prepare

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
        from vgjax.command.printing import print_data
        from vgjax.data.catalogue import ready

        print_data(ready(self.data_dir))


@dataclass(frozen=True)
class Data:
    """Prepare data sets, or list them."""

    what: OmitSubcommandPrefixes[Annotated[Prepare, subcommand("prepare")] | Annotated[Ready, subcommand("list")]]

    def run(self) -> None:
        """Do what is asked."""
        self.what.run()
