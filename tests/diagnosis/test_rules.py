"""Every rule on a real small run that shows it and on one that does not; and what becomes of findings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from diagnosed import HE, HEALTHY, RELU, SMALL, TANH, history_of, rules_of

import vgjax
from vgjax.config import Hypers
from vgjax.diagnosis.rules import RULES, diagnose
from vgjax.theory.criticality import critical_variance


def equal(key, shape, dtype=jnp.float32):
    return jnp.full(shape, shape[0] ** -0.5, dtype)


def identity(key, shape, dtype=jnp.float32):
    return jnp.eye(*shape, dtype=dtype)


def rows_differ(key, shape, dtype=jnp.float32):
    """Units of a layer are copies, though no two inputs have the same weight."""
    return jnp.broadcast_to(jnp.linspace(0.1, 1.9, shape[0], dtype=dtype)[:, None] / shape[0], shape)


@pytest.fixture(scope="module")
def tanh():
    """One network, a setting a lane."""
    settings = {
        "healthy": HEALTHY,
        "vanishing": HEALTHY._replace(sigma_w=0.5),
        "exploding": HEALTHY._replace(sigma_w=6.0),
        "learning_rate_high": HEALTHY._replace(learning_rate=30.0),
        "learning_rate_low": HEALTHY._replace(learning_rate=1e-7),
        "saturated": HEALTHY._replace(sigma_b=8.0),
    }
    return dict(enumerate(settings)), history_of(TANH, *settings.values())


def lane(tanh, label):
    names, history = tanh
    return history.isel(lane=[i for i, name in names.items() if name == label])


@pytest.fixture(scope="module")
def relu():
    """He's weights; huge biases; weights that overflow; steps that do."""
    biased, large = HE._replace(sigma_b=5.0, learning_rate=1e-4), HE._replace(sigma_w=1e10)
    return history_of(RELU, HE, biased, large, HE._replace(learning_rate=1e12))


# The rules


@pytest.mark.slow
@pytest.mark.parametrize("label", ["vanishing", "exploding", "learning_rate_high", "learning_rate_low", "saturated"])
def test_first_finding_is_what_is_wrong(tanh, label):
    """And the findings say where, when and why, with numbers beyond their bound."""
    found = diagnose(lane(tanh, label)).findings[0]
    assert found.rule == label
    assert found.layers and found.steps and found.cause and found.evidence and found.advice
    assert found.severity in ("serious", "warning") and found.lanes == (0,)
    assert found.numbers["lanes"] == found.numbers["lanes_that_show_it"] == 1


@pytest.mark.slow
def test_healthy_networks_have_no_finding(tanh, relu):
    for history in (lane(tanh, "healthy"), relu.isel(lane=[0])):
        diagnosis = diagnose(history)
        assert diagnosis.findings == () and diagnosis.unchecked == {} and diagnosis.worst() == "none"


def test_the_decay_and_its_parts_are_the_measured_ones(tanh):
    """Numbers from NumPy: the line through the layers, and ‖W‖/√fan_out and φ′ against the critical weights."""
    history = lane(tanh, "vanishing")
    numbers = diagnose(history).findings[0].numbers
    log = history["delta_log10_rms"].values[0, 0, :-1].astype(np.float64)
    slope = np.polyfit(np.arange(10), log, 1)[0]
    assert numbers["decades"] == pytest.approx(-9 * slope, rel=1e-6) and numbers["decades"] < numbers["bound"]
    parts = numbers["decades_by_cause"]
    gain = np.sqrt(critical_variance("tanh", 10))
    norms = history["weight_norm"].values[0, 0, 1:10].astype(np.float64)
    assert parts["weight gain"] == pytest.approx(np.log10(norms / np.sqrt(24) / gain).sum(), rel=1e-4)
    assert sum(parts.values()) == pytest.approx(numbers["decades"], rel=1e-9)
    assert numbers["sigma_w2"][0] < 0.25 < numbers["sigma_w2"][1]


@pytest.mark.slow
def test_vanishing_is_found_without_its_parts():
    """From the norms of gradients and weights alone: and the small weights are to blame."""
    config = replace(SMALL, hidden=(32,) * 6, activation="sigmoid", record=("norms", "weights"), steps=2)
    found = diagnose(history_of(config, HEALTHY._replace(sigma_w=0.1))).findings[0]
    assert (found.rule, found.cause) == ("vanishing", "weight gain, slope of the activation")
    assert found.numbers["statistic"] == "gradient_log10_rms"


def test_a_decay_that_comes_in_training_is_found_where_nothing_is_learnt(tanh):
    """Not at the start: the steps tell."""
    history = lane(tanh, "vanishing").copy(deep=True)
    history["delta_log10_rms"][:, 0] = 0.0
    found = next(finding for finding in diagnose(history).findings if finding.rule == "vanishing")
    assert 0 not in found.steps and found.steps
    assert f"at step {found.steps[0]}" in found.evidence
    history["train_loss"][:] = 0.1
    assert "vanishing" not in rules_of(history)


