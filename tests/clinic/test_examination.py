"""The clinic tells initializers apart, refuses in one line what breaks its contract, and places what it examines."""

import functools
import json
import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import integrate

from vgjax import theory
from vgjax.activations import kinks
from vgjax.analysis import Estimate
from vgjax.clinic import draws, examination, trials
from vgjax.clinic.page import Picture, Report, write_report
from vgjax.clinic.verdicts import Verdict
from vgjax.command.cli import main
from vgjax.data.catalogue import load
from vgjax.initializers import INITIALIZERS
from vgjax.theory.criticality import critical_line

PATIENTS = """
import itertools
import jax, jax.numpy as jnp, numpy as np

def scaled(key, shape, dtype, variance):
    return jax.random.normal(key, shape, dtype) * jnp.asarray(variance ** 0.5, dtype)

def he(key, shape, dtype=jnp.float32): return scaled(key, shape, dtype, 2 / shape[0])
def he_fan_out(key, shape, dtype=jnp.float32): return scaled(key, shape, dtype, 2 / shape[1])
def he_above(key, shape, dtype=jnp.float32): return scaled(key, shape, dtype, 2.4 / shape[0])
def small(key, shape, dtype=jnp.float32): return scaled(key, shape, dtype, 0.03 ** 2)
def strange(key, shape, dtype=jnp.float32): return scaled(key, shape, dtype, shape[0] ** -0.5)
def constant(key, shape, dtype=jnp.float32): return jnp.full(shape, 0.05, dtype)
def no_key(key, shape, dtype=jnp.float32): return he(jax.random.key(7), shape, dtype)
def ortho(key, shape, dtype=jnp.float32): return jax.nn.initializers.orthogonal()(key, shape, dtype)
def alike(key, shape, dtype=jnp.float32):
    return (he(key, shape, dtype) + he(jax.random.key(7), shape, dtype) / 4)
def low_rank(key, shape, dtype=jnp.float32):
    a, b = jax.random.split(key)
    return scaled(a, (shape[0], 9), dtype, 2 / shape[0]) @ scaled(b, (9, shape[1]), dtype, 1 / 9)
def elsewhere(key, shape, dtype=jnp.float32): return jnp.asarray(np.random.normal(size=shape), dtype)

def raising(key, shape, dtype): raise RuntimeError("no way\\nat all")
def transposed(key, shape, dtype): return jnp.ones(shape[::-1], dtype)
def fixed(key, shape, dtype): return jnp.ones((3, 2), dtype)
def single(key, shape, dtype): return jax.random.normal(key, shape, jnp.float32)
def half(key, shape, dtype): return jax.random.normal(key, shape, jnp.float16)
def nan(key, shape, dtype): return he(key, shape, dtype).at[-1, -1].set(jnp.nan)
def infinite_when_tall(key, shape, dtype): return he(key, shape, dtype) / (256 - shape[0])

def kinked(x): return jnp.where(x < 1, jnp.tanh(x), jnp.tanh(1.0) + 2 * (x - 1))
def root(x): return jnp.sqrt(x)
"""


@pytest.fixture(autouse=True, scope="module")
def patients(tmp_path_factory):
    """A module of functions to examine."""
    folder = tmp_path_factory.mktemp("patients")
    (folder / "clinic_patients.py").write_text(PATIENTS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@functools.cache
def drawn(name):
    return draws.draw(f"clinic_patients:{name}")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Small networks and few contestants, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "DEEP", replace(trials.DEEP, hidden=(16,) * 3))
    monkeypatch.setattr(trials, "TRAINED", replace(trials.TRAINED, hidden=(16,) * 3, steps=3))
    contestants = {name: INITIALIZERS[name] for name in ("he_normal", "orthogonal", "lsuv")}
    monkeypatch.setattr(trials, "INITIALIZERS", contestants)


