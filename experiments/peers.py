"""The peers of `python -m experiments.benchmark`: the same training in PyTorch and in Keras, as people write it.

PyTorch: eager mode, data in memory shuffled by an index without a DataLoader, `SummaryWriter`. Keras: `model.fit` on
TensorFlow, `keras.callbacks.TensorBoard`, which writes histograms of the weights once an epoch and does not see
gradients. Both run on the CPU with the default threads, oneDNN and other settings. Each is imported only when needed.

A peer trains what a vgjax `Config` describes, and refuses a config that it cannot follow. Seconds are those of a whole
run: a new network, its optimizer, training and, where statistics are written, the closing of the event files; imports
and the warm-up do not count. The exception is `keras_seconds` with `cold=False`, which times `fit` alone on a model
that is traced already.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from vgjax.config import Config
from vgjax.names import nearest
from vgjax.network.layer_names import layer_name

INITIALIZERS = ("uniform(0.1)", "glorot_uniform")
ALLOWED = {
    "activation": ("relu", "sigmoid"),
    "initializer": INITIALIZERS,
    "output_initializer": ("", *INITIALIZERS),
    "optimizer": ("momentum(0.9)", "keras_adam"),  # PyTorch's Adam has its own ε, 1e-8
    "last_batch": ("drop", "keep"),
}
ANY_VALUE = (
    "dataset",
    "scaling",
    "hidden",
    "batch_size",
    "epochs",
    "steps",
    "decay",
    "cadence",
    "record",
    "record_layers",
)
WARM_UP = 10  # steps; in Keras the warm-up is one epoch


def installed() -> dict[str, str]:
    """Versions of torch and keras, of each that can be imported."""
    versions = {}
    for name, load in (("torch", _torch), ("keras", _keras)):
        try:
            versions[name] = str(load().__version__)
        except (ImportError, OSError):  # a torch that lacks one of its shared libraries raises OSError
            continue
    return versions


def torch_seconds(
    config: Config,
    learning_rate: float,
    inputs: np.ndarray,
    labels: np.ndarray,
    watch: Literal["bare", "norms", "histograms"] = "bare",
) -> float:
    """Seconds of one run in PyTorch.

    Args:
      config: what to train, for `epochs`, or `steps` if these are not 0.
      learning_rate: step size [1 per unit of gradient].
      inputs: training examples, scaled, float32 [examples, features].
      labels: their classes, from 0 [examples].
      watch: nothing (bare); or the L2 norm or the histogram of each weight gradient at every step.

    Raises:
      ValueError: the config asks for something that this program does not do.
    """
    torch = _torch()
    data = torch.from_numpy(inputs), torch.from_numpy(labels).long()
    widths = (inputs.shape[1], *config.hidden, int(labels.max()) + 1)
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(config, steps=WARM_UP)
        torch_train(torch_network(config, widths), short, learning_rate, *data, watch, f"{folder}/warm-up")
        begun = time.perf_counter()
        torch_train(torch_network(config, widths), config, learning_rate, *data, watch, f"{folder}/run")
        return time.perf_counter() - begun


def torch_network(config: Config, widths: tuple[int, ...]) -> Any:
    """Dense layers with the config's activation between them; zero biases."""
    _check_config(config)
    nn = _torch().nn
    activation = nn.ReLU if config.activation == "relu" else nn.Sigmoid
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), activation())]
    network = nn.Sequential(*layers[:-1])
    for linear, initializer in zip(network[::2], _initializers(config), strict=True):
        nn.init.zeros_(linear.bias)
        if initializer == "glorot_uniform":
            nn.init.xavier_uniform_(linear.weight)
        else:
            nn.init.uniform_(linear.weight, -0.1, 0.1)
    return network


def torch_train(
    network: Any, config: Config, learning_rate: float, inputs: Any, labels: Any, watch: str, folder: str
) -> None:
    """Train the network on tensors; write what is watched to the folder as TensorBoard events."""
    torch = _torch()
    if config.optimizer == "keras_adam":
        optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    else:
        optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9)
    weights = {layer_name(i): linear.weight for i, linear in enumerate(network[::2], 1)}
    writer: Any = None
    if watch != "bare":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder)
    for step, batch in enumerate(_torch_batches(config, len(labels))):
        loss = torch.nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        if watch == "norms":
            norms = torch.stack([weight.grad.norm() for weight in weights.values()]).tolist()
            for name, norm in zip(weights, norms, strict=True):
                writer.add_scalar(name, norm, step)
        elif watch == "histograms":
            for name, weight in weights.items():
                writer.add_histogram(name, weight.grad, step)
        optimizer.step()
    if writer:
        writer.close()


