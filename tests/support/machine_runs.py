"""Run in each process of a job, or alone: the same small runs, however many processes share their devices."""

import pickle

import jax
import numpy as np
import small
from engine import SETTINGS, changed

from vgjax import run
from vgjax.training import chunk_plan, processes

LANES = changed(activation="relu", epochs=2)
BATCH = changed(reduction="sum", clip="global_norm", epochs=2)
ONE_EXPLODES = [SETTINGS[0], SETTINGS[0]._replace(learning_rate=1e30)]
CASES = {  # config, settings, seeds, shard
    "lanes": (LANES, ONE_EXPLODES, 2, "lanes"),
    "batch": (BATCH, SETTINGS, 1, "batch"),
}
RESUMED = changed(activation="relu", epochs=4), SETTINGS, 2


def main(path: str, folder: str, where: list[str]) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    found = {}
    chunk_plan.STEPS_AT_ONCE = 1  # a chunk an epoch
    with processes.joined(where or None):
        found["devices"] = jax.local_device_count(), jax.device_count()
        for name, (config, settings, seeds, shard) in CASES.items():
            found[name] = plain(run(config, settings, seeds, dataset=small.dataset(), shard=shard))
        options = dict(dataset=small.dataset(), folder=folder, tensorboard="none", resume=bool(where))
        found["resumed"] = plain(run(*RESUMED, **options))
        try:
            run(*RESUMED, **options | {"resume": False})
        except ValueError as refusal:
            found["refusal"] = str(refusal)
    with open(path, "wb") as file:
        pickle.dump(found, file)


def plain(result):
    """History and variables, as they can be pickled."""
    return result.history.to_dict(), jax.tree.map(np.asarray, result.variables)
