"""What is written to sweep over: the points it makes, their order, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgjax.config import Config, Hypers
from vgjax.settings import LARGEST_SEED
from vgjax.sweeps.axes import DEEPEST, FIELDS, MOST_POINTS, RANGES
from vgjax.sweeps.grid import Grid, grid_as_plain, grid_from, read_grid

FILE = """
dataset: mnist
activation: tanh
hidden: [100, 100]
seeds: 4
product:
  sigma_w2: {linspace: [1.0, 4.0, 7]}
  depth: [4, 8, 64]
zip:
  learning_rate: [0.1, 1e-2]
  weight_decay: [0.0, 1e-4]
points:
  - {}
  - {activation: relu, initializer: he_normal}
"""
TOML = """
dataset = "mnist"
activation = "tanh"
hidden = [100, 100]
seeds = 4
points = [{}, {activation = "relu", initializer = "he_normal"}]
[product]
sigma_w2 = {linspace = [1.0, 4.0, 7]}
depth = [4, 8, 64]
[zip]
learning_rate = [0.1, 1e-2]
weight_decay = [0.0, 1e-4]
"""
NESTED = """
config: {dataset: mnist, activation: tanh, hidden: [100, 100]}
hypers: [{learning_rate: 0.3}]
seeds: 4
product: {depth: [4, 8]}
"""
BASE = Config(hidden=(100, 100))


def written(tmp_path, text, suffix=".yaml"):
    path = tmp_path / f"grid{suffix}"
    path.write_text(text, encoding="utf-8")
    return path


def settings_of(grid):
    return [(point.config, point.hypers) for point in grid.expand()]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "suffix"), [(FILE, ".yaml"), (FILE, ".yml"), (TOML, ".toml")])
def test_file(tmp_path, text, suffix):
    """Every point of a file, in row-major order: product as written, then zip, then points, seeds the fastest."""
    grid = read_grid(written(tmp_path, text, suffix))
    expected = [
        (100 * (depth > 0), depth, sigma_w2, rate, decay, names, seed)
        for sigma_w2 in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
        for depth in (4, 8, 64)
        for rate, decay in ((0.1, 0.0), (0.01, 0.0001))
        for names in (("tanh", "he_normal"), ("relu", "he_normal"))
        for seed in range(4)
    ]
    points = grid.expand()
    assert len(grid) == len(points) == len(expected) == 7 * 3 * 2 * 2 * 4
    for point, (width, depth, sigma_w2, rate, decay, names, seed) in zip(points, expected, strict=True):
        assert point.config == Config(hidden=(width,) * depth, activation=names[0], initializer=names[1])
        assert point.hypers == Hypers(rate, decay, sigma_w=math.sqrt(sigma_w2)) and point.seed == seed
        swept = {"sigma_w2": sigma_w2, "depth": depth, "learning_rate": rate, "weight_decay": decay}
        listed = {"activation": "relu", "initializer": "he_normal"} if names[0] == "relu" else {}
        assert point.coordinates == swept | listed and list(point.coordinates)[:4] == list(swept)
    assert [len(axis) for axis in grid.axes] == [7, 3, 2, 2]
    assert len({point.identity() for point in points}) == len(points)


def test_order_is_as_written(tmp_path):
    """The first line of product is the slowest axis."""
    there = read_grid(written(tmp_path, "product: {learning_rate: [1.0, 2.0], batch_size: [8, 4]}")).expand()
    back = read_grid(written(tmp_path, "product: {batch_size: [8, 4], learning_rate: [1.0, 2.0]}")).expand()
    assert [tuple(p.coordinates.values()) for p in there] == [(1.0, 8), (1.0, 4), (2.0, 8), (2.0, 4)]
    assert [tuple(p.coordinates.values()) for p in back] == [(8, 1.0), (8, 2.0), (4, 1.0), (4, 2.0)]
    assert {p.identity() for p in there} == {p.identity() for p in back}


def test_nested_file(tmp_path):
    """The form of a run's own config.yaml; a list of hypers with one setting is one setting."""
    grid = read_grid(written(tmp_path, NESTED))
    base = Config(activation="tanh")
    assert settings_of(replace(grid, seeds=1)) == [
        (replace(base, hidden=(100,) * depth), Hypers(learning_rate=0.3)) for depth in (4, 8)
    ]


