"""How a run is cut into chunks; and that it is the same run however it is cut."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import small

from vgjax import run
from vgjax.config import Hypers
from vgjax.training import chunk_plan
from vgjax.training.chunk_plan import Chunk, epochs_at_once, most_records, plan, shape
from vgjax.training.history import load


def changed(**changes):
    few = {"record": ("norms", "gradient_histogram")}  # which compile in half the time of the default
    return dataclasses.replace(small.CONFIG, **few | changes)


@pytest.mark.parametrize(
    ("changes", "per_epoch", "total", "expected"),
    [
        ({}, 3, 9, [(0,), (3,), (6, 8)]),
        ({"cadence": "epoch"}, 3, 9, [(0,), (3,), (6, 8)]),
        ({"cadence": "every(1)"}, 2, 4, [(0, 1), (2, 3)]),
        ({"cadence": "every(4)"}, 3, 9, [(0,), (4,), (8,)]),
        ({"cadence": "every(100)"}, 3, 9, [(0,), (), (8,)]),
        ({"cadence": "every(2)"}, 3, 4, [(0, 2), (3,)]),
        ({}, 3, 1, [(0,)]),
    ],
)
def test_recorded_steps(changes, per_epoch, total, expected):
    """Step 0, every k-th and the last; chunks end with their epoch, the last one with the run."""
    found = plan(changed(**changes), per_epoch, total)
    assert [chunk.recorded for chunk in found] == expected
    assert [chunk.start for chunk in found] == list(range(0, total, per_epoch))
    assert [chunk.stop for chunk in found[:-1]] == [chunk.start for chunk in found[1:]] and found[-1].stop == total
    assert all(len(chunk.stops) == 1 and chunk.validates == (True,) for chunk in found)


def test_several_epochs_a_chunk():
    """Two and two and what is left, whose last epoch is cut short; validated after each, or after the run."""
    every, end = (plan(changed(cadence="every(4)", validate=when), 3, 14, 2) for when in ("every_epoch", "end"))
    assert every == [
        Chunk(0, (3, 6), (0, 4), (True, True)),
        Chunk(6, (9, 12), (8,), (True, True)),
        Chunk(12, (14,), (12, 13), (True,)),
    ]
    assert [chunk.stop for chunk in every] == [6, 12, 14]
    assert [chunk.validates for chunk in end] == [(False, False), (False, False), (True,)]
    assert [chunk._replace(validates=()) for chunk in end] == [chunk._replace(validates=()) for chunk in every]
    assert most_records(every, 2) == 3 and most_records(plan(changed(cadence="every(1)"), 3, 14, 2), 2) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cadence", "per_epoch", "total", "message"),
    [
        ("at(9)", 3, 9, r"cadence 'at\(9\)' names no step of this run; allowed: 0 to 8"),
        (lambda per_epoch, total: [0, total], 3, 9, "names steps outside this run; allowed: 0 to 8"),
        (lambda per_epoch, total: [-1, 0], 3, 9, "names steps outside this run; allowed: 0 to 8"),
        ("at(0)", 2**31, 2**31, "steps 2147483648 of 2147483648 an epoch are not allowed; allowed: at most 2147483647"),
        ("at(0)", 1, 10_000_001, "steps 10000001 of 1 an epoch are not allowed; .* in 10000000 epochs"),
    ],
)
def test_refused_plans(cadence, per_epoch, total, message):
    """Records beyond the end, and more steps or epochs than can be counted; one less of each is a plan."""
    with pytest.raises(ValueError, match=message):
        plan(changed(cadence=cadence), per_epoch, total)
    if cadence == "at(0)":
        assert plan(changed(cadence=cadence), per_epoch, total - 1, 10**7)[-1].stop == total - 1


@pytest.mark.parametrize(
    ("cadence", "message"),
    [
        (lambda per_epoch, total: [0, 5, 3], "it gives .0, 5, 3.; allowed: ascending steps, each once"),
        (lambda per_epoch, total: [0, 5, 5], "it gives .0, 5, 5.; allowed: ascending steps, each once"),
        (lambda per_epoch, total: [0, 5.5], "it gives .0, 5.5.; allowed: a list of whole numbers"),
        (lambda per_epoch, total: {}["x"], "'x'"),
    ],
)
def test_a_cadence_of_ones_own_is_looked_at_as_it_is_used(cadence, message):
    """It may do well on the few steps on which it is tried beforehand."""
    with pytest.raises(ValueError, match=f"cannot be used: {message}"):
        plan(changed(cadence=cadence), 3, 9)


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, 21),  # of 3 steps: at most 64 steps
        ({"epochs": 1}, 21),
        ({"epochs": 1000, "validate": "end", "cadence": "every(2)"}, 21),
        ({"batch_size": 1}, 1),  # 56 steps
        ({"batch_size": 2}, 2),
        ({"holdout": 20}, 32),  # of 2 steps
        ({"hidden": (500, 500)}, 4),  # 3 · 16 · 3 + 20 examples, 254,000 weights
        ({"hidden": (2000, 2000)}, 1),
    ],
)
def test_short_epochs_share_a_chunk(changes, epochs):
    """As many as have few steps and multiplications; the length of the run has no say, so that programs are shared."""
    assert epochs_at_once(shape(changed(**changes), small.dataset())) == epochs


def test_what_a_run_costs():
    """Steps that are asked for, or those of its epochs, of what is not held out; weights; units."""
    one = shape(changed(), small.dataset())
    assert (one.products, one.units, one.widest, one.n_validation) == (5 * 8 + 8 * 6 + 6 * 3, 5 + 8 + 6 + 3, 8, 20)
    assert shape(changed(epochs=4, holdout=20), small.dataset()).steps == 4 * 2
    assert shape(changed(epochs=4, steps=5), small.dataset()).steps == 5


CUT_SHORT = changed(epochs=1, steps=32, last_batch="keep", norm="batch", optimizer="adam", schedule="cosine")
CASES = {
    "an incomplete last epoch": (CUT_SHORT, [Hypers(0.01)]),
    "records here and there": (changed(epochs=12, cadence="at(1, 2, 3, 17, 35)", validate="end"), [Hypers(0.1)]),
    "one lane explodes": (changed(activation="relu", epochs=9, cadence="every(2)"), [Hypers(0.1), Hypers(1e30)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_however_it_is_cut(name, monkeypatch):
    """Chunks of 1, 5 and 21 epochs: the same history and parameters to the last bit."""
    config, settings = CASES[name]
    results, landings = [], []
    for most in (1, 15, chunk_plan.STEPS_AT_ONCE):
        monkeypatch.setattr(chunk_plan, "STEPS_AT_ONCE", most)
        seen = []
        landed = lambda part, _, seen=seen: seen.append(part.sizes["evaluation"])  # noqa: E731
        results.append(run(config, settings, 2, dataset=small.dataset(), progress=landed))
        landings.append(seen)
    first = results[0].history
    assert set(landings[0]) == {1} and max(landings[1]) > 1 and len(landings[2]) == 1
    assert {sum(seen) for seen in landings} == {first.sizes["evaluation"]}
    assert (first["first_bad_step"].values >= 0).any() == (name == "one lane explodes")
    for result in results[1:]:
        assert small.identical(result.history, first)
        jax.tree.map(np.testing.assert_array_equal, result.variables, results[0].variables)


@pytest.mark.slow
def test_goes_on_between_chunks_of_several_epochs(tmp_path, monkeypatch):
    """Stopped after the second of four: its file tells of all its epochs, and the rest is the undisturbed run's."""
    monkeypatch.setattr(chunk_plan, "STEPS_AT_ONCE", 9)
    config, options = changed(epochs=10), {"dataset": small.dataset(), "tensorboard": "none"}
    whole = run(config, seeds=2, **options)

    def stop(part, _):
        if part["evaluated_at"].values[-1] == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, seeds=2, folder=tmp_path / "run", progress=stop, **options)
    files = sorted(path.name for path in (tmp_path / "run" / "history").iterdir())
    assert files == ["until-000000009.nc", "until-000000018.nc"]
    assert load(tmp_path / "run")["evaluated_at"].values.tolist() == [3, 6, 9, 12, 15, 18]
    again = run(config, seeds=2, folder=tmp_path / "run", resume=True, **options)
    assert small.identical(again.history, whole.history)