# Draws


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "law", "k", "like"),
    [
        ("he", "{}/fan_in", 2.0, "he_normal's variance"),
        ("he_fan_out", "{}/fan_out", 2.0, "he_normal's variance with fan_out mistaken for fan_in"),
        ("he_above", "{}/fan_in", 2.4, "20 % above he_normal's variance"),
        ("small", "{}, independent of fan_in and fan_out", 9e-4, "normal(0.03)'s variance"),
        ("no_key", "{}/fan_in", 2.0, "he_normal's variance"),
        ("ortho", "{}/max(fan_in, fan_out)", 1.0, "orthogonal's variance"),
        ("low_rank", "{}/fan_in", 2.0, "he_normal's variance"),
    ],
)
def test_variance_law_and_whose_it_is(name, law, k, like):
    found = drawn(name)
    ((text, factor),) = draws.laws(found).items()
    assert text == law and factor.low <= k <= factor.high and factor.high / factor.low < 1.2
    assert str(draws.nearest_builtin(found)) == like


@pytest.mark.slow
def test_a_law_of_another_kind_is_not_forced_into_one():
    found = drawn("strange")
    assert draws.laws(found) == {} and draws.nearest_builtin(found) is None
    for (fan_in, _), one in draws.variances(found).items():
        assert one.low <= fan_in**-0.5 <= one.high


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in INITIALIZERS.items() if not row.data_dependent])
def test_every_builtin_is_known_by_its_own_variance(name):
    like = draws.nearest_builtin(draws.draw(name))
    assert like.agrees and not like.swapped
    ours, theirs = INITIALIZERS[name].variance, INITIALIZERS[like.name].variance
    np.testing.assert_allclose([ours(*s) for s in draws.SHAPES], [theirs(*s) for s in draws.SHAPES], rtol=1e-12)


@pytest.mark.slow
def test_keys():
    assert drawn("constant").constant and not drawn("he").constant
    assert drawn("no_key").ignores_key and not drawn("he").ignores_key and not drawn("ortho").ignores_key
    assert not drawn("elsewhere").repeatable and drawn("he").repeatable
    assert draws.key_correlation(drawn("alike")).low > 2  # r = 1/17, r √N ≥ 7
    for name in ("he", "ortho", "low_rank"):
        r = draws.key_correlation(drawn(name))
        assert r.low <= 1 <= r.high


@pytest.mark.slow
def test_spectra():
    tall = draws.SHAPES[1]
    assert draws.spectrum(drawn("ortho"), tall).all_equal
    for name in ("he", "no_key"):
        found = draws.spectrum(drawn(name), tall)
        assert found.as_independent and not found.all_equal
    found = draws.spectrum(drawn("low_rank"), tall)
    assert found.over_shuffled.low > 2 and not found.as_independent


def test_half_precision_that_lapack_lacks_is_told():
    assert list(drawn("ortho").refused) == ["bfloat16", "float16"] and drawn("he").refused == {}


@pytest.mark.parametrize("shape", [(128, 128), (256, 64), (64, 256)])
def test_density_of_marchenko_and_pastur(shape):
    """It integrates to 1 with a mean square of 1, as the singular values over their RMS do."""
    edge = np.sqrt(min(shape) / max(shape))
    for power, wanted in ((0, 1), (2, 1), (4, 1 + edge**2)):
        got, _ = integrate.quad(lambda s, p=power: s**p * draws.marchenko_pastur(s, shape), 1 - edge, 1 + edge)
        assert got == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_intervals_hold_together_as_often_as_they_say():
    """Of 400 sets of normal draws, mean and variance lie in all shapes' intervals 99 times of 100."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        matrices = {shape: rng.normal(size=(draws.N_DRAWS, 8, 8)) for shape in draws.SHAPES}
        one = draws.DrawnMatrices(matrices, {}, True, draws.N_DRAWS)
        ends = [(e, 1) for e in draws.variances(one).values()] + [(e, 0) for e in draws.means(one).values()]
        held.append(
            [all(e.low <= truth <= e.high for e, truth in ends[:4]), all(e.low <= t <= e.high for e, t in ends[4:])]
        )
    error = np.sqrt(draws.LEVEL * (1 - draws.LEVEL) / 400)
    assert (np.abs(np.mean(held, axis=0) - (1 - draws.LEVEL)) < 4 * error).all()


# Networks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phi", "sigma_w2", "name", "chi1"),
    [
        ("relu", (1.0, 0.99, 1.01), "ordered", 0.5),
        ("relu", (2.0, 1.99, 2.01), "critical", 1.0),
        ("relu", (3.0, 2.99, 3.01), "chaotic", 1.5),
        ("tanh", (1.0, 0.99, 1.01), "critical", 1.0),
        ("tanh", (0.5, 0.49, 0.51), "ordered", 0.5),
        ("linear", (1.2, 1.19, 1.21), "chaotic", 1.2),
        ("gelu", (4.0, 4.0, 4.0), "chaotic", 2.0),  # χ₁ = 1 at q = 0, but lengths grow and there half the units are on
    ],
)
def test_phase(phi, sigma_w2, name, chi1):
    found = trials.phase(phi, Estimate(*sigma_w2, 32))
    assert found.name == name and found.chi1.value == pytest.approx(chi1, rel=1e-4)
    if name != "critical":
        assert 0.999 * found.depth[0] <= 6 / abs(np.log(chi1)) <= 1.001 * found.depth[1]


def test_critical_line_is_critical():
    """At points along it the fixed point of the length map has χ₁ = 1."""
    sigma_w2, sigma_b2 = critical_line("tanh", 1.0)
    assert sigma_b2[0] == 0 and sigma_b2[-1] > 0.9
    for i in np.linspace(50, len(sigma_w2) - 1, 4).astype(int):
        assert theory.fixed_point("tanh", sigma_w2[i], sigma_b2[i]).chi1 == pytest.approx(1, rel=1e-6)


@pytest.mark.slow
def test_kinks():
    """Where φ′ jumps: at 0 for ReLU, nowhere for smooth functions, at 1 for one's own."""
    assert kinks("relu") == (0.0,) and kinks("tanh") == kinks("gelu") == ()
    assert kinks("clinic_patients:kinked") == (1.0,)


