"""Run in a process of its own with JAX_NUM_CPU_DEVICES set: the same small runs, however many devices share them."""

import pickle

import jax
import numpy as np
import small
from engine import COMPILED, changed

from vgjax import Hypers, run
from vgjax.training import chunk_plan

CASES = {
    "lanes": (changed(), "lanes", 4),
    "lanes with batch norm, the last batch kept": (changed(norm="batch", last_batch="keep"), "lanes", 4),
    "batch": (changed(reduction="sum", replicas=2, clip="global_norm", record=("all",)), "batch", 1),
    "batch with batch norm, the last batch kept": (
        changed(norm="batch", last_batch="keep", record=("norms", "activations", "decay", "noise")),
        "batch",
        1,
    ),
}


def main(path: str, names: list[str]) -> None:
    found = {"devices": jax.local_device_count()}
    chunk_plan.STEPS_AT_ONCE = 1  # a chunk an epoch
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    for name in names:
        config, shard, seeds = CASES[name]
        compiled = []
        result = run(
            config,
            [Hypers(0.1), Hypers(0.05)],
            seeds,
            dataset=small.dataset(),
            shard=shard,
            progress=lambda part, total, compiled=compiled: compiled.append(len(COMPILED)),
        )
        found[name] = {
            "history": result.history.to_dict(),
            "variables": jax.tree.map(np.asarray, result.variables),
            "compiled": compiled,
        }
    with open(path, "wb") as file:
        pickle.dump(found, file)
