"""Checkpoints of a run with Orbax: the state, the lanes' keys and the step, saved whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

KEPT = 2


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run folder; the latest two are kept. No other process takes part."""
    directory, me = (folder / "checkpoints").absolute(), jax.process_index()
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
        enable_async_checkpointing=True,
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}),
        create=False,
    )
    return ocp.CheckpointManager(directory, options=options)


def save(manager: ocp.CheckpointManager, step: int, tree: Any) -> None:
    """Save in the background; a kill meanwhile leaves the checkpoint before."""
    manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(_plain(tree))), force=True)


def restore(manager: ocp.CheckpointManager, like: Any) -> tuple[int, Any]:
    """The latest checkpoint.

    Args:
      manager: of the run folder.
      like: a tree of the same structure, whose shapes and dtypes the result takes.

    Returns:
      The step, and the tree; (0, like) where there is none yet.

    Raises:
      ValueError: the checkpoint is damaged or belongs to another network.
    """
    step = manager.latest_step()
    if step is None:
        return 0, like
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
    try:
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{manager.directory}: checkpoint {step} is damaged or of another network: {reason}") from None
    return step, jax.tree.map(lambda a, b: jax.random.wrap_key_data(b) if _is_key(a) else b, like, restored["state"])


def _plain(tree: Any) -> Any:
    """Arrays on the host alone: of several processes, Orbax saves those without asking the others."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
