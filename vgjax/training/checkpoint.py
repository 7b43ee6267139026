"""Checkpoints of a run with Orbax: the state, the lanes' keys and the step, saved whole or not at all.

Beside Orbax's files lies `SHA256SUMS`, which `sha256sum --check` reads too: Orbax takes some files with a flipped bit
for whole, and of others it complains from its threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vgjax.files import named

KEPT = 2
SUMS = "SHA256SUMS"


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run folder; the latest two are kept. No other process takes part."""
    directory, me = (folder / "checkpoints").absolute(), jax.process_index()
    directory.mkdir(parents=True, exist_ok=True)
    _hush()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
        enable_async_checkpointing=True,
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}),
        async_options=ocp.AsyncOptions(post_finalization_callback=partial(_write_sums, directory)),
        create=False,
    )
    return ocp.CheckpointManager(directory, options=options)


def save(manager: ocp.CheckpointManager, step: int, tree: Any) -> None:
    """Save in the background; a kill meanwhile leaves the checkpoint before."""
    with named(Path(manager.directory)):
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(_plain(tree))), force=True)


def check(manager: ocp.CheckpointManager) -> None:
    """Raise what went wrong in the background.

    Raises:
      OSError: a checkpoint could not be written.
    """
    if not manager.is_saving_in_progress():
        finish(manager)


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until what was saved is on disk; errors as `check`."""
    with named(Path(manager.directory)):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager) -> None:
    """Wait as `finish`, and let go of the threads."""
    with named(Path(manager.directory)):
        manager.close()


def forget(manager: ocp.CheckpointManager) -> None:
    """Drop all there are."""
    for step in manager.all_steps():
        manager.delete(step)


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
    folder = Path(manager.directory, str(step))
    _check_sums(folder)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
    try:
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} is of another network: {reason}") from None
    return step, jax.tree.map(lambda a, b: jax.random.wrap_key_data(b) if _is_key(a) else b, like, restored["state"])


def _write_sums(directory: Path) -> None:
    """Called by Orbax when all of a checkpoint is written, and before it gets its name."""
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        sums = (f"{_sha256(file)}  {file.relative_to(folder)}\n" for file in _files(folder))
        (folder / SUMS).write_text("".join(sums))


def _check_sums(folder: Path) -> None:
    advice = f"without the folder {folder} the run goes on from before it"
    sums, found = folder / SUMS, {}
    with contextlib.suppress(OSError, ValueError):
        found = dict(line.split("  ")[::-1] for line in sums.read_text().splitlines())
    if not found or set(found) != {str(file.relative_to(folder)) for file in _files(folder)}:
        raise ValueError(f"{sums} is damaged; {advice}")
    for name, digest in found.items():
        file = folder / name
        if not file.is_file() or _sha256(file) != digest:
            raise ValueError(f"{file} is damaged: its SHA-256 is not that in {sums}; {advice}")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / "state").rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@cache
def _hush() -> None:
    """Of what Orbax raises, it and TensorStore tell on stderr too, from threads of their own."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    before = sys.unraisablehook
    sys.unraisablehook = lambda it: None if str(it.exc_value) == "Event loop is closed" else before(it)


def _plain(tree: Any) -> Any:
    """Arrays on the host alone: of several processes, Orbax saves those without asking the others."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
