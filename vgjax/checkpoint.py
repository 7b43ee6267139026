"""Checkpoints of a run with Orbax: the state, the lanes' keys and the step, saved whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

KEPT = 2


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run folder; the latest two are kept."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT), enable_async_checkpointing=True
    )
    return ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, tree: Any) -> None:
    """Save in the background; a kill meanwhile leaves the checkpoint before."""
    manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree)), force=True)


def restore(manager: ocp.CheckpointManager, like: Any) -> tuple[int, Any]:
    """The latest checkpoint.

    Args:
      manager: of the run folder.
      like: a tree of the same structure, whose shapes, dtypes and shardings the result takes.

    Returns:
      The step, and the tree; (0, like) where there is none yet.

    Raises:
      ValueError: the checkpoint is damaged or belongs to another network.
    """
    step = manager.latest_step()
    if step is None:
        return 0, like
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{manager.directory}: checkpoint {step} is damaged or of another network: {reason}") from None
    return step, restored["state"]
