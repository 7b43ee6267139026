"""Numbers at the edge, end to end: what is right there, what is undefined and said so, and nothing else on stderr."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
import small
import xarray as xr
from paths import SUPPORT, TOP

import vgjax
from vgjax import analysis, figures
from vgjax.command.printing import print_run, print_signals
from vgjax.config import Config, Hypers
from vgjax.data.catalogue import Dataset, empty_classes
from vgjax.statistics import weights

pytestmark = pytest.mark.optimised

LINEAR = Config(
    dataset="small",
    hidden=(8, 8, 8),
    activation="linear",
    batch_size=small.BATCH,
    epochs=1,
    shuffle="never",
    cadence="every(1)",
    record=("all",),
)
SPLITS = ("train", "test")
CLIPPED = dataclasses.replace(LINEAR, clip="global_norm")
STILL = Hypers(learning_rate=0.0)


def scaled(size: float, labels: int | None = None, classes: int = small.CLASSES) -> Dataset:
    """The small data set with inputs of another size; all of one class, if asked for."""
    data = small.dataset()
    changes = {f"{split}_inputs": (getattr(data, f"{split}_inputs") * size).astype(np.float32) for split in SPLITS}
    if labels is not None:
        changes |= {f"{split}_labels": 0 * getattr(data, f"{split}_labels") + labels for split in SPLITS}
    return dataclasses.replace(data, classes=classes, **changes)


def empty() -> Dataset:
    """Two of its five classes have no example."""
    return dataclasses.replace(small.dataset(), classes=5)


def first_batch(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return data.train_inputs[: small.BATCH].astype(np.float64), data.train_labels[: small.BATCH]


def start_of(result: vgjax.Result) -> dict:
    """The parameters of the first lane in float64."""
    return reference.as_float64(jax.tree.map(lambda x: x[0], result.variables["params"]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_run_at_every_magnitude(size):
    """Inputs, and with them gradients, of that size: statistics are those of back-propagation in float64."""
    data = scaled(size)
    result = vgjax.run(LINEAR, STILL, dataset=data)
    have = result.history.isel(lane=0, record=0)
    params, (x, y) = start_of(result), first_batch(data)
    _, gradients, share, _ = reference.loss_and_gradients(params, x, y, activation="linear")
    assert float(have["accuracy"]) == pytest.approx(share)
    for i in range(1, 5):
        one, g = have.sel(layer=f"layer_{i}"), gradients[f"layer_{i}"]["kernel"]
        rms = np.sqrt(np.mean(g**2))
        for name, want in {
            "gradient_norm": np.linalg.norm(g),
            "gradient_rms": rms,
            "gradient_std": g.std(),
            "gradient_max": np.abs(g).max(),
            "clipped_norm": np.linalg.norm(g),
            "weight_norm": np.linalg.norm(params[f"layer_{i}"]["kernel"]),
        }.items():
            assert float(one[name]) / want == pytest.approx(1, rel=2e-4), name
        assert float(one["gradient_log10_rms"]) == pytest.approx(np.log10(rms), rel=0, abs=1e-4)
        assert float(one["gradient_float16_underflow"]) == pytest.approx(np.mean(np.abs(g) <= 2.0**-25))
        assert float(one["gradient_zero_fraction"]) == 0 and np.isnan(one["update_cosine"])


@pytest.mark.slow
def test_undefined_is_nan_and_said_so(tmp_path, capsys):
    """Weights of 0: cosines, ratios and shares of nothing are NaN on disk, and "undefined" in words."""
    folder = tmp_path / "run"
    hypers = Hypers(sigma_w=0.0)
    history = vgjax.run(LINEAR, hypers, 2, dataset=small.dataset(), folder=folder, tensorboard="none").history
    start = history.isel(record=0)
    for name in ("clipped_cosine", "update_cosine", "update_ratio", "gradient_float16_underflow", "decay_alignment"):
        assert np.isnan(start[name]).all(), name
    assert (start["gradient_norm"] == 0).all() and (start["gradient_log10_rms"] == -np.inf).all()
    xr.testing.assert_identical(vgjax.load(folder)["update_ratio"], history["update_ratio"])
    signals = analysis.signals(history, small.dataset())
    print_run(history, folder, False)
    print_signals(signals)
    out = capsys.readouterr().out
    assert "decay       undefined decades" in out and "predicted undefined" in out and " nan" not in out
    assert figures.write_signal(tmp_path / "signal", signals, analysis.SIGNALS).stat().st_size > 10_000
    assert np.isnan(analysis.layer_ratio(history)).all() and np.isnan(analysis.layer_spread(history)).all()
    assert vgjax.diagnose(history, small.dataset()).findings[0].rule == "constant"


@pytest.mark.slow
def test_a_network_of_nan_has_no_accuracy(capsys):
    """Argmax would take NaN for the first class; a sound lane beside it keeps its own."""
    history = vgjax.run(LINEAR, [Hypers(1e30), Hypers(0.01)], dataset=small.dataset()).history
    for name in ("train_accuracy", "validation_accuracy"):
        assert np.isnan(history[name]).isel(evaluation=-1).values.tolist() == [True, False], name
    assert np.isnan(history["accuracy"]).isel(record=-1).values.tolist() == [True, False]
    print_run(history, Path("run"), False)
    kept = float(history["validation_accuracy"].isel(lane=1, evaluation=-1))
    assert f"validation accuracy {kept:.4f}, mean over 1 of 2 lanes\n" in capsys.readouterr().out


@pytest.mark.slow
def test_dead_is_not_said_of_nan():
    """JAX's slope of ReLU at NaN is 0; such a unit is not dead, it is not a number."""
    config = dataclasses.replace(LINEAR, activation="relu", record=("activations", "decay"))
    history = vgjax.run(config, Hypers(1e30), dataset=small.dataset()).history
    last = history.isel(lane=0, record=-1, layer=slice(None, -1))  # the last layer has no activation
    broken = np.isnan(last["activation_mean"])
    assert broken.any()
    for name in ("activation_dead_fraction", "activation_saturated_fraction"):
        assert np.isnan(last[name])[broken].all(), name


