"""Names, their arguments and import paths; and what every row of every table promises."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgjax import names
from vgjax.activations import ACTIVATIONS, activation
from vgjax.data.catalogue import DATASETS
from vgjax.initializers import INITIALIZERS, initializer, is_data_dependent, weight_variance
from vgjax.training.optim import CLIPS, OPTIMIZERS, SCHEDULES

TABLES = {
    "activation": ACTIVATIONS,
    "initializer": INITIALIZERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "clip": CLIPS,
    "dataset": DATASETS,
}
ROWS = [(kind, name) for kind, table in TABLES.items() for name in table]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "args", "kwargs"),
    [
        ("relu", (), {}),
        (" relu ", (), {}),
        ("leaky_relu(0.2)", (0.2,), {}),
        ("normal(-1e-3)", (-0.001,), {}),
        ("xavier(factor_type=in, magnitude=2.34)", (), {"factor_type": "in", "magnitude": 2.34}),
        ("xavier(factor_type='in')", (), {"factor_type": "in"}),
        ("xavier(gaussian, out)", ("gaussian", "out"), {}),
        ("f(True, None, (1, 2))", (True, None, (1, 2)), {}),
    ],
)
def test_parse(text, args, kwargs):
    """A name with literal arguments; a bare word is a string, `in` too."""
    assert names.parse(text)[1:] == (args, kwargs)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {file}')",
        "relu(__import__('os').system('touch {file}'))",
        "relu(slope=open('{file}', 'w'))",
        "relu(*[open('{file}', 'w')])",
        "relu(**{{'slope': open('{file}', 'w')}})",
        "relu(**{{'slope': 1}})",
        "(lambda: open('{file}', 'w'))()",
        "[open('{file}', 'w')]",
        "relu; open('{file}', 'w')",
        "relu(1 if open('{file}', 'w') else 2)",
        "relu(f'{{open(1)}}')",
        "relu(",
        "",
        "1",
        "a.b",
        "(" * 10_000,
        "relu(" + "-" * 100_000 + "1)",
        "\0",
    ],
)
def test_nothing_is_evaluated(text, tmp_path):
    """Whatever is not a name with literal arguments is refused in one line and has no effect."""
    file = tmp_path / "evaluated"
    with pytest.raises(ValueError, match="cannot read"):
        names.parse(text.format(file=file))
    assert not file.exists()


def test_nearest():
    """A near miss is named, a far one is not; what is allowed is said either way."""
    assert names.nearest("rellu", ["relu", "tanh"]) == "did you mean 'relu'? allowed: relu, tanh"
    assert names.nearest("zzz", ["relu", "tanh"]) == "allowed: relu, tanh"
    assert names.nearest(3, ["relu"]) == "allowed: relu"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("rellu", "unknown activation 'rellu'; did you mean 'relu'"),
        ("relu(1)", "activation 'relu(1)'"),
        ("leaky_relu(incline=1)", "unexpected keyword argument 'incline'"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("vgjax.names:parze", "vgjax.names has no 'parze'; did you mean 'parse'"),
        ("math:pi", "'math:pi' is not callable"),
        ("jax.nn:", "jax.nn has no ''"),
        (":relu", "cannot import ''"),
    ],
)
def test_messages(named, message):
    """What cannot be resolved says why, in one line."""
    with pytest.raises(ValueError) as caught:
        activation(named)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_import_path_and_callable():
    """`module:function` is imported, dots go deeper, and a callable is itself."""
    assert activation("jax.numpy:tanh") is jnp.tanh
    assert names.import_function("thing", "os:path.join") is os.path.join
    own = lambda x: x  # noqa: E731
    assert activation(own) is own and initializer(own) is own


def test_modules_of_the_working_directory(tmp_path, monkeypatch):
    """A user's file next to the command is found; one that breaks at import is reported."""
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_shapes.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "my_broken_shapes.py").write_text("1 / 0\n")
    assert activation("my_own_shapes:double")(2) == 4
    with pytest.raises(ValueError, match=r"my_broken_shapes.*division by zero"):
        activation("my_broken_shapes:double")


def test_text_of():
    """Names stay; functions become import paths that resolve to them again."""
    assert names.text_of("relu") == "relu"
    assert names.text_of(names.parse) == "vgjax.names:parse"
    assert names.import_function("thing", names.text_of(names.parse)) is names.parse


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_row(kind, name):
    """It says what it is and whence, its name can be written, and its defaults build the right kind of thing."""
    row = TABLES[kind][name]
    assert row.summary.strip() and row.source.strip()
    assert names.parse(name) == (name, (), {})
    if kind == "dataset":  # building one may need files; test_data does it
        assert callable(row.make)
        return
    built = row.make(1.0) if kind == "clip" else names.resolve(kind, TABLES[kind], name)
    if kind == "activation":
        x = jnp.linspace(-2, 2, 6).reshape(2, 3)
        assert built(x).shape == x.shape and built(x).dtype == x.dtype
    elif kind == "initializer":
        assert built(jax.random.key(0), (4, 3), jnp.float32).shape == (4, 3)
    elif kind in ("optimizer", "clip"):
        assert isinstance(built, optax.GradientTransformation)
    else:
        assert np.isfinite(float(built(10)(0)))


