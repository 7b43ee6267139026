"""`vgjax diagnose`: what it prints and writes, and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from diagnosed import DECAY, HEALTHY, TANH

from vgjax.command.cli import main
from vgjax.training.loop import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose gradient vanishes."""
    out = tmp_path_factory.mktemp("run") / "run"
    config = replace(TANH, epochs=2, record=DECAY)
    run(config, HEALTHY._replace(sigma_w=0.5), folder=out, tensorboard="none", devices=1)
    return out


@pytest.mark.slow
def test_the_command_prints_and_writes(folder, capsys):
    assert main(["diagnose", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("serious: vanishing — layer_1") and "cause  weight gain" in out and "try    σ_w² is" in out
    assert str(folder / "diagnosis.json") in out
    written = json.loads((folder / "diagnosis.json").read_text())
    assert written["findings"][0]["rule"] == "vanishing"
    assert main(["diagnose", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written


@pytest.mark.parametrize(("fail_on", "status"), [("never", 0), ("serious", 1), ("warning", 1)])
def test_its_status_is_of_use_in_a_script(folder, fail_on, status):
    assert main(["diagnose", str(folder), "--fail-on", fail_on]) == status


@pytest.mark.slow
def test_a_healthy_run_fails_on_nothing(tmp_path, capsys):
    config = replace(TANH, hidden=(24,) * 3, record=DECAY)
    run(config, HEALTHY, folder=tmp_path / "run", tensorboard="none", devices=1)
    assert main(["diagnose", str(tmp_path / "run"), "--fail-on", "warning"]) == 0
    assert capsys.readouterr().out.startswith("nothing found\nunchecked   constant: not recorded: weight_histogram\n")


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert main(["diagnose", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "allowed: the folder of a run" in err
    assert list(tmp_path.iterdir()) == []
