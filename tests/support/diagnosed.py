"""Runs that are diagnosed in more than one test file."""

from __future__ import annotations

import math
from dataclasses import replace

from vgjax.config import Config, Hypers
from vgjax.diagnosis.rules import diagnose
from vgjax.training.loop import run

SMALL = Config(
    dataset="iris", scaling="standardised", batch_size=25, epochs=15, initializer="mean_field", optimizer="momentum"
)
TANH = replace(SMALL, hidden=(24,) * 10, activation="tanh")
DECAY = ("weights", "deltas", "decay", "activations")  # compile faster than all
HEALTHY = Hypers(learning_rate=0.01, sigma_w=1.05)
RELU = replace(SMALL, dataset="digits", scaling="auto", batch_size=50, epochs=4, hidden=(32,) * 4, activation="relu")
HE = Hypers(learning_rate=0.01, sigma_w=math.sqrt(2))


def history_of(config, *settings, seeds=1):
    """What a run on one device records; by default of healthy hypers."""
    return run(config, settings or HEALTHY, seeds, devices=1).history


def rules_of(history):
    """The rules that find something, in order."""
    return [finding.rule for finding in diagnose(history).findings]