@pytest.mark.slow
def test_contest_places_by_paired_differences(small, monkeypatch):
    """Accuracies are those that were measured; the order follows from differences seed by seed."""
    contest = trials.Contest("clinic_patients:he", load("digits"))
    base = np.linspace(0.2, 0.9, trials.N_SEEDS)  # seeds differ much more than initializers
    jitter = 1e-4 * np.sin(np.arange(trials.N_SEEDS))
    accuracy = np.stack([base, base + 0.01 + jitter, base - 0.01 - jitter, base + jitter - jitter.mean()])
    history = xr.Dataset({"validation_accuracy": (("lane", "evaluation"), accuracy.reshape(-1, 1))})
    monkeypatch.setattr(trials, "run", lambda *_, **__: type("Result", (), {"history": history}))
    place = contest.place("tanh")
    assert (place.best, place.worst) == (2, 3) and len(place.accuracy) == 4
    np.testing.assert_array_equal(place.accuracy["clinic_patients:he"], base)


@pytest.mark.slow
def test_contest_draws_layers_apart_and_fits_lsuv(small):
    contest = trials.Contest("orthogonal", load("digits"))
    assert contest.contestants == ["orthogonal", "he_normal", "lsuv"]
    kernels = contest.kernels("he_normal")
    assert kernels.shape == (trials.N_SEEDS, 2, 16, 16)
    assert abs(np.corrcoef(kernels.reshape(2 * trials.N_SEEDS, -1)) - np.eye(2 * trials.N_SEEDS)).max() < 5 / 16
    params = contest._fitted(replace(trials.TRAINED, initializer="lsuv"), contest.starts["lsuv"])["params"]
    x = load("digits").train_inputs[: trials.TRAINED.batch_size].astype(np.float64)
    mean, std = (getattr(load("digits").train_inputs.astype(np.float64), f)(0) for f in ("mean", "std"))
    z = (x - mean) / np.where(std > 0, std, 1) @ params["layer_1"]["kernel"][0]
    assert z.std() == pytest.approx(1, rel=1e-4)