@pytest.mark.parametrize(
    ("axis", "hidden"),
    [
        ({"depth": [0, 3]}, [(), (100,) * 3]),
        ({"width": [5, 7]}, [(5, 5), (7, 7)]),
        ({"depth": [1, 2], "width": [5, 7]}, [(5,), (7,), (5, 5), (7, 7)]),
        ({"hidden": [[3, 2], (), (4,)]}, [(3, 2), (), (4,)]),
    ],
)
def test_layers(axis, hidden):
    """Depth and width are those of equal layers; what is not swept over is the base's."""
    assert [config.hidden for config, _ in settings_of(Grid(product=axis, config=BASE))] == hidden


def test_listed_points_differ_in_what_they_say():
    """One may name the depth, another the width; each leaves the rest to the base."""
    grid = Grid(points=[{"depth": 3}, {"width": 7}, {"depth": 1, "width": 2}, {"sigma_b2": 0.25}], config=BASE)
    assert [config.hidden for config, _ in settings_of(grid)] == [(100,) * 3, (7, 7), (2,), (100, 100)]
    assert [hypers.sigma_b for _, hypers in settings_of(grid)] == [0, 0, 0, 0.5]
    assert grid.expand()[1].coordinates == {"width": 7}


def test_every_field_can_be_swept():
    """All of Config and Hypers, and nothing else but the four derived ones."""
    assert set(FIELDS) == {f.name for f in fields(Config)} | {*Hypers._fields, "depth", "width", "sigma_w2", "sigma_b2"}
    other = {"norm": "layer", "decay": "l2", "bias": False, "record": ["norms"], "output_initializer": "zeros"}
    for name, value in other.items():
        (config, _), *_ = settings_of(Grid(product={name: [value]}))
        assert config == Config(**{name: value}) != Config()


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("sigma_w2", {"linspace": [1.0, 4.0, 8]}, np.linspace(1, 4, 8).tolist()),
        ("learning_rate", {"geomspace": ["1e-4", 1, 9]}, np.geomspace(1e-4, 1, 9).tolist()),
        ("weight_decay", {"arange": [0, 0.35, 0.1]}, [0.0, 0.1, 0.2, 0.30000000000000004]),
        ("depth", {"arange": [3]}, [0, 1, 2]),
        ("depth", {"arange": [8, 2, -2]}, [8, 6, 4]),
        ("width", {"linspace": [1, 4, 3]}, [1, 2, 4]),  # 2.5 is 2: to the even, as in Python and NumPy
        ("batch_size", {"geomspace": [1, 8, 7]}, [1, 2, 3, 4, 6, 8]),  # 1.41 is 1 once more
    ],
)
def test_ranges(tmp_path, name, words, expected):
    """NumPy's words; rounded, and without repetitions, where the field is a whole number."""
    text = json.dumps({"hidden": [10], "product": {name: words}})
    found = [point.coordinates[name] for point in read_grid(written(tmp_path, text)).expand()]
    assert found == expected and {type(value) for value in found} == {FIELDS[name]}


def test_rounding_keeps_zipped_fields_together():
    """In zip a repeated number stays: its partner differs."""
    grid = Grid(zip={"depth": {"linspace": [1, 2, 4]}, "learning_rate": [0.1, 0.2, 0.3, 0.4]}, config=BASE)
    assert [tuple(p.coordinates.values()) for p in grid.expand()] == [(1, 0.1), (1, 0.2), (2, 0.3), (2, 0.4)]


