"""The benchmark's peers train what vgjax trains: PyTorch and Keras step by step against formulas in float64 NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import reference

from experiments import peers
from vgjax.config import Config

CLASSES, N, STEPS, RTOL = 3, 24, 3, 1e-5
CONFIG = Config(
    hidden=(7, 5),
    activation="relu",
    initializer="glorot_uniform",
    optimizer="momentum(0.9)",
    batch_size=N,
    epochs=STEPS,
)
WIDTHS = (4, *CONFIG.hidden, CLASSES)
NETWORKS = {
    "mnist's": (CONFIG, 0.5),
    "iris's": (replace(CONFIG, activation="sigmoid", optimizer="keras_adam"), 0.01),
}


@pytest.fixture(scope="module", params=["torch", "keras"])
def peer(request):
    """The real package's name."""
    _needs(request.param)
    return request.param


@pytest.fixture(scope="module")
def torch():
    """Real PyTorch."""
    return _needs("torch")


def _needs(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        package = pytest.importorskip(name, reason=f"{name} is not installed (extra bench)", exc_type=ImportError)
        if name == "torch":
            pytest.importorskip("torch.utils.tensorboard")
        return package


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(N, dtype=np.int32) % CLASSES
    return (rng.normal(size=(N, WIDTHS[0])) + labels[:, None]).astype(np.float32), labels


def trained(peer, config, learning_rate, data, folder, watch="bare"):
    """The parameters before and after, float64, as the package keeps them: kernels [in, out]."""
    if peer == "keras":
        model = peers.keras_network(config, WIDTHS, learning_rate)
        read = lambda: model.get_weights()  # noqa: E731
        train = lambda: peers.keras_train(model, config, *data, watch, folder)  # noqa: E731
    else:
        import torch

        model, tensors = peers.torch_network(config, WIDTHS), (torch.from_numpy(data[0]), torch.from_numpy(data[1]))
        read = lambda: [p.detach().numpy().T.copy() for p in model.parameters()]  # noqa: E731
        train = lambda: peers.torch_train(model, config, learning_rate, tensors[0], tensors[1].long(), watch, folder)  # noqa: E731
    before = read()
    train()
    return tuple(
        {
            f"layer_{i + 1}": {"kernel": arrays[2 * i].astype(np.float64), "bias": arrays[2 * i + 1].astype(np.float64)}
            for i in range(len(WIDTHS) - 1)
        }
        for arrays in (before, read())
    )


def golden(params, config, learning_rate, data, epsilon):
    """The same steps on whole batches by the formulas of momentum and Adam; and each step's gradients."""
    m, v = ({name: {"kernel": 0.0, "bias": 0.0} for name in params} for _ in range(2))
    params, gradients = {name: dict(of) for name, of in params.items()}, []
    for t in range(1, STEPS + 1):
        _, found, _, _ = reference.loss_and_gradients(
            params, data[0].astype(np.float64), data[1], activation=config.activation
        )
        gradients.append(found)
        for name, of in found.items():
            for kind, g in of.items():
                if config.optimizer == "momentum(0.9)":
                    m[name][kind] = 0.9 * m[name][kind] + g
                    direction = m[name][kind]
                else:
                    m[name][kind] = 0.9 * m[name][kind] + 0.1 * g
                    v[name][kind] = 0.999 * v[name][kind] + 0.001 * g**2
                    unit, root = m[name][kind] / (1 - 0.9**t), np.sqrt(1 - 0.999**t)
                    direction = unit / (np.sqrt(v[name][kind]) / root + epsilon(root))
                params[name][kind] = params[name][kind] - learning_rate * direction
    return params, gradients


@pytest.mark.parametrize("network", NETWORKS)
def test_three_steps(peer, network, data, tmp_path):
    """From their own initial weights, three steps of either network's optimizer on mean cross-entropy."""
    config, learning_rate = NETWORKS[network]
    before, after = trained(peer, config, learning_rate, data, str(tmp_path))
    epsilon = (lambda root: 1e-8) if peer == "torch" else (lambda root: 1e-7 / root)
    expected, _ = golden(before, config, learning_rate, data, epsilon)
    for name, of in after.items():
        for kind, found in of.items():
            moved, should = found - before[name][kind], expected[name][kind] - before[name][kind]
            assert np.linalg.norm(moved - should) < RTOL * np.linalg.norm(should), (name, kind)


@pytest.mark.parametrize("initializer", ["uniform(0.1)", "glorot_uniform"])
def test_initial_weights(peer, initializer):
    """Uniform between the same limits as vgjax's, anew in every layer; zero biases."""
    config = replace(CONFIG, hidden=(90, 90, 80), initializer=initializer)
    widths = (90, *config.hidden, 70)
    if peer == "keras":
        arrays = peers.keras_network(config, widths, 0.1).get_weights()
    else:
        arrays = [p.detach().numpy() for p in peers.torch_network(config, widths).parameters()]
    for weights, bias in zip(arrays[::2], arrays[1::2], strict=True):
        limit = 0.1 if initializer == "uniform(0.1)" else np.sqrt(6 / sum(weights.shape))
        assert 0.99 * limit < np.abs(weights).max() <= limit * (1 + 1e-6)
        assert weights.std() == pytest.approx(limit / np.sqrt(3), rel=0.03)
        assert not bias.any()
    assert np.abs(arrays[0] - arrays[2]).max() > 0.1


def events(folder, kind):
    """tag → events of a kind (scalars, histograms, tensors), read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()
    return {tag: getattr(reader, kind.capitalize())(tag) for tag in reader.Tags()[kind]}


def test_torch_norms(torch, data, tmp_path):
    """One scalar a step and layer: that gradient's L2 norm."""
    before, _ = trained("torch", CONFIG, 0.5, data, str(tmp_path), "norms")
    _, gradients = golden(before, CONFIG, 0.5, data, None)
    found = events(tmp_path, "scalars")
    assert set(found) == set(before)
    for name, scalars in found.items():
        assert [scalar.step for scalar in scalars] == list(range(STEPS))
        expected = [np.linalg.norm(g[name]["kernel"]) for g in gradients]
        np.testing.assert_allclose([scalar.value for scalar in scalars], expected, rtol=RTOL)


def test_torch_histograms(torch, data, tmp_path):
    """One histogram a step and layer, of every entry of that gradient."""
    before, _ = trained("torch", CONFIG, 0.5, data, str(tmp_path), "histograms")
    _, gradients = golden(before, CONFIG, 0.5, data, None)
    found = events(tmp_path, "histograms")
    assert set(found) == set(before)
    for name, histograms in found.items():
        assert [histogram.step for histogram in histograms] == list(range(STEPS))
        for histogram, g in zip(histograms, gradients, strict=True):
            value, kernel = histogram.histogram_value, g[name]["kernel"]
            assert value.num == kernel.size
            assert value.max == pytest.approx(kernel.max(), rel=RTOL)
            assert value.sum_squares == pytest.approx(np.sum(kernel**2), rel=RTOL)


@pytest.mark.parametrize("last_batch, steps, sizes", [("drop", 0, [4] * 5 * 2), ("keep", 0, [4, 4, 4, 4, 4, 3] * 2)])
def test_torch_batches(torch, last_batch, steps, sizes):
    """Every epoch has every example at most once, in another order; the last batch is dropped or kept."""
    config = replace(CONFIG, batch_size=4, epochs=2, steps=steps, last_batch=last_batch)
    batches = [batch.tolist() for batch in peers._torch_batches(config, 23)]
    assert [len(batch) for batch in batches] == sizes
    first, second = (np.concatenate(half).tolist() for half in (batches[: len(sizes) // 2], batches[len(sizes) // 2 :]))
    assert len(set(first)) == len(first) == sum(sizes) // 2 and first != second
    assert len([*peers._torch_batches(replace(config, steps=13), 23)]) == 13


def test_keras_events(data, tmp_path):
    """The TensorBoard callback writes histograms after every epoch."""
    _needs("keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained("keras", CONFIG, 0.5, data, str(tmp_path), "tensorboard")
    found = events(tmp_path / "train", "tensors")
    kernels = [found[tag] for tag in found if tag.endswith("kernel/histogram")]
    assert [len(of) for of in kernels] == [CONFIG.epochs] * (len(WIDTHS) - 1)


def test_keras_trains_whole_batches(data, tmp_path):
    """With the last batch dropped, it makes as many steps as the others."""
    _needs("keras")
    for last_batch, steps in (("drop", 2), ("keep", 3)):
        config = replace(CONFIG, batch_size=10, epochs=1, last_batch=last_batch)
        model = peers.keras_network(config, WIDTHS, 0.1)
        peers.keras_train(model, config, *data, "bare", "")
        assert int(model.optimizer.iterations) == steps


def test_seconds(peer, data):
    """Every way of watching runs, and takes time."""
    seconds = {"torch": peers.torch_seconds, "keras": peers.keras_seconds}[peer]
    for watch in ("bare", "norms", "histograms") if peer == "torch" else ("bare", "tensorboard"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert 0 < seconds(CONFIG, 0.1, *data, watch) < 100
    if peer == "keras":
        assert seconds(CONFIG, 0.1, *data) < seconds(CONFIG, 0.1, *data, cold=True)


@pytest.mark.parametrize("change, message", [
    ({"activation": "tanh"}, "activation 'tanh' is not written for PyTorch and Keras; allowed: relu, sigmoid"),
    ({"replicas": 2}, "replicas 2 .*allowed: 1"),
    ({"norm": "batch"}, "norm 'batch' .*allowed: none"),
    ({"batch_size": 100}, "batch_size 100 .*allowed: 1 to 24"),
])  # fmt: skip
def test_other_work_is_refused(peer, data, change, message):
    """Nothing is measured that is not what the config says."""
    seconds = {"torch": peers.torch_seconds, "keras": peers.keras_seconds}[peer]
    with pytest.raises(ValueError, match=message):
        seconds(replace(CONFIG, **change), 0.1, *data)


def test_keras_has_no_limit_of_steps():
    """A limit of steps is not silently ignored."""
    with pytest.raises(ValueError, match=r"steps 5 .*allowed: 0"):
        peers.keras_network(replace(CONFIG, steps=5), WIDTHS, 0.1)


def test_nothing_is_imported_before_it_is_asked_for():
    """Also not when the packages are there; and a package that cannot be imported is not named."""
    code = "import sys; from experiments import peers; print({'torch', 'keras', 'tensorflow'} & {*sys.modules})"
    code += "; sys.modules |= {'torch': None, 'keras': None}; print(peers.installed())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "{}"]


def test_installed(peer):
    """The package's own version."""
    assert peers.installed()[peer] == sys.modules[peer].__version__