# The command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("clinic_patients:raising", ["'clinic_patients:raising' cannot be used: no way"]),
        ("clinic_patients:transposed", ["gives float32[2,3]; allowed: float32[3,2]"]),
        ("clinic_patients:fixed", ["gives float32[3,2]; allowed: float32[128,128]"]),
        ("clinic_patients:half", ["gives float16[3,2]; allowed: float32[3,2]"]),
        ("clinic_patients:single", ["gives float32[256,64]; allowed: bfloat16[256,64]"]),
        ("clinic_patients:nan", ["gives NaN or infinity in float32[128,128]"]),
        ("clinic_patients:infinite_when_tall", ["gives NaN or infinity in float32[256,64]"]),
        ("clinic_patients:he --activation rellu", ["did you mean 'relu'"]),
        ("clinic_patients:he --activation clinic_patients:root", ["clinic_patients:root", "at -20"]),
        ("he_norml", ["did you mean 'he_normal'"]),
        ("", ["nothing to examine"]),
        ("--activation clinic_patients:root", ["clinic_patients:root", "allowed: finite"]),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(small, capsys, tmp_path, words, parts):
    assert main(["clinic", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vgjax: ") and err.count("\n") == 1
    assert [part for part in parts if part not in err] == [] and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_examination_of_an_initializer(small, capsys, tmp_path):
    """The sentence on top, a table, a page that needs nothing else, and every number as JSON."""
    assert main(["clinic", "clinic_patients:he_fan_out"]) == 0
    out = capsys.readouterr().out
    told = "he_normal's variance with fan_out mistaken for fan_in. It is chaotic with tanh, critical with relu"
    assert told in out and "accuracy with sigmoid" in out
    folder = tmp_path / "clinic" / "clinic_patients_he_fan_out"
    assert sorted(path.name for path in folder.iterdir()) == ["clinic.html", "clinic.json"]
    page = (folder / "clinic.html").read_text()
    assert told.replace("'", "&#39;") in page and not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<img") == 5
    numbers = json.loads((folder / "clinic.json").read_text())
    assert numbers["name"] == "clinic_patients:he_fan_out" and len(numbers["signals"]["relu"]["decay"]) == 1
    assert len(numbers["places"]["tanh"]["accuracy"]["lsuv"]) == trials.N_SEEDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence", "faults"),
    [
        ("he", "he_normal's variance. It is chaotic with tanh", 0),
        ("he_above", "20 % above he_normal's variance", 0),
        ("constant", "a constant: all units of a layer compute the same", 1),
        ("no_key", "ignores its key: layers of one shape get the same weights", 1),
        ("ortho", "orthogonal's variance, orthogonal. It is critical with tanh", 0),
    ],
)
def test_initializers_are_told_apart(small, name, sentence, faults):
    report = examination.examine_initializer(f"clinic_patients:{name}", ("tanh",))
    assert sentence in report.sentence
    assert len([v for v in report.verdicts if v.good is False and "δ" not in v.what]) == faults
    assert all(picture.draw() is not None for picture in report.pictures)


@pytest.mark.slow
def test_examination_of_an_activation(small, capsys, tmp_path):
    """ReLU's line is a point at σ_w² = 2; its own function too gets a gain."""
    assert main(["clinic", "--activation", "relu", "clinic_patients:kinked"]) == 0
    out = capsys.readouterr().out
    assert "relu: χ₁ = 1 at σ_w = 1.414 and q* = 0. " in out and "kinks at 0." in out and "kinks at 1." in out
    numbers = json.loads((tmp_path / "clinic" / "relu" / "clinic.json").read_text())
    assert numbers["critical_sigma_w2"] == pytest.approx(2, rel=1e-9)
    assert {name: one["name"] for name, one in numbers["phases"].items()} == {
        "LeCun, Glorot": "ordered",
        "He": "critical",
    }
    assert (tmp_path / "clinic" / "clinic_patients_kinked" / "clinic.html").is_file()


def test_names_are_escaped_on_the_page(small, tmp_path):
    report = Report("<b>&", "<script>", (Verdict("<i>", 1.0, 0.5, 2.0, "<u>"),), (), "", {})
    page = write_report(report, tmp_path).read_text()
    assert not any(tag in page for tag in ("<b>", "<script>", "<i>", "<u>"))


def test_nothing_is_written_when_a_figure_fails(small, tmp_path):
    def fail():
        raise ValueError("no figure")

    report = Report("a", "b", (), (Picture("c", fail),), "", {})
    with pytest.raises(ValueError, match="no figure"):
        write_report(report, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_callables_are_examined_from_python(small):
    def mine(key, shape, dtype=jnp.float32):
        return jax.random.normal(key, shape, dtype) / 10

    report = examination.examine_initializer(mine, ("linear",))
    assert re.search(r"normal\((0.0999|0.1)\)'s variance", report.sentence)