@pytest.mark.slow
@pytest.mark.parametrize(("size", "threshold", "share"), [(1e30, 1.0, 1), (1.0, 1.0, 0), (1.0, 0.0, 1)])
def test_clipping_that_makes_zeros_is_reported(size, threshold, share, capsys):
    """A norm beyond float32 makes zeros of what is divided by it: the history, the lines and the diagnosis say so."""
    data = scaled(size)
    history = vgjax.run(CLIPPED, Hypers(0.1, clip_threshold=threshold), dataset=data).history
    assert (history["clipped_to_zero"] == share).all() and (history["first_bad_step"] < 0).all()
    stands = (history["weight_norm"].isel(record=-1) == history["weight_norm"].isel(record=0)).all()
    assert bool(stands) == bool(share)
    print_run(history, Path("run"), False)
    assert ("clipping makes zeros of gradients in 100 % of the steps" in capsys.readouterr().out) == bool(share)
    found = {finding.rule: finding for finding in vgjax.diagnose(history, data).findings}
    assert ("clipping" in found) == bool(share) and "learning_rate_low" not in found
    if share:
        assert ("overflows float32" in found["clipping"].evidence) == (size > 1)


@pytest.mark.slow
def test_losses_near_the_end_of_float32():
    """A mean whose sum would overflow is right; a loss beyond float32, with finite logits, is said to be bad."""
    result = vgjax.run(LINEAR, STILL, dataset=small.dataset())
    params, data = start_of(result), small.dataset()
    up = params["layer_4"]["kernel"][:, 0]
    params["layer_4"]["kernel"] = np.stack([up, -up, 0 * up], axis=1)  # a gap is up to twice a logit
    n = 3 * small.BATCH
    x, y = data.train_inputs[:n].astype(np.float64), data.train_labels[:n]
    logits = reference.network(params, x, activation="linear")[0]
    gaps = logits.max(1) - logits[np.arange(n), y]
    for most, is_bad in ((6e37, False), (5e38, True)):
        factor = most / gaps.max()
        assert np.abs(logits).max() * factor < 3.4e38
        kernels = {k: dict(v) for k, v in params.items()}
        kernels["layer_4"]["kernel"] = params["layer_4"]["kernel"] * factor
        start = jax.tree.map(lambda a: np.asarray(a[None], np.float32), kernels)
        history = vgjax.run(LINEAR, STILL, dataset=data, variables={"params": start}).history.isel(lane=0)
        where = [history[f"first_bad_{what}"].item() for what in ("step", "layer", "in")]
        if is_bad:
            first = int(np.argmax(gaps * factor > np.finfo(np.float32).max)) // small.BATCH
            assert np.isinf(history["train_loss"][0]) and where[1:] == ["layer_4", "forward"] and where[0] <= first
        else:
            assert gaps.sum() * factor > np.finfo(np.float32).max and where[0] == -1
            assert float(history["train_loss"][0]) / (gaps.mean() * factor) == pytest.approx(1, rel=1e-4)