ARGUMENTS = ["uniform(limit=2)", "normal(0.5)", "orthogonal(gain=3)"]
ARGUMENTS += [
    f"mxnet_xavier({kind}, factor_type={factor}, magnitude=2.34)"
    for kind in ("uniform", "gaussian")
    for factor in ("in", "avg")
]
ARGUMENTS += ["mxnet_xavier(factor_type=out)"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(600, 300), (300, 600)])
@pytest.mark.parametrize("named", [*INITIALIZERS, *ARGUMENTS])
def test_every_initializer_draws_its_variance(named, shape):
    """Mean 0 and Var(W) as the row's formula says, within five standard errors; other keys, other draws."""
    init, n = initializer(named), shape[0] * shape[1]
    w, other = (np.asarray(init(jax.random.key(k), shape, jnp.float32), np.float64) for k in (0, 1))
    variance = weight_variance(named, *shape)
    assert w.shape == shape and not np.allclose(w, other)
    assert abs(w.mean()) < 5 * np.sqrt(variance / n)
    standard_error = variance * np.sqrt(2 / n)  # of a normal; bounded distributions have less
    assert np.mean(w**2) == pytest.approx(variance, abs=5 * standard_error, rel=1e-5)
    assert np.array_equal(w, init(jax.random.key(0), shape, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("named", INITIALIZERS)
def test_every_initializer_honours_its_dtype(named):
    """JAX's own signature: key, shape, dtype."""
    with jax.enable_x64(True):
        assert initializer(named)(jax.random.key(0), (5, 2), jnp.float64).dtype == jnp.float64
    assert initializer(named)(jax.random.key(0), (5, 2), jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(
    ("named", "bound"),
    [
        ("uniform(0.07)", 0.07),
        ("mxnet_xavier", np.sqrt(3 / ((200 + 100) / 2))),
        ("mxnet_xavier(factor_type=in, magnitude=2.34)", np.sqrt(2.34 / 200)),
        ("glorot_uniform", np.sqrt(6 / 300)),
        ("he_uniform", np.sqrt(6 / 200)),
        ("lecun_uniform", np.sqrt(3 / 200)),
    ],
)
def test_bounds_of_the_uniform_ones(named, bound):
    """U(±limit): both ends are reached, neither is passed."""
    w = np.asarray(initializer(named)(jax.random.key(0), (200, 100), jnp.float32))
    assert bound * 0.999 < w.max() <= bound * 1.000001 and -bound * 1.000001 <= w.min() < -bound * 0.999


@pytest.mark.parametrize(("named", "is_truncated"), [("he_normal", True), ("mean_field", False), ("normal(1)", False)])
def test_truncated_normals(named, is_truncated):
    """Those that are truncated end at 2.27 standard deviations, those that are not go beyond 3.5."""
    w = np.asarray(initializer(named)(jax.random.key(0), (300, 200), jnp.float32), np.float64)
    largest = np.abs(w).max() / np.sqrt(weight_variance(named, 300, 200))
    assert 2.2 < largest < 2.28 if is_truncated else largest > 3.5


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_orthogonal_is_orthogonal(shape):
    """W Wᵀ or Wᵀ W is gain² · identity."""
    w = np.asarray(initializer("orthogonal(2)")(jax.random.key(0), shape, jnp.float32), np.float64)
    product = w.T @ w if shape[0] > shape[1] else w @ w.T
    np.testing.assert_allclose(product, 4 * np.eye(20), atol=1e-5)


def test_refused_arguments():
    """MXNet's words and no others."""
    with pytest.raises(ValueError, match=r"factor_type 'inn' is not allowed; did you mean 'in'"):
        initializer("mxnet_xavier(factor_type=inn)")


def test_variance_of_a_strangers_initializer():
    """Measured where there is no formula, at any magnitude; zero for zeros."""
    for size in (1.0, 1e-30):

        def own(key, shape, dtype, size=size):
            return size * jax.random.normal(key, shape, dtype)

        assert weight_variance(own, 100, 100) == pytest.approx(size**2, rel=0.03, abs=0)
    assert weight_variance("jax.nn.initializers:zeros", 3, 2) == 0
    assert is_data_dependent("lsuv") and not is_data_dependent("orthogonal") and not is_data_dependent(own)
