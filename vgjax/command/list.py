"""`vgjax list`: the names that options and config files take."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

Topic = Literal["initializers", "activations", "optimizers", "schedules", "clips", "cadences", "families", "datasets"]

# Topic → (module, name of the table in it).
TOPICS = {
    "initializers": ("initializers", "INITIALIZERS"),
    "activations": ("activations", "ACTIVATIONS"),
    "optimizers": ("training.optim", "OPTIMIZERS"),
    "schedules": ("training.optim", "SCHEDULES"),
    "clips": ("training.optim", "CLIPS"),
    "cadences": ("statistics.cadence", "CADENCES"),
    "families": ("statistics.families", "FAMILIES"),
    "datasets": ("data.catalogue", "DATASETS"),
}


@dataclass(frozen=True)
class List:
    """List the names that options and config files take, each with one line and its source."""

    topics: Annotated[Positional[tuple[Topic, ...]], arg(metavar="TOPIC …")] = ()
    """Any of initializers, activations, optimizers, schedules, clips, cadences, families, datasets; none: all."""

    def run(self) -> None:
        """Print a table for each topic."""
        from vgjax.command.printing import print_table

        for i, topic in enumerate(self.topics or TOPICS):
            module, table = TOPICS[topic]
            entries = getattr(importlib.import_module(f"vgjax.{module}"), table)
            rows = [(name, e.summary, e.source) for name, e in entries.items()]
            print_table(f"\n{topic}" if i else topic, ("name", "what", "source"), rows)
