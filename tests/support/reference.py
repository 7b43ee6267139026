"""A multi-layer perceptron and its back-propagation in float64 NumPy, which shares no line with the package."""

from __future__ import annotations

import numpy as np
from scipy.special import erf, expit, ndtr

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def elu(x, scale=1.0, alpha=1.0):
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def elu_slope(x, scale=1.0, alpha=1.0):
    return scale * np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0)))


def leaky_relu(slope):
    return lambda x: np.where(x > 0, x, slope * x), lambda x: np.where(x > 0, 1, slope)


ACTIVATIONS = {  # φ and φ′
    "sigmoid": (expit, lambda x: expit(x) * expit(-x)),
    "tanh": (np.tanh, lambda x: np.cosh(np.clip(x, -300, 300)) ** -2.0),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: (1 + np.abs(x)) ** -2.0),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "leaky_relu": leaky_relu(0.01),
    "elu": (elu, elu_slope),
    "selu": (lambda x: elu(x, SELU_SCALE, SELU_ALPHA), lambda x: elu_slope(x, SELU_SCALE, SELU_ALPHA)),
    "gelu": (lambda x: x * ndtr(x), lambda x: ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)),
    "swish": (lambda x: x * expit(x), lambda x: expit(x) * (1 + x * expit(-x))),
    "erf": (erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "linear": (lambda x: x, np.ones_like),
}


def as_float64(tree):
    """A parameter tree as float64 NumPy arrays."""
    return {k: as_float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def network(params, x, *, activation="relu", norm="none", norm_at="pre_activation", epsilon=1e-5, branch="plain"):
    """Logits; a function from their gradient to the parameters' gradients; the moments that batch norm saw."""
    gradients, moments, tape = {}, {}, []
    phi, slope = ACTIVATIONS[activation]
    depth = sum(name.startswith("layer_") for name in params)

    def dense(name, x):
        weights = params[name]["kernel"]

        def back(dy):
            gradients[name] = {"kernel": x.T @ dy}
            if "bias" in params[name]:
                gradients[name]["bias"] = dy.sum(0)
            return dy @ weights.T

        tape.append(back)
        return x @ weights + params[name].get("bias", 0)

    def normalise(name, x, here):
        if norm == "none" or norm_at != here:
            return x
        axis = 0 if norm == "batch" else 1
        mean, variance = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
        moments[name] = {"mean": mean.ravel(), "var": variance.ravel()}
        r = 1 / np.sqrt(variance + epsilon)
        unit = (x - mean) * r

        def back(dy):
            gradients[name] = {"scale": (dy * unit).sum(0), "bias": dy.sum(0)}
            du = dy * params[name]["scale"]
            return r * (du - du.mean(axis, keepdims=True) - unit * (du * unit).mean(axis, keepdims=True))

        tape.append(back)
        return unit * params[name]["scale"] + params[name]["bias"]

    def activate(z):
        tape.append(lambda dh: dh * slope(z))
        return phi(z)

    def join(i, x, h, start):
        if branch == "plain" or x.shape != h.shape:
            return h
        alpha = params[f"alpha_{i}"] if branch == "rezero" else 1.0
        inner = tape[start:]
        del tape[start:]

        def back(dy):
            if branch == "rezero":
                gradients[f"alpha_{i}"] = np.sum(dy * h)
            return dy + backwards(inner, alpha * dy)

        tape.append(back)
        return x + alpha * h

    def backwards(steps, dy):
        for back in reversed(steps):
            dy = back(dy)
        return dy

    x = normalise("norm_0", x, "network_input")
    for i in range(1, depth):
        start = len(tape)
        z = dense(f"layer_{i}", normalise(f"norm_{i}", x, "layer_inputs"))
        h = activate(normalise(f"norm_{i}", z, "pre_activation"))
        x = join(i, x, normalise(f"norm_{i}", h, "post_activation"), start)
    logits = dense(f"layer_{depth}", x)

    def back(dlogits):
        backwards(tape, dlogits)
        return gradients

    return logits, back, moments


def loss_and_gradients(params, x, labels, *, reduction="mean", **kind):
    """Cross-entropy (mean or sum over the batch), its gradients, share classified right, batch norm's moments."""
    logits, back, moments = network(params, x, **kind)
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    factor = 1 / len(labels) if reduction == "mean" else 1.0
    loss = -log_p[rows, labels].sum() * factor
    dlogits = np.exp(log_p)
    dlogits[rows, labels] -= 1
    return loss, back(dlogits * factor), np.mean(logits.argmax(1) == labels), moments
