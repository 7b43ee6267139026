"""Checkpoints of a run with Orbax: the state, the lanes' keys and the step, saved completely or not at all.

Every checkpoint has a file `SHA256SUMS`, which `sha256sum --check` can read. Orbax alone does not notice some damaged
files, and reports others only from its threads.
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
    """Open the checkpoints of a run folder; the latest two are kept. Other processes of the job take no part."""
    directory, me = (folder / "checkpoints").absolute(), jax.process_index()
    directory.mkdir(parents=True, exist_ok=True)
    _silence_background_errors()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
        enable_async_checkpointing=True,
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}),
        async_options=ocp.AsyncOptions(post_finalization_callback=partial(_write_sums, directory)),
        create=False,
    )
    return ocp.CheckpointManager(directory, options=options)


def save(manager: ocp.CheckpointManager, step: int, tree: Any) -> None:
    """Save in the background; if the process is killed meanwhile, the previous checkpoint remains."""
    with named(Path(manager.directory)):
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(_plain(tree))), force=True)


def check(manager: ocp.CheckpointManager) -> None:
    """Raise the error of a save in the background.

    Raises:
      OSError: a checkpoint could not be written.
    """
    if not manager.is_saving_in_progress():
        finish(manager)


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until all saves are on disk; raises as `check` does."""
    with named(Path(manager.directory)):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager) -> None:
    """Wait as `finish` does, and end Orbax's threads."""
    with named(Path(manager.directory)):
        manager.close()


def forget(manager: ocp.CheckpointManager) -> None:
    """Delete all checkpoints."""
    for step in manager.all_steps():
        manager.delete(step)


def restore(manager: ocp.CheckpointManager, like: Any) -> tuple[int, Any]:
    """Read the latest checkpoint.

    Args:
      manager: of the run folder.
      like: a tree with the structure, shapes and dtypes of the saved one.

    Returns:
      The step and the tree; (0, like) if there is no checkpoint yet.

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
    """Write the sums; Orbax calls this when a checkpoint's files are complete and still have their temporary name."""
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        sums = (f"{_sha256(file)}  {file.relative_to(folder)}\n" for file in _files(folder))
        (folder / SUMS).write_text("".join(sums))


def _check_sums(folder: Path) -> None:
    """Refuse a checkpoint whose files are not those that were saved."""
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
def _silence_background_errors() -> None:
    """Keep off stderr what Orbax's threads print about errors that `check` and `finish` raise anyway.

    After a failed save (a full disk), Orbax also leaves a coroutine whose event loop is closed. When Python frees it,
    an error is printed that no caller can catch, so the hook drops this one message. It can go when a failed save in
    Orbax prints nothing; tests/promises/test_disk.py looks at stderr.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    previous = sys.unraisablehook
    sys.unraisablehook = lambda it: None if str(it.exc_value) == "Event loop is closed" else previous(it)


def _plain(tree: Any) -> Any:
    """The tree with host arrays alone: Orbax saves them without asking the other processes of the job."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
