"""A sweep in a process of its own, to be killed: `python sweep_run.py FOLDER`; every chunk takes a little while."""

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


def main(folder: str) -> None:
    vgjax.folder.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    print("begun", flush=True)
    sweep(
        GRID, folder=folder, dataset=small.dataset(), lanes=LANES, devices=1, progress=lambda standing: time.sleep(0.1)
    )


if __name__ == "__main__":
    main(sys.argv[1])
