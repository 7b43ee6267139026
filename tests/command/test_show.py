"""`vgjax show`: layers, units and parameters of a network."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import COMMAND, refused

from vgjax.command.cli import main


def test_show_counts_as_the_keras_notebook(capsys):
    line = "show --dataset mnist --hidden 50 50 50 --activation elu --norm batch --norm-at layer_inputs"
    assert main([*line.split(), "--initializer", "mean_field", "--data-dir", "empty"]) == 0
    out = capsys.readouterr().out
    assert [int(n) for n in re.findall(r"^(?:norm|layer)_\d .*? +\d+ +\d+ +(\d+)", out, re.M)] == [
        3136, 39250, 200, 2550, 200, 2550, 510,
    ]  # fmt: skip
    assert re.search(r"^layer_1 +dense +784 +50 +39250 +1$", out, re.M)
    assert re.search(r"^total +784 +10 +48396 *$", out, re.M)


def test_show_takes_features_and_classes(capsys):
    assert main(["show", "--dataset", "nowhere", "--hidden", "3", "--features", "7", "--classes", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"layer_1 +dense +7 +3 +24 ", out) and re.search(r"layer_2 +dense +3 +2 +8 ", out)


def test_show_takes_the_config_of_a_run(capsys):
    Path("c.yaml").write_text("config: {dataset: iris, hidden: [6]}\nseeds: [0]\ndata: x\n")
    assert main(["show", "--config-file", "c.yaml"]) == 0
    assert re.search(r"layer_1 +dense +4 +6 +30 ", capsys.readouterr().out)


def test_show_refuses_a_bad_file_too(capsys):
    Path("f.yaml").write_text("hiden: [3]")
    assert "f.yaml: unknown field 'hiden'; did you mean 'hidden'" in refused(
        capsys, ["show", "--config-file", "f.yaml"]
    )


@pytest.mark.slow
def test_a_terminal_without_greek_letters():
    line = [*COMMAND, "show", "--dataset", "iris"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "") and "?_w?" in done.stdout
