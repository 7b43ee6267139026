"""A run in a process of its own, to be killed; slow enough to be caught half-way."""

import time

import small
from engine import SETTINGS, changed

import vgjax.training.folder
from vgjax import run
from vgjax.training import chunk_plan

CONFIG = changed(epochs=6, norm="batch", norm_at="post_activation", optimizer="adam", schedule="cosine")
SEEDS = 2


def main(folder: str) -> None:
    vgjax.training.folder.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    chunk_plan.STEPS_AT_ONCE = 1  # a chunk an epoch

    def dawdle(part, total):
        print(int(part["evaluated_at"].values[0]), flush=True)
        time.sleep(0.7)

    run(CONFIG, SETTINGS, SEEDS, dataset=small.dataset(), folder=folder, tensorboard="none", devices=1, progress=dawdle)
