"""Settings in files: read, overruled by options, and refused in one line."""

from pathlib import Path

import pytest
from commands import refused

from vgjax.command.cli import parse
from vgjax.config import Config, Hypers
from vgjax.settings import Settings, parse_seeds, read_settings, seeds_as_words


def test_yaml_and_toml_say_the_same():
    Path("a.yaml").write_text("hidden: [4, 3]\nnorm: none\nbias: no\nlearning_rate: 1e-3\nnorm_epsilon: 1\nseeds: 3\n")
    Path("a.toml").write_text(
        "seeds = 3\n[config]\nhidden = [4, 3]\nnorm = 'none'\nbias = false\nnorm_epsilon = 1.0\n"
        "[hypers]\nlearning_rate = 0.001\n"
    )
    wanted = Settings(Config(hidden=(4, 3), bias=False, norm_epsilon=1.0), (Hypers(learning_rate=1e-3),), 3)
    assert read_settings(Path("a.yaml")) == read_settings(Path("a.toml")) == wanted


def test_options_overrule_the_file():
    Path("a.yaml").write_text("hidden: [4, 3]\nactivation: tanh\nlearning_rate: 0.3\nsigma_w: 2\nseeds: [5]\n")
    train = parse(["train", "--config-file", "a.yaml", "--activation", "elu", "--learning_rate=0.7", "--replicas", "2"])
    assert train.config == Config(hidden=(4, 3), activation="elu", replicas=2)
    assert train.settings == (Hypers(learning_rate=0.7, sigma_w=2.0),)
    assert parse_seeds(train.seeds) == (5,)


def test_an_option_overrules_every_setting_of_the_file():
    Path("a.yaml").write_text("hypers: [{learning_rate: 0.1, sigma_w: 1}, {learning_rate: 0.2, sigma_w: 2}]\n")
    train = parse(["train", "--config-file", "a.yaml", "--learning-rate", "0.1"])
    assert train.settings == (Hypers(learning_rate=0.1), Hypers(learning_rate=0.1, sigma_w=2.0))


@pytest.mark.parametrize("seeds", [1, 8, (0,), (7,), (3, 5)])
def test_seeds_as_words_and_back(seeds):
    assert parse_seeds(seeds_as_words(seeds)) == seeds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("f.yaml", "", ["holds no settings"]),
        ("f.yaml", "- 1\n- 2", ["holds no settings"]),
        ("f.yaml", "hidden: [1, 2", ["f.yaml", "damaged"]),
        ("f.yaml", "\0", ["f.yaml", "damaged"]),
        ("f.yaml", "dataset: !!python/object/apply:os.system ['touch executed']", ["f.yaml", "damaged"]),
        ("f.yaml", "[" * 10000, ["f.yaml"]),
        ("f.yaml", "hiden: [3]", ["unknown field 'hiden'", "did you mean 'hidden'", "allowed: dataset"]),
        ("f.yaml", "config: {activatoin: relu}", ["unknown field 'activatoin'", "did you mean 'activation'"]),
        ("f.yaml", "hypers: {learning_rat: 1}", ["unknown field 'learning_rat'", "did you mean 'learning_rate'"]),
        ("f.yaml", "learning_rat: 1", ["did you mean 'learning_rate'"]),
        ("f.yaml", "3: 4", ["unknown field 3"]),
        ("f.yaml", "epochs: 1\nepochs: 2", ["f.yaml: 'epochs' is there twice", "each field once"]),
        ("f.yaml", "hypers: {sigma_w: 1, sigma_w: 2}", ["f.yaml: 'sigma_w' is there twice"]),
        ("f.yaml", "hidden: 3", ["hidden 3 is not allowed", "a list of whole numbers"]),
        ("f.yaml", "hidden: [3, a]", ["hidden [3, 'a'] is not allowed", "a list of whole numbers"]),
        ("f.yaml", "hidden: [3, true]", ["hidden [3, True] is not allowed"]),
        ("f.yaml", "batch_size: 1.5", ["batch_size 1.5 is not allowed", "a whole number"]),
        ("f.yaml", "batch_size: true", ["batch_size True is not allowed", "a whole number"]),
        ("f.yaml", "bias: 1", ["bias 1 is not allowed", "true or false"]),
        ("f.yaml", "activation: 7", ["activation 7 is not allowed", "text"]),
        ("f.yaml", "norm: [batch]", ["norm ['batch'] is not allowed"]),
        ("f.yaml", "norm: bacth", ["norm 'bacth' is not allowed", "did you mean 'batch'"]),
        ("f.yaml", "learning_rate: fast", ["learning_rate 'fast' is not allowed", "a number"]),
        ("f.yaml", "learning_rate: true", ["learning_rate True is not allowed", "a number"]),
        ("f.yaml", "learning_rate: -1", ["learning_rate -1.0 is not allowed", "0 or more"]),
        ("f.yaml", "config: 3", ["config 3 is not allowed"]),
        ("f.yaml", "hypers: 3", ["hypers 3 is not allowed"]),
        ("f.yaml", "seeds: x", ["seeds 'x' is not allowed"]),
        ("f.yaml", "seeds: []", ["seeds [] is not allowed"]),
        ("f.yaml", "seeds: [-1]", ["seeds [-1] is not allowed"]),
        ("f.yaml", "activation: nowhere", ["unknown activation 'nowhere'"]),
        ("f.toml", "hidden = [3", ["f.toml"]),
        ("f.toml", "hiden = [3]", ["f.toml", "did you mean 'hidden'"]),
        ("f.json", "{}", [".json", "allowed: .yaml, .yml, .toml"]),
        ("f", "", ["allowed: .yaml, .yml, .toml"]),
    ],
)
def test_bad_files(capsys, name, content, parts):
    Path(name).write_text(content)
    error = refused(capsys, ["train", "--config-file", name])
    assert [part for part in parts if part not in error] == []
