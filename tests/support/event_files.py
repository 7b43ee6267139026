"""TensorBoard's event files, read back by TensorBoard."""

from __future__ import annotations

import warnings


def read_events(folder):
    """{TensorBoard run: its accumulator}, nothing left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = {}
        for path in sorted({path.parent for path in (folder / "tensorboard").rglob("*tfevents*")}):
            name = path.relative_to(folder / "tensorboard").as_posix()
            found[name] = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0, "histograms": 0})
            found[name].Reload()
    return found


def values_of(accumulator, tag):
    """[(step, value)] of one tag."""
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]