def _torch_batches(config: Config, n: int) -> Iterator[Any]:
    torch, used = _torch(), _examples_an_epoch(config, n)
    epochs = itertools.count() if config.steps else range(config.epochs)
    batches = (batch for _ in epochs for batch in torch.randperm(n)[:used].split(config.batch_size))
    return itertools.islice(batches, config.steps or None)


def keras_seconds(
    config: Config,
    learning_rate: float,
    inputs: np.ndarray,
    labels: np.ndarray,
    watch: Literal["bare", "tensorboard"] = "bare",
    cold: bool = False,
) -> float:
    """Seconds of one run in Keras, by `model.fit`.

    Args:
      config: what to train, for `epochs`.
      learning_rate: step size [1 per unit of gradient].
      inputs: training examples, scaled, float32 [examples, features].
      labels: their classes, from 0 [examples].
      watch: nothing (bare); or histograms of the weights after every epoch (tensorboard).
      cold: time a new model, with its building and tracing, as in a series of runs; otherwise time `fit` alone, on a
        model that was fitted for one epoch before.

    Raises:
      ValueError: the config asks for something that this program does not do.
    """
    widths = (inputs.shape[1], *config.hidden, int(labels.max()) + 1)
    with tempfile.TemporaryDirectory() as folder:
        model = keras_network(config, widths, learning_rate)
        keras_train(model, dataclasses.replace(config, epochs=1), inputs, labels, watch, f"{folder}/warm-up")
        begun = time.perf_counter()
        if cold:
            model = keras_network(config, widths, learning_rate)
        keras_train(model, config, inputs, labels, watch, f"{folder}/run")
        return time.perf_counter() - begun


def keras_network(config: Config, widths: tuple[int, ...], learning_rate: float) -> Any:
    """Dense layers with the config's activation between them, compiled."""
    _check_config(config)
    if config.steps:
        raise ValueError(f"steps {config.steps} is not allowed with Keras; allowed: 0 (whole epochs)")
    keras = _keras()
    activations = [config.activation] * len(config.hidden) + ["softmax"]
    layers = [
        keras.layers.Dense(
            width,
            activation=activation,
            kernel_initializer=keras.initializers.RandomUniform(-0.1, 0.1)
            if initializer == "uniform(0.1)"
            else initializer,
        )
        for width, activation, initializer in zip(widths[1:], activations, _initializers(config), strict=True)
    ]
    model = keras.Sequential([keras.Input((widths[0],)), *layers])
    if config.optimizer == "keras_adam":
        optimizer = keras.optimizers.Adam(learning_rate)
    else:
        optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def keras_train(model: Any, config: Config, inputs: np.ndarray, labels: np.ndarray, watch: str, folder: str) -> None:
    """Fit the model to arrays; write what is watched to the folder as TensorBoard events."""
    callbacks = [_keras().callbacks.TensorBoard(folder, histogram_freq=1)] if watch == "tensorboard" else []
    used = _examples_an_epoch(config, len(labels))
    model.fit(
        inputs[:used],
        labels[:used],
        batch_size=config.batch_size,
        epochs=config.epochs,
        callbacks=callbacks,
        verbose=0,
    )


def _torch() -> Any:
    # Builds of torch for GPUs load Triton, which crashes a process that has loaded TensorFlow (two LLVMs). Torch on a
    # CPU does not need it. This can go when both can be imported in one process.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    import torch

    return torch


def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    return keras


def _initializers(config: Config) -> list[Any]:
    return [config.initializer] * len(config.hidden) + [config.output_initializer or config.initializer]


def _examples_an_epoch(config: Config, n: int) -> int:
    """Examples used in an epoch: all, or as many as fill whole batches."""
    used = n if config.last_batch == "keep" else n - n % config.batch_size
    if not used:
        raise ValueError(f"batch_size {config.batch_size} is more than the {n} examples; allowed: 1 to {n}")
    return used


def _check_config(config: Config) -> None:
    for name, value in vars(config).items():
        allowed = ALLOWED.get(name, (getattr(Config, name),))
        if name not in ANY_VALUE and value not in allowed:
            raise ValueError(
                f"{name} {value!r} is not written for PyTorch and Keras; {nearest(value, map(str, allowed))}"
            )