def test_a_gradient_that_falls_to_zero_is_found(tanh):
    """In two of three lanes the first layers have none: found, and said in words, as there is no slope to give."""
    history = xr.concat([lane(tanh, "healthy")] * 3, "lane").copy(deep=True)
    history["delta_log10_rms"][:2, :, :2] = -np.inf
    history["train_loss"][:] = 1.0
    found = next(finding for finding in diagnose(history).findings if finding.rule == "vanishing")
    assert found.layers == ("layer_1", "layer_2") and found.lanes == (0, 1) and found.severity == "serious"
    assert "exactly 0 in layer_1, layer_2 at step 0" in found.evidence and found.numbers["decades"] == -np.inf


@pytest.mark.slow
def test_dead_units(relu):
    found = diagnose(relu.isel(lane=[1])).findings[0]
    assert found.rule == "dead" and found.cause == "initial weights and biases"
    assert max(found.numbers["dead_share"].values()) > 0.4


@pytest.mark.slow
def test_dead_lanes_in_the_minority_are_a_warning(relu):
    """One lane of three whose second layer dies at the end."""
    history = xr.concat([relu.isel(lane=[0])] * 3, "lane")
    share = history["activation_dead_fraction"].values.copy()
    share[1, -1, 1] = 1.0
    history = history.assign(activation_dead_fraction=(history["activation_dead_fraction"].dims, share))
    (found,) = diagnose(history).findings
    assert (found.rule, found.severity, found.lanes, found.cause) == ("dead", "warning", (1,), "learning rate")
    assert "1 of 3" in found.evidence


@pytest.mark.slow
def test_a_lane_that_diverged_says_where(relu):
    """Also beside healthy lanes of another setting, which have no finding."""
    (found,) = diagnose(relu.isel(lane=[0, 2])).findings
    assert (found.rule, found.severity, found.lanes) == ("nan", "serious", (1,))
    assert found.numbers["first_bad_step"] == 0 and found.numbers["first_bad_in"] == "forward"
    assert found.layers == (found.numbers["first_bad_layer"],) == (relu["first_bad_layer"].values[2],)
    assert found.cause == "weight gain" and found.hypers["sigma_w"] == pytest.approx(1e10)


@pytest.mark.slow
def test_divergence_by_the_learning_rate(relu):
    """Its cause is the size of the steps before."""
    found = diagnose(relu.isel(lane=[3])).findings[0]
    assert (found.rule, found.cause) == ("nan", "learning rate") and found.numbers["first_bad_step"] > 0


def start(initializer, **fields):
    config = replace(SMALL, hidden=(16, 16), activation="tanh", initializer=initializer, steps=1, **fields)
    return replace(config, record=("weight_histogram", "gradient_histogram"))


@pytest.mark.slow
@pytest.mark.parametrize("config", [start(equal), start(rows_differ, output_initializer=equal)])
def test_units_that_are_copies(config):
    (found,) = diagnose(history_of(config)).findings
    assert found.rule == "constant" and found.severity == "serious" and found.steps == (0,)


def test_units_that_differ_are_no_copies():
    """Neither an identity, whose histogram has multiples of the width too, nor copies of different biases."""
    assert rules_of(history_of(start(identity))) == []
    assert rules_of(history_of(start(equal), HEALTHY._replace(sigma_b=0.1))) == []


@pytest.mark.slow
def test_clipping_that_turns_the_gradient():
    """By value far below the elements' size; not by a threshold that never acts."""
    config = replace(SMALL, hidden=(24,) * 3, activation="tanh", clip="value", record=("norms", "weights", "points"))
    tight, loose = (HEALTHY._replace(clip_threshold=x, learning_rate=y) for x, y in ((1e-4, 1.0), (100.0, 0.01)))
    found = diagnose(history_of(config, tight, loose)).findings
    assert [finding.rule for finding in found] == ["clipping"] and found[0].lanes == (0,)
    assert found[0].numbers["cosine"] < 0.95 and found[0].numbers["clipped_fraction"] > 0.5


@pytest.mark.slow
def test_batch_norm_explodes_with_depth_and_not_without():
    """By a factor near theory's."""
    deep = replace(SMALL, dataset="digits", batch_size=100, hidden=(48,) * 30, activation="relu", norm="batch", steps=1)
    deep = replace(deep, record=("deltas",))
    found = diagnose(history_of(deep, HE)).findings[0]
    assert found.rule == "batch_norm"
    factor = 10 ** (found.numbers["decades"] / 28)  # 29 layers above the first
    assert found.numbers["theory_factor_per_layer"] == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=1e-6)
    assert factor == pytest.approx(found.numbers["theory_factor_per_layer"], rel=0.1)
    assert rules_of(history_of(replace(deep, hidden=(48,) * 3), HE)) == []