def test_equal_examples_have_no_noise():
    """The variance that rounding leaves has either sign; the ratio to it is never negative."""
    data = small.dataset()
    same = {f"{split}_inputs": 0 * getattr(data, f"{split}_inputs") + np.float32(0.7) for split in SPLITS}
    same |= {f"{split}_labels": 0 * getattr(data, f"{split}_labels") for split in SPLITS}
    history = vgjax.run(LINEAR, Hypers(0.1), 2, dataset=dataclasses.replace(data, **same)).history
    ratio = history["gradient_signal_to_noise"]
    assert not (ratio < 0).any()


@pytest.mark.slow
def test_a_batch_of_one_behind_batch_norm():
    """Each unit is its own mean: noise is undefined, and the diagnosis names why nothing reaches the layers."""
    config = dataclasses.replace(LINEAR, batch_size=1, norm="batch", steps=2)
    history = vgjax.run(config, Hypers(0.1), dataset=small.dataset()).history
    assert np.isnan(history["gradient_signal_to_noise"]).all()
    found = vgjax.diagnose(history, small.dataset()).findings[0]
    assert (found.rule, found.cause) == ("vanishing", "batch norm of a single example")


@pytest.mark.slow
def test_one_unit_and_one_class():
    """The narrowest network there is: its deviations are 0, its loss too."""
    config = dataclasses.replace(LINEAR, hidden=(1, 1), steps=1)
    history = vgjax.run(config, Hypers(0.1), dataset=scaled(1.0, labels=0, classes=1)).history
    assert (history["gradient_std"].sel(layer=["layer_2", "layer_3"]) == 0).all() and (history["loss"] == 0).all()
    assert np.isfinite(history["activation_std"]).all() and (history["gradient_zero_fraction"] == 1).all()


@pytest.mark.slow
def test_depth_300():
    """Gradients that decay over 300 layers: the layers' log₁₀ RMS is that of back-propagation in float64."""
    config = dataclasses.replace(
        LINEAR, hidden=(8,) * 300, initializer="orthogonal", record=("norms", "deltas"), steps=1, bias=False
    )
    result = vgjax.run(config, Hypers(0.0, sigma_w=0.9), dataset=small.dataset())
    history = result.history.isel(lane=0, record=0)
    params = {}
    for name, module in start_of(result).items():
        if name.startswith("layers_"):
            kernels = module["layer"]["kernel"]
            params |= {f"layer_{i}": {"kernel": w} for i, w in enumerate(kernels, 2)}
        else:
            params[name] = module
    x, y = first_batch(small.dataset())
    _, gradients, *_ = reference.loss_and_gradients(params, x, y, activation="linear")
    want = [np.log10(np.sqrt(np.mean(gradients[f"layer_{i}"]["kernel"] ** 2))) for i in range(1, 302)]
    np.testing.assert_allclose(history["gradient_log10_rms"], want, rtol=0, atol=1e-3)
    assert want[0] < -10
    assert float(analysis.decay(history["delta_rms"])) == pytest.approx(-np.log10(0.9), rel=0.05)


