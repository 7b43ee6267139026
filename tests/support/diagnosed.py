"""Runs that are diagnosed in more than one test file."""

from __future__ import annotations

from dataclasses import replace

from vgjax.config import Config, Hypers

SMALL = Config(
    dataset="iris", scaling="standardised", batch_size=25, epochs=15, initializer="mean_field", optimizer="momentum"
)


TANH = replace(SMALL, hidden=(24,) * 10, activation="tanh")


DECAY = ("weights", "deltas", "decay", "activations")  # compile faster than all


HEALTHY = Hypers(learning_rate=0.01, sigma_w=1.05)