@pytest.mark.slow
def test_gradients_that_float16_would_lose():
    config = replace(SMALL, hidden=(24,) * 3, activation="tanh", optimizer="adam", output_initializer="normal(1e-9)")
    config = replace(config, record=("norms", "spread", "weights"))
    history = history_of(config)
    (found,) = diagnose(history).findings
    assert (found.rule, found.severity, found.cause) == ("underflow", "warning", "precision")
    assert 0 in found.steps and "layer_4" not in found.layers
    history["gradient_bfloat16_underflow"][:] = 0.9  # CPUs make zeros of such numbers at once
    (worse,) = diagnose(history).findings
    assert worse.severity == "serious" and worse.numbers["lost_in_bfloat16"] == pytest.approx(0.9)


def test_data_that_are_not_at_hand_are_replaced_and_said_so(tanh):
    """A data set that nobody has: standard-normal inputs, and the same finding."""
    history = lane(tanh, "vanishing").copy()
    about = json.loads(history.attrs["run"])
    about["config"]["dataset"] = "no_such_data"
    history.attrs = {"run": json.dumps(about)}
    found = diagnose(history).findings[0]
    assert found.rule == "vanishing" and found.numbers["reference_inputs"] == "standard normal"
    assert "iris" in diagnose(lane(tanh, "vanishing")).findings[0].numbers["reference_inputs"]


# What becomes of them


def test_lanes_of_one_setting_are_looked_at_together(tanh):
    """Two of three lanes show it: found, and counted. One of three: not found."""
    _, history = tanh
    three = history.isel(lane=[1, 1, 0])
    three = three.assign_coords({name: ("lane", np.repeat(three[name].values[:1], 3)) for name in Hypers._fields})
    found = diagnose(three).findings[0]
    assert (found.rule, found.lanes, found.numbers["lanes"]) == ("vanishing", (0, 1), 3)
    assert "2 of 3 lanes" in found.evidence
    one = history.isel(lane=[0, 1, 0])
    one = one.assign_coords({name: ("lane", np.repeat(one[name].values[:1], 3)) for name in Hypers._fields})
    assert rules_of(one) == []


def test_settings_are_diagnosed_by_themselves(tanh):
    """All lanes of the fixture in one history: each label is found in its own lane, serious ones first."""
    names, history = tanh
    found = diagnose(history).findings
    firsts = {}
    for finding in found:
        firsts.setdefault(finding.lanes[0], set()).add(finding.rule)
    assert all(label in firsts.get(i, ()) for i, label in names.items() if label != "healthy") and 0 not in firsts
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities)


def test_rules_without_their_statistics_are_named(tanh):
    history = lane(tanh, "saturated").drop_vars(["activation_saturated_fraction", "weight_histogram", "update_ratio"])
    diagnosis = diagnose(history)
    assert set(diagnosis.unchecked) == {"saturated", "constant", "learning_rate_high", "learning_rate_low"}
    assert "activation_saturated_fraction" in diagnosis.unchecked["saturated"]
    assert "saturated" not in [finding.rule for finding in diagnosis.findings]
    assert json.loads(diagnosis.as_json())["unchecked"] == diagnosis.unchecked


@pytest.mark.slow
@pytest.mark.parametrize("record", [("norms",), ("weights", "gradient_histogram")])
def test_any_choice_of_families_and_layers_can_be_diagnosed(record):
    """Nothing is asked for that was not recorded."""
    config = replace(TANH, hidden=(24,) * 3, record=record, record_layers=("layer_[23]",), steps=5)
    diagnosis = diagnose(history_of(config))
    assert set(diagnosis.unchecked) and set(diagnosis.unchecked) < set(RULES)


@pytest.mark.slow
def test_json_holds_every_finding(tanh):
    """And is plain JSON, though a measured number is not finite."""
    _, history = tanh
    diagnosis = diagnose(history)
    plain = json.loads(diagnosis.as_json())
    assert [one["rule"] for one in plain["findings"]] == [one.rule for one in diagnosis.findings]
    assert plain["findings"][0]["hypers"]["learning_rate"] == pytest.approx(
        diagnosis.findings[0].hypers["learning_rate"]
    )
    assert "NaN" not in diagnosis.as_json() and "Infinity" not in diagnosis.as_json()


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["from vgjax import diagnose", "import vgjax; vgjax.diagnose; diagnose = vgjax.diagnose"]
)
def test_diagnose_is_the_function(code):
    """At every look, also after its module was imported."""
    check = (
        f"import vgjax.command.cli, vgjax.diagnosis.rules\n{code}\nimport inspect\nassert inspect.isfunction(diagnose)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert vgjax.diagnose is diagnose


def test_a_history_that_does_not_say_its_run_is_refused(tanh):
    with pytest.raises(ValueError, match="which run it is"):
        diagnose(tanh[1].drop_attrs())
