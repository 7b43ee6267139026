"""`vgjax predict`, and the prediction at the end of `vgjax train`, as their users see them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from vgjax import analysis
from vgjax.command.cli import main
from vgjax.config import Config, Hypers
from vgjax.data.catalogue import load
from vgjax.training import history

NETWORK = ["--dataset", "iris", "--hidden", "20", "20", "20", "--activation", "tanh", "--batch-size", "30"]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal on which every table fits."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.slow
def test_predict_prints_and_draws(capsys):
    """The table is that of the analysis, layer by layer; a picture and its numbers lie beside it."""
    assert main(["predict", *NETWORK, "--sigma-w", "1.5", "--sigma-b", "0.2", "--out", "here/p"]) == 0
    out = capsys.readouterr().out
    config = Config(dataset="iris", hidden=(20, 20, 20), activation="tanh", batch_size=30)
    band = analysis.band(analysis.prediction(config, Hypers(sigma_w=1.5, sigma_b=0.2), load("iris")))
    infinite = analysis.infinite_width(config, Hypers(sigma_w=1.5, sigma_b=0.2), load("iris"))
    for name in band["layer"].values:
        delta = float(band["predicted"].sel(signal="delta_rms", layer=name))
        sigma_w2, q = (float(infinite[column].sel(layer=name)) for column in ("sigma_w2", "q"))
        assert re.search(rf"^{name} .* {sigma_w2:.4g} +{q:.4g} .* {delta:.3g} \(", out, re.M)
    assert f"decay       {float(band['predicted_decay']):.3g} (" in out
    assert {path.name for path in Path("here").iterdir()} == {"p.png", "p.svg", "p.csv", "p.json"}
    made = json.loads(Path("here/p.json").read_text())
    assert made["config"]["hidden"] == [20, 20, 20] and made["hypers"][0]["sigma_w"] == 1.5 and made["draws"] == 64
    assert {"versions", "commit", "devices", "date"} <= set(made["environment"])
    assert "jax" in json.loads(Image.open("here/p.png").text["Description"])["versions"]
    table = pd.read_csv("here/p.csv")
    for _, row in table.iterrows():
        wanted = float(band["predicted"].sel(signal=row["signal"], layer=row["layer"]))
        assert row["predicted"] == pytest.approx(wanted, rel=1e-9)
    assert Path("here/p.png").stat().st_size > 10_000


@pytest.mark.slow
def test_predict_of_a_run(capsys):
    """The config of a run is its prediction's too."""
    assert main(["train", *NETWORK, "--epochs", "1", "--sigma-w", "0.5", "--tensorboard", "none", "--out", "run"]) == 0
    first = capsys.readouterr().out
    assert main(["predict", "--config-file", "run/config.yaml"]) == 0
    decay = re.search(r"decay +(\S+ \(.*?\))", capsys.readouterr().out)[1]
    assert f"predicted {decay}" in first and Path("prediction.png").exists()


@pytest.mark.slow
def test_a_run_ends_with_its_theory(capsys):
    """Measured decay beside the predicted one, how many layers lie in their band, and the figure with its numbers."""
    train = ["train", *NETWORK, "--epochs", "20", "--seeds", "4", "--tensorboard", "none", "--out", "run"]
    assert main(train) == 0
    out = capsys.readouterr().out
    found = history.load("run")
    row = analysis.signals(found, load("iris"))[""]
    assert f"decay       {float(row['decay'][0]):.3g} (" in out
    assert "4 of 4 layers activation, 4 of 4 layers delta, 4 of 4 layers gradient" in out
    far = analysis.departure(row).sel(signal="activation_rms")
    assert f"activation {float(far[-1]):.2g}" in out and far[-1] > 2 * far[0]
    table = pd.read_csv("run/signal.csv")
    assert len(table) == 3 * 4 * found.sizes["record"]
    assert {"measured", "predicted", "predicted_low", "predicted_high", "step", "layer", "signal"} <= set(table)
    assert Path("run/signal.svg").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("sigma_w", ["1e3", "1e38"])
def test_a_run_that_explodes_ends_in_order(capsys, sigma_w):
    """Without a warning; what left the finite numbers is said to have."""
    network = ["--dataset", "iris", "--hidden", *["20"] * 13, "--batch-size", "30"]
    train = ["train", *network, "--epochs", "2", "--sigma-w", sigma_w]
    assert main([*train, "--tensorboard", "none", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "diverged" in out and "not finite" in out and Path("run/signal.png").exists()


@pytest.mark.slow
def test_a_run_without_signals_ends_without(capsys):
    train = ["train", *NETWORK, "--steps", "2", "--record", "weights", "--tensorboard", "none", "--out", "run"]
    assert main(train) == 0
    assert "predicted" not in capsys.readouterr().out and not Path("run/signal.png").exists()


@pytest.mark.parametrize(
    "line, parts",
    [
        ("--draws 1", ["draws 1 is not allowed", "whole numbers from 2"]),
        ("--activation tanhh", ["unknown activation 'tanhh'", "did you mean 'tanh'"]),
        ("--sigma-w -1", ["sigma_w -1.0 is not allowed"]),
        ("--draw 3", ["--draw"]),
    ],
)
def test_what_cannot_be_predicted(capsys, line, parts):
    """One line, exit status 2, nothing written."""
    assert main(["predict", *NETWORK, *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(part in err for part in parts)
    assert not list(Path().iterdir())
