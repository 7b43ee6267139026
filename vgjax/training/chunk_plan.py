"""How a run is cut into chunks: a chunk is what the devices do between two exchanges with the host.

A chunk is one epoch, or several if epochs are short: every chunk costs the host some milliseconds, and every lane one
copy of its state.
"""

from __future__ import annotations

import bisect
import itertools
from typing import NamedTuple

from vgjax.config import LARGEST, Config
from vgjax.data import batches
from vgjax.data.dataset import Dataset
from vgjax.names import attempt, text_of
from vgjax.statistics.cadence import steps_of

MOST_EPOCHS = 10_000_000
# Limits of a chunk of several epochs, so that one lane takes less than about 0.02 seconds of one core:
STEPS_AT_ONCE = 64
PRODUCTS_AT_ONCE = 2e8


class Chunk(NamedTuple):
    """One or more epochs; the last epoch of a run may be cut short."""

    start: int  # the first step
    stops: tuple[int, ...]  # for each epoch, the step after its last
    recorded: tuple[int, ...]  # the instrumented steps
    validates: tuple[bool, ...]  # for each epoch, whether it ends with a validation

    @property
    def stop(self) -> int:
        """The step after the last."""
        return self.stops[-1]


class Shape(NamedTuple):
    """The sizes that the cost of one lane depends on."""

    config: Config
    products: int  # Σ fan_in · fan_out over all weight matrices
    units: int  # Σ widths of all layers and the input
    widest: int
    n_validation: int
    steps: int
    steps_per_epoch: int


def shape(config: Config, dataset: Dataset) -> Shape:
    """The sizes of a config on its data set."""
    widths = (dataset.train_inputs.shape[1], *config.hidden, dataset.classes)
    products = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths))
    per_epoch = batches.steps_per_epoch(config, len(dataset.train_labels) - config.holdout)
    n_validation = config.holdout or len(dataset.test_labels)
    steps = config.steps or config.epochs * per_epoch
    return Shape(config, products, sum(widths), max(widths), n_validation, steps, per_epoch)


def epochs_at_once(one: Shape) -> int:
    """The largest number of epochs in a chunk; it does not depend on the run's length, its lanes or the machine."""
    examples = 3 * one.config.batch_size // one.config.replicas * one.steps_per_epoch + one.n_validation
    return max(1, min(STEPS_AT_ONCE // one.steps_per_epoch, int(PRODUCTS_AT_ONCE / (examples * one.products))))


def plan(config: Config, steps_per_epoch: int, total_steps: int, epochs: int = 1) -> list[Chunk]:
    """Cut a run into chunks, and choose the instrumented steps.

    Args:
      config: its cadence and `validate`.
      steps_per_epoch, total_steps: of the run.
      epochs: in a chunk.

    Raises:
      ValueError: the cadence names no step of the run, or a step outside it, or fails; or the run has more steps than
        an int32 can count.
    """
    if total_steps > LARGEST or total_steps > MOST_EPOCHS * steps_per_epoch:
        allowed = f"at most {LARGEST} steps, in {MOST_EPOCHS} epochs"
        raise ValueError(f"steps {total_steps} of {steps_per_epoch} an epoch are not allowed; allowed: {allowed}")
    recorded = attempt("cadence", config.cadence, lambda: steps_of(config.cadence, steps_per_epoch, total_steps))
    if not recorded or not 0 <= recorded[0] <= recorded[-1] < total_steps:
        what = "names steps outside" if recorded else "names no step of"
        raise ValueError(f"cadence {text_of(config.cadence)!r} {what} this run; allowed: 0 to {total_steps - 1}")

    def chunk(start: int) -> Chunk:
        ends = range(start + steps_per_epoch, start + (epochs + 1) * steps_per_epoch, steps_per_epoch)
        stops = tuple(sorted({min(end, total_steps) for end in ends}))
        first, after = (bisect.bisect_left(recorded, step) for step in (start, stops[-1]))
        validates = tuple(config.validate == "every_epoch" or stop == total_steps for stop in stops)
        return Chunk(start, stops, tuple(recorded[first:after]), validates)

    return [chunk(start) for start in range(0, total_steps, epochs * steps_per_epoch)]


def most_records(chunks: list[Chunk], epochs: int) -> int:
    """The number of records that the program of a run has room for, in every chunk.

    It is one for each epoch of a chunk and one for the run's last step, or more where a chunk needs more: so runs with
    few records share a program.

    Args:
      chunks: of the run.
      epochs: the largest number of epochs in a chunk.
    """
    return max(epochs + 1, *(len(chunk.recorded) for chunk in chunks))
