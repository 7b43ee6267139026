"""At which steps a run is instrumented."""

from __future__ import annotations

import pytest

from vgjax.statistics.cadence import steps_of


@pytest.mark.parametrize(
    ("named", "steps"),
    [
        ("epoch", [0, 10, 20, 24]),
        ("every", list(range(25))),
        ("every(7)", [0, 7, 14, 21, 24]),
        ("every(100)", [0, 24]),
        ("log(1)", [0, 1, 10, 24]),
        ("log(2)", [0, 1, 3, 10, 24]),
        ("at(3, 1, 3)", [1, 3]),
        ("at(24, 25, 1000)", [24]),
        (lambda per_epoch, total: [per_epoch, total - 1], [10, 24]),
    ],
)
def test_steps(named, steps):
    assert steps_of(named, per_epoch=10, total=25) == steps


def test_log_spacing_is_even_in_the_logarithm():
    """Some ten in every power of ten, from where whole numbers are dense enough."""
    steps = steps_of("log(10)", 100, 10**6)
    assert [sum(10**d <= step < 10 ** (d + 1) for step in steps[:-1]) for d in range(2, 6)] == [10] * 4
    assert steps[0] == 0 and steps[-1] == 10**6 - 1 and steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("evry(3)", "did you mean 'every'"),
        ("every(0)", "whole numbers from 1"),
        ("every(2.5)", "whole numbers from 1"),
        ("log(0)", "1 to 1000"),
        ("log(true)", "log"),
        ("at()", "whole numbers from 0"),
        ("at(-1)", "whole numbers from 0"),
        ("epoch(2)", "epoch"),
    ],
)
def test_refused(named, message):
    with pytest.raises(ValueError, match=message):
        steps_of(named, 10, 25)
