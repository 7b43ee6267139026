"""The address of a point: of its content alone, however it is written, and other with every field."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys

import pytest

from vgjax.config import Config, Hypers
from vgjax.sweeps.grid import Grid, Point


def address(config, hypers, seed):
    """The identity, computed independently from what the fields hold."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(config).items()}
    content = {"seed": seed, "hypers": dict(zip(Hypers._fields, map(float, hypers), strict=True)), "config": plain}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_identity_is_that_of_the_content():
    """SHA-256 of the JSON with sorted keys, whatever the coordinates."""
    config, hypers = Config(hidden=(3, 2), activation="leaky_relu(0.2)"), Hypers(0.25, sigma_w=1.5)
    assert Point(config, hypers, 7, {}).identity() == address(config, hypers, 7)
    assert Point(config, hypers, 7, {"depth": 2}).identity() == address(config, hypers, 7)


def other(value):
    """An allowed value that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, value[0])
    return f"{value}_" if isinstance(value, str) else value / 2 if isinstance(value, float) and value else value + 2


OTHER = {
    **{name: other(value) for name, value in vars(Config()).items()},
    **{"scaling": "none", "norm": "layer", "norm_at": "layer_inputs", "branch": "rezero", "clip": "agc", "decay": "l2"},
    **{"shuffle": "once", "last_batch": "keep", "reduction": "sum", "replicas": 2, "validate": "end"},
    **{name: other(value) for name, value in Hypers()._asdict().items()},
}


def test_identity_differs_with_every_field():
    """One address for each change of one field, and of the seed."""
    base = Point(Config(), Hypers(), 0, {})
    swept = Grid(points=[{name: value} for name, value in OTHER.items()]).expand()
    assert len(swept) == len(vars(Config())) + len(Hypers._fields)
    assert len({point.identity() for point in (base, base._replace(seed=1), *swept)}) == len(swept) + 2


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Grid(product={"depth": [3], "width": [5]}), Grid(product={"hidden": [[5, 5, 5]]})),
        (Grid(product={"depth": [3]}, config=Config(hidden=(5,))), Grid(zip={"hidden": [(5, 5, 5)]})),
        (Grid(product={"sigma_w2": [2.0]}), Grid(product={"sigma_w": [math.sqrt(2)]})),
        (Grid(product={"sigma_b2": [-0.0]}), Grid(product={"sigma_b": [0]})),
        (Grid(product={"learning_rate": ["1e-3"]}), Grid(points=[{}], hypers=Hypers(0.001))),
        (Grid(product={"norm_epsilon": [0.0]}), Grid(points=[{}], config=Config(norm_epsilon=0))),
        (Grid(points=[{"bias": False, "norm": "batch"}]), Grid(product={"norm": ["batch"], "bias": [False]})),
        (Grid(product={"activation": [math.tanh]}), Grid(product={"activation": ["math:tanh"]})),
    ],
)
def test_identity_is_the_same_however_it_is_written(one, same):
    """Equal settings have one address."""
    assert [point.identity() for point in one.expand()] == [point.identity() for point in same.expand()]


def test_identity_outlives_the_process():
    """Another process, with another hash seed, has the same address."""
    grid = "Grid(product={'depth': [2], 'width': [3]}, seeds=(9,))"
    code = f"from vgjax.sweeps.grid import *; print({grid}.expand()[0].identity())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == address(Config(hidden=(3, 3)), Hypers(), 9)
