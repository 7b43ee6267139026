"""`vgjax data`: what there is, and what is prepared."""

import re

import pytest

from vgjax.command.cli import main
from vgjax.data.catalogue import DATASETS, EMBEDDED, load


def test_data_list_and_prepare(capsys):
    assert main(["data", "list", "--data-dir", "here"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^digits +yes +1500 +297 +8×8 +10 ", out, re.M) and re.search(r"^mnist +no ", out, re.M)
    assert main(["data", "prepare", "iris"]) == 0
    assert "150 training and 150 test examples" in capsys.readouterr().out


@pytest.mark.parametrize("name", EMBEDDED)
def test_known_sizes_are_those_of_the_data(name):
    data = load(name)
    assert (DATASETS[name].features, DATASETS[name].classes) == (data.train_inputs.shape[1], data.classes)