def test_numpy_values():
    """Arrays and NumPy's numbers become Python's own, which JSON can hold."""
    grid = Grid(product={"sigma_w2": np.linspace(1, 2, 3, dtype=np.float32), "depth": [np.int64(3)]}, config=BASE)
    assert json.loads(json.dumps(grid_as_plain(grid)))["product"] == {"sigma_w2": [1.0, 1.5, 2.0], "depth": [3]}


@pytest.mark.parametrize(("seeds", "expected"), [(3, [0, 1, 2]), ([5, 2], [5, 2]), ((LARGEST_SEED,), [LARGEST_SEED])])
def test_seeds(seeds, expected):
    """How many, or which."""
    grid = Grid(product={"bias": [True, False]}, seeds=seeds)
    assert [point.seed for point in grid.expand()] == 2 * expected and len(grid) == 2 * len(expected)


REFUSED = [
    # unknown, misplaced
    ("product: {dpeth: [1]}", ["unknown field 'dpeth' in product", "did you mean 'depth'?", "allowed: ", "sigma_w2"]),
    ("zip: {lerning_rate: [1]}", ["'lerning_rate' in zip", "did you mean 'learning_rate'?"]),
    ("points: [{sigmaw2: 1}]", ["'sigmaw2' in points", "did you mean 'sigma_w2'?"]),
    ("product: {1: [2]}", ["unknown field 1"]),
    ("prodcut: {depth: [1]}", ["unknown field 'prodcut'", "did you mean 'product'?", "zip, points"]),
    ("depth: 3\nproduct: {width: [1]}", ["depth can only be swept over", "allowed: hidden here, or depth in product"]),
    ("product: {seeds: [1, 2]}", ["seeds is not allowed in product", "allowed: `seeds` on a line of its own"]),
    ("points: [{seeds: 2}]", ["seeds is not allowed in points"]),
    # nothing there
    ("dataset: mnist", ["nothing to sweep over", "allowed: product, zip, points"]),
    ("", ["holds no settings"]),
    ("[1, 2]", ["holds no settings"]),
    ("product: {}", ["product is empty", "field: [value"]),
    ("product: {depth: [1]}\npoints: []", ["points is empty", "a list of {field: value"]),
    ("product:", ["product None", "field: [value"]),
    ("product: [1]", ["product [1]", "field: [value"]),
    ("points: {depth: 3}", ["points {'depth': 3}", "a list of {field: value"]),
    ("points: [3]", ["points 3", "a list of {field: value"]),
    ("points: abc", ["points 'abc'"]),
    ("product: {depth: []}", ["depth has no values", "at least one"]),
    ("product: {depth: {arange: [3, 3]}}", ["depth has no values"]),
    ("product: {depth: 3}", ["depth 3 is not allowed", "[value", "linspace | geomspace | arange"]),
    ("product: {activation: tanh}", ["activation 'tanh' is not allowed", "[value"]),
    # twice
    ("product: {bias: [true]}\nzip: {bias: [true]}", ["bias is in product and in zip", "one axis for each field"]),
    ("zip: {bias: [true]}\npoints: [{}, {bias: true}]", ["bias is in zip and in points"]),
    ("product: {hidden: [[3]], depth: [2]}", ["depth and hidden are both swept over", "hidden itself"]),
    ("product: {width: [3]}\npoints: [{hidden: [3]}]", ["width and hidden are both swept over"]),
    ("zip: {sigma_w2: [2], sigma_w: [3]}", ["sigma_w2 and sigma_w are both swept over"]),
    ("product: {sigma_b2: [2]}\nzip: {sigma_b: [3]}", ["sigma_b2 and sigma_b are both swept over"]),
    ("product: {bias: [true, false, true]}", ["(bias True) and (bias True) are the same point", "each point once"]),
    ("zip: {bias: [true, true], sigma_b2: [0, -0.0]}", ["(bias True, sigma_b2 0.0) and (bias True, sigma_b2 -0.0)"]),
    ("points: [{}, {activation: tanh}, {activation: relu}]", ["(the base) and (activation 'relu') are the same"]),
    ("points: [{depth: 2, width: 3}, {depth: 2, width: 3, bias: true}]", ["(depth 2, width 3) and (depth 2, width 3,"]),
    ("product: {depth: [0], width: [1, 2]}", ["(depth 0, width 1) and (depth 0, width 2)"]),
    # lengths and sizes
    ("zip: {bias: [true], sigma_b: [1, 2]}", ["different numbers of values (bias 1, sigma_b 2)", "equally many"]),
    ("product: {depth: [2]}", ["depth needs one width", "[512, 256, 128", "`width` too"]),
    ("hidden: []\nproduct: {depth: [2]}", ["depth needs one width", "hidden is empty"]),
    ("product: {sigma_w: {linspace: [1, 2, 1001]}, sigma_b: {linspace: [1, 2, 1001]}}", ["1002001", "1000000"]),
    ("seeds: 99999999999999999999\nproduct: {bias: [true]}", ["seeds 99999999999999999999", "at most 1000000"]),
    ("product: {sigma_w: {arange: [0, 1, 1e-9]}}", ["sigma_w arange", "too many values", "at most 1000000"]),
    ("product: {sigma_w: {arange: [0, 1e300, 1e-300]}}", ["too many values"]),
    ("product: {sigma_w: {linspace: [0, 1, 1000000000000]}}", ["1000000000000", "a whole number from 1 to 1000000"]),
    ("product: {depth: [100000000000], width: [3]}", ["depth 100000000000", f"allowed: 0 to {DEEPEST}"]),
    # ranges
    ("product: {depth: {linspce: [1, 2, 3]}}", ["did you mean 'linspace'?", "geomspace, arange"]),
    ("product: {depth: {linspace: [1, 2, 3], arange: [3]}}", ["is not a range", "allowed: linspace"]),
    ("product: {depth: {}}", ["is not a range"]),
    ("product: {activation: {linspace: [1, 2, 3]}}", ["activation is not a number", "[value"]),
    ("product: {bias: {arange: [2]}}", ["bias is not a number"]),
    ("product: {depth: {linspace: [1, 2]}}", ["depth linspace [1, 2]", "allowed: [start, stop, num]"]),
    ("product: {depth: {geomspace: 3}}", ["depth geomspace 3", "allowed: [start, stop, num]"]),
    ("product: {depth: {arange: []}}", ["depth arange []", "[start, stop, step]"]),
    ("product: {depth: {linspace: [1, 2, 2.5]}}", ["num a whole number"]),
    ("product: {depth: {linspace: [1, 2, true]}}", ["depth linspace True", "a number"]),
    ("product: {depth: {linspace: [1, 2, 0]}}", ["num a whole number from 1"]),
    ("product: {depth: {linspace: [a, 2, 3]}}", ["depth linspace 'a'", "a number"]),
    ("product: {depth: {linspace: [1, .inf, 3]}}", ["finite numbers"]),
    ("product: {depth: {linspace: [-1.7e+308, 1.7e+308, 3]}}", ["finite numbers"]),
    ("product: {depth: {geomspace: [0, 2, 3]}}", ["start and stop above 0"]),
    ("product: {depth: {arange: [0, 2, 0]}}", ["a step other than 0"]),
    ("points: [{depth: {arange: [2]}}]", ["depth {'arange': [2]}", "a whole number"]),
    # values
    ("product: {depth: [2.5]}", ["depth 2.5 is not allowed", "a whole number"]),
    ("product: {depth: [-1], width: [3]}", ["depth -1 is not allowed", "allowed: 0 to"]),
    ("product: {width: [0]}", ["width 0 is not allowed", "whole numbers from 1"]),
    ("product: {sigma_w2: [-1]}", ["sigma_w2 -1.0 is not allowed", "0 or more"]),
    ("product: {sigma_b2: [.nan]}", ["sigma_b2 nan is not allowed"]),
    ("product: {sigma_w2: [.inf]}", ["sigma_w2 inf is not allowed"]),
    ("product: {sigma_w2: [big]}", ["sigma_w2 'big' is not allowed", "a number"]),
    ("product: {hidden: [64, 64]}", ["hidden 64 is not allowed", "a list of whole numbers"]),
    ("product: {hidden: [[0]]}", ["hidden 0 is not allowed", "whole numbers from 1"]),
    ("product: {norm: [none, bach]}", ["norm 'bach' is not allowed", "did you mean 'batch'?"]),
    ("product: {batch_size: [0]}", ["batch_size 0 is not allowed", "whole numbers from 1"]),
    ("product: {batch_size: [10, 9], replicas: [2]}", ["batch_size 9 does not divide into 2 replicas"]),
    ("product: {learning_rate: [-0.1]}", ["learning_rate -0.1 is not allowed", "0 or more"]),
    ("learning_rate: -1\nproduct: {learning_rate: [1]}", ["learning_rate -1.0 is not allowed"]),
    ("batch_size: 0\nproduct: {batch_size: [1]}", ["batch_size 0 is not allowed"]),
    ("hypers: [{}, {learning_rate: 1}]\nproduct: {depth: [1]}", ["hypers has 2 settings", "allowed: one", "`points`"]),
    ("seeds: 0\nproduct: {bias: [true]}", ["seeds 0 is not allowed", "how many, or which"]),
    ("seeds: [1, 1]\nproduct: {bias: [true]}", ["seeds (1, 1) is not allowed", "each once"]),
    ("seeds: []\nproduct: {bias: [true]}", ["seeds [] is not allowed"]),
    ("seeds: [4294967296]\nproduct: {bias: [true]}", ["seeds [4294967296] is not allowed", "4294967295"]),
    ("seeds: [-1]\nproduct: {bias: [true]}", ["seeds [-1] is not allowed"]),
    ("product: {depth: [1", ["damaged"]),
]


