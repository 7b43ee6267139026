"""`vgjax list`: what can be named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

Topic = Literal["initializers", "activations", "optimizers", "schedules", "clips", "cadences", "families", "datasets"]


@dataclass(frozen=True)
class List:
    """List what can be named, each with one line and its source."""

    topics: Annotated[Positional[tuple[Topic, ...]], arg(metavar="TOPIC …")] = ()
    """Any of initializers, activations, optimizers, schedules, clips, cadences, families, datasets; none: all."""

    def run(self) -> None:
        """Print the tables."""
        from vgjax.command.printing import TOPICS, print_names

        print_names(self.topics or tuple(TOPICS))