def test_estimates_of_what_is_not_finite():
    """A mean of infinities has no interval, and the decay of a vanished layer is infinite."""
    found = analysis.estimate(np.array([np.inf, 1.0, 2.0]))
    assert found.value == np.inf and np.isnan([found.low, found.high]).all()
    rows = xr.DataArray([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, np.inf, 1.0], [4.0, 2.0, 1.0, 1.0]], dims=("lane", "layer"))
    np.testing.assert_allclose(analysis.decay(rows), [np.inf, np.nan, -np.log10(2)])
    draws = {name: (("draw", "layer"), np.full((4, 4), np.inf)) for name in analysis.SIGNALS}
    band = analysis.band(xr.Dataset(draws, {"layer": [f"layer_{i}" for i in range(1, 5)]}))
    assert np.isnan(band["predicted_decay"])


@pytest.mark.slow
def test_subnormal_inputs_standardised():
    """Devices make zeros of them; they are taken as constant, and not divided by nothing."""
    config = dataclasses.replace(LINEAR, scaling="standardised")
    history = vgjax.run(config, STILL, dataset=scaled(1e-40)).history
    assert (history["first_bad_step"] == -1).all() and (history["activation_std"] == 0).all()


def test_data_that_are_not_numbers():
    """Refused by name: which split, how many, and where the first one is."""
    inputs = small.dataset().train_inputs.copy()
    inputs[3, 2], inputs[7, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"'small': its train split has 2 of 280 inputs .* first in example 3$"):
        dataclasses.replace(small.dataset(), train_inputs=inputs)
    assert empty_classes(empty()) == [3, 4] and empty_classes(small.dataset()) == []


@pytest.mark.slow
def test_64_bit_mode_and_a_silent_process(tmp_path):
    """JAX_ENABLE_X64, every warning an error: the same history as here, in float32; classes without examples named."""
    command = [sys.executable, "-W", "error", "-m", "vgjax", "train", "--dataset", "test_edges:empty"]
    options = ["--hidden", "8", "6", "--activation", "tanh", "--batch-size", "16", "--epochs", "1", "--record", "norms"]
    options += [
        "--clip",
        "global_norm",
        "--schedule",
        "cosine",
        "--tensorboard",
        "none",
        "--out",
        str(tmp_path / "run"),
    ]
    path = os.pathsep.join([os.path.dirname(__file__), str(SUPPORT), str(TOP), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*command, *options],
        env=os.environ | {"JAX_ENABLE_X64": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stderr.splitlines()) == 1 and run.stderr.startswith("step 3 of 3"), run.stderr
    assert "classes     2 of 5 have no training example: 3, 4\n" in run.stdout
    there = vgjax.load(tmp_path / "run")
    config = dataclasses.replace(
        small.CONFIG, hidden=(8, 6), initializer="he_normal", optimizer="sgd", epochs=1, cadence="epoch",
        record=("norms",), clip="global_norm", schedule="cosine",
    )  # fmt: skip
    mine = vgjax.run(config, dataset=empty()).history
    for name in ("gradient_rms", "train_loss", "validation_accuracy"):
        assert there[name].dtype == np.float32
        np.testing.assert_allclose(there[name], mine[name], rtol=1e-5)


def test_64_bit_gradients_can_be_watched():
    """In a loop of one's own under JAX_ENABLE_X64: norms at any size that float32 holds."""
    with jax.enable_x64(True):
        g = np.random.default_rng(0).normal(size=(20, 10)) * 1e-30
        found = weights.norm_statistics({"layer_1": {"kernel": jax.numpy.asarray(g)}})
    assert float(found["gradient_norm"][0]) / np.linalg.norm(g) == pytest.approx(1, rel=1e-6)
