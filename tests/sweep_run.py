"""A sweep in a process of its own: `python sweep_run.py FOLDER SECONDS SHARD`; every chunk takes so many more."""

import sys
import time

import small

import vgjax.folder
from vgjax.config import Config
from vgjax.grid import Grid
from vgjax.sweeps import sweep

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


def main(folder: str, seconds: float, shard: str) -> None:
    vgjax.folder.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    print("begun", flush=True)
    options = {"dataset": small.dataset(), "lanes": LANES, "shard": shard}
    sweep(GRID, folder=folder, progress=lambda standing: time.sleep(seconds), **options)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