@pytest.mark.parametrize(("text", "parts"), REFUSED, ids=[text.replace("\n", "; ")[:60] for text, _ in REFUSED])
def test_refused(tmp_path, text, parts):
    """One line: the file, what is wrong, what is allowed and the nearest name."""
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as refusal:
        read_grid(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert [part for part in parts if part not in message] == [], message
    assert "allowed: " in message or "damaged" in message or "does not divide" in message


def test_other_files(tmp_path):
    """A file of another kind, or none."""
    with pytest.raises(ValueError, match=r"cannot read a \.json; allowed: \.yaml, \.yml, \.toml"):
        read_grid(written(tmp_path, "{}", ".json"))
    with pytest.raises(FileNotFoundError):
        read_grid(tmp_path / "nowhere.yaml")


def test_values_of_another_kind_in_python():
    """What no file can hold."""
    for values in ({1, 2}, None, iter([1])):
        with pytest.raises(ValueError, match=r"depth .* is not allowed"):
            Grid(product={"depth": values})
    for seeds in (True, 1.0, "3", None):
        with pytest.raises(ValueError, match=r"seeds .* is not allowed"):
            Grid(product={"bias": [True]}, seeds=seeds)
    with pytest.raises(ValueError, match="nothing to sweep over"):
        Grid()


def test_module_is_light():
    """Reading a grid without ranges brings neither JAX nor NumPy."""
    code = (
        "import sys, vgjax.sweeps.grid as g; g.Grid(product={'bias': [True]}); print({'jax', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_points_do_not_share_their_coordinates():
    """Writing into one point's leaves the others' alone."""
    points = Grid(product={"bias": [True]}, seeds=2).expand()
    points[0].coordinates["bias"] = None
    assert points[1].coordinates == {"bias": True}


POSITIVE = st.floats(0, 1e6)
VALUES = {
    **{"depth": st.integers(0, 9), "width": st.integers(1, 99), "sigma_w2": POSITIVE, "sigma_b": POSITIVE},
    **{"batch_size": st.integers(1, 512), "bias": st.booleans(), "norm": st.sampled_from(["none", "batch", "layer"])},
    **{"activation": st.sampled_from(["relu", "tanh", "leaky_relu(0.2)", "math:tanh"]), "learning_rate": POSITIVE},
    "record": st.lists(st.sampled_from(["norms", "spread", "points"]), unique=True),
}


@st.composite
def grids(draw):
    """Grids of a few axes, of fields in any order."""
    names = draw(st.permutations(sorted(VALUES)))[: draw(st.integers(1, 6))]
    cut, end = sorted(draw(st.tuples(st.integers(0, len(names)), st.integers(0, len(names)))))
    section = {"product": names[:cut], "zip": names[cut:end], "points": names[end:]}
    length = draw(st.integers(1, 3))

    def column(name, n):
        return draw(st.lists(VALUES[name], min_size=n, max_size=n, unique_by=repr))

    together = st.sampled_from([True, False])
    seeds = draw(st.integers(1, 3) | st.lists(st.integers(0, LARGEST_SEED), min_size=1, max_size=3, unique=True))
    written = {
        "product": {name: column(name, draw(st.integers(1, 2))) for name in section["product"]},
        "zip": {name: column(name, length if name != "bias" else min(length, 2)) for name in section["zip"]},
        "points": [{name: draw(VALUES[name]) for name in section["points"] if draw(together)} for _ in range(length)],
    }
    base = {"config": Config(hidden=(draw(st.integers(1, 9)),), bias=draw(st.booleans()))}
    try:
        return Grid(**written, **base, hypers=Hypers(draw(POSITIVE)), seeds=seeds), written
    except ValueError:
        return None  # two points the same, or columns of unequal length: refused above


@pytest.mark.slow
@given(grids().filter(bool))
def test_round_trip(made):
    """Through JSON and back: the same grid, the same points in the same order."""
    grid, _ = made
    again = grid_from(json.loads(json.dumps(grid_as_plain(grid))))
    assert again == grid and again.expand() == grid.expand() and len(grid) == len(grid.expand())
    assert [p.identity() for p in again.expand()] == [p.identity() for p in grid.expand()]


@given(grids().filter(bool))
def test_points_are_the_product(made):
    """Coordinates against a plain product of what was written."""
    grid, written = made
    axes = [[{name: value} for value in values] for name, values in written["product"].items()]
    columns = written["zip"]
    axes += [[dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]] if columns else []
    axes += [written["points"]]
    expected = [{k: v for step in steps for k, v in step.items()} for steps in itertools.product(*axes)]
    seeds = list(range(grid.seeds)) if isinstance(grid.seeds, int) else list(grid.seeds)
    found = [
        ({k: list(v) if isinstance(v, tuple) else v for k, v in point.coordinates.items()}, point.seed)
        for point in grid.expand()
    ]
    assert found == [(coordinates, seed) for coordinates in expected for seed in seeds]


def test_as_plain_of_what_python_alone_can_hold():
    """Callables are written as module:function."""
    points = [{"output_initializer": math.cos}, {}]
    grid = Grid(product={"activation": [math.tanh, "relu"]}, points=points, config=Config(initializer=math.sin))
    again = grid_from(json.loads(json.dumps(grid_as_plain(grid))))
    assert again.product == {"activation": ("math:tanh", "relu")} and again.config.initializer == "math:sin"
    assert again.points == ({"output_initializer": "math:cos"}, {})


def test_limits_are_those_of_the_messages():
    """The largest grid is allowed; the names of the ranges are NumPy's."""
    assert all(callable(getattr(np, name)) for name in RANGES)
    assert len(Grid(product={"bias": [True, False]}, seeds=MOST_POINTS // 2)) == MOST_POINTS
