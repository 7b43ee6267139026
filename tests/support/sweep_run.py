"""A sweep in a process of its own; its arguments are FOLDER and SHARD."""

import sys

import small

from vgjax.config import Config
from vgjax.sweeps.grid import Grid
from vgjax.sweeps.sweep import sweep

GRID = Grid(
    product={"sigma_w2": [0.8, 1.2], "depth": [2, 13]},
    zip={"learning_rate": [0.1, 0.05], "clip_threshold": [0.1, 0.2]},
    config=Config(
        dataset="small",
        hidden=(8,),
        activation="tanh",
        initializer="mean_field",
        clip="global_norm",
        batch_size=16,
        epochs=3,
        record=("norms", "deltas", "decay", "gradient_histogram"),
    ),
    seeds=3,
)
LANES = 4


def main() -> None:
    """Train the sweep into a folder."""
    sweep(GRID, folder=sys.argv[1], dataset=small.dataset(), lanes=LANES, shard=sys.argv[2])
