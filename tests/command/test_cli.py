"""The command, as a process where that matters, and called directly elsewhere."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from commands import COMMAND, SMALL, refused

from vgjax.command import list as listing
from vgjax.command import train
from vgjax.command.cli import main, parse
from vgjax.config import Config, Hypers
from vgjax.data.catalogue import DATASETS, EMBEDDED, load
from vgjax.settings import Settings, parse_seeds, read_settings, seeds_as_words
from vgjax.training import optim, parallel, tensorboard

HEAVY = {
    *("jax", "jaxlib", "flax", "optax", "joblib", "numpy", "tensorflow", "matplotlib"),
    *("xarray", "pandas", "rich", "yaml"),
}


# Help


def test_help_imports_no_heavy_package():
    code = (
        "import sys; from vgjax.command.cli import main; main(['--help']); main(['train', '--help']);"
        "main(['data', '--help']);"
        f"sys.exit(','.join(sorted({HEAVY!r} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: vgjax train" in done.stdout


def test_every_field_is_an_option_with_its_default_and_unit(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    fields = {field.name: field.default for field in dataclasses.fields(Config)} | Hypers()._asdict()
    hints = get_type_hints(Config) | get_type_hints(Hypers)
    for name, default in fields.items():
        option = f"--{name.replace('_', '-')}"
        usage = re.search(rf" {option}(, --no| [A-Z{{]| \[[A-Z])", text)
        assert usage, option
        help_text, _, shown = text[usage.end() :].partition("(default: ")
        wanted = shlex.join(map(str, default)) if isinstance(default, tuple) else str(default) or "''"
        assert shown.startswith(f"{wanted})"), option
        if hints[name] in (int, float, str, bool, tuple[int, ...], tuple[str, ...]):
            assert re.search(r"\[.+\]", help_text), f"{option} has no unit"


def test_choices_and_topics_are_those_of_the_modules():
    hints = get_type_hints(train.Train)
    assert get_args(hints["tensorboard"]) == get_args(tensorboard.Which)
    assert get_args(hints["shard"]) == get_args(parallel.Sharding)
    assert get_args(listing.Topic) == tuple(listing.TOPICS)
    assert list(optim.CLIPS) == list(get_args(get_type_hints(Config)["clip"]))


# Refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", ["train, sweep, predict, show, diagnose, rerun, data, clinic, list"]),
        (
            "trian",
            [
                *("trian", "did you mean 'train'"),
                "allowed: train, sweep, predict, show, diagnose, rerun, data, clinic, list",
            ],
        ),
        ("data lst", ["did you mean 'list'", "allowed: prepare, list"]),
        ("data prepare", ["NAME"]),
        ("data prepare digit", ["unknown data set 'digit'", "did you mean 'digits'"]),
        ("list optimizer", ["'optimizer' is not allowed", "did you mean 'optimizers'"]),
        ("train --learing-rate 1", ["--learing-rate", "did you mean '--learning-rate'"]),
        ("train --hiden 3", ["--hiden", "did you mean '--hidden'"]),
        ("train surplus", ["surplus", "vgjax --help"]),
        ("train --learning-rate fast", ["--learning-rate", "'fast'", "allowed: --learning-rate FLOAT"]),
        ("train --learning-rate -1", ["learning_rate -1.0", "allowed: 0 or more"]),
        ("train --learning-rate nan", ["learning_rate nan", "allowed: 0 or more"]),
        ("train --hidden 3 many", ["--hidden", "'many'", "allowed: --hidden [INT"]),
        ("train --hidden 3 0", ["hidden 0", "allowed: whole numbers from 1"]),
        ("train --batch-size", ["'--batch-size'"]),
        ("train --batch-size 100000 --dataset iris", ["batch_size 100000", "allowed: 1 to 150"]),
        ("train --epochs 0", ["epochs and steps are both 0"]),
        ("train --clip global_nrm", ["--clip 'global_nrm'", "did you mean 'global_norm'", "allowed: none, value"]),
        ("train --activation rellu", ["unknown activation 'rellu'", "did you mean 'relu'", "allowed: sigmoid"]),
        ("train --activation leaky_relu(a=1)", ["leaky_relu(a=1)", "unexpected keyword argument 'a'"]),
        ("train --activation leaky_relu(a)", ["activation 'leaky_relu(a)' cannot be used"]),
        ("train --activation exec('1')", ["unknown activation 'exec'"]),
        ("train --initializer he_norml", ["unknown initializer 'he_norml'", "did you mean 'he_normal'"]),
        ("train --initializer glorot_uniform(0)", ["initializer 'glorot_uniform(0)' cannot be used"]),
        ("train --output-initializer orthogonl", ["did you mean 'orthogonal'"]),
        ("train --initializer nowhere:f", ["cannot import 'nowhere'"]),
        ("train --optimizer adma", ["vgjax: unknown optimizer 'adma'", "did you mean 'adam'"]),
        ("train --optimizer adamw --decay l2", ["decay 'l2'", "allowed: decoupled"]),
        ("train --schedule cosin", ["unknown schedule 'cosin'", "did you mean 'cosine'"]),
        ("train --dataset mnits", ["unknown data set 'mnits'", "did you mean 'mnist'"]),
        ("train --dataset ./nowhere", ["'./nowhere'", "no such folder"]),
        ("train --dataset iris --scaling 1/255", ["scaling '1/255'", "allowed: none, standardised"]),
        ("train --dataset iris --batch-size 50 --devices 0", ["0 devices", "allowed: 1 to"]),
        ("train --dataset iris --batch-size 50 --devices -1", ["-1 devices", "allowed: 1 to"]),
        ("train --dataset iris --batch-size 50 --devices 999", ["999 devices", "allowed: 1 to"]),
        ("train --seeds 0", ["seeds '0'", "whole numbers"]),
        ("train --seeds 1.5", ["seeds '1.5'"]),
        ("train --seeds -1", ["seeds '-1'"]),
        ("train --seeds 4294967296", ["seeds '4294967296'", "4294967295"]),
        ("train --resume", ["--resume: no --out", "allowed: --out DIR"]),
        ("train --resume --out nowhere", ["--resume: nowhere holds no run"]),
        ("train --config-file nowhere.yaml", ["nowhere.yaml: No such file"]),
        ("show --features 0", ["features 0", "from 1"]),
        ("show --initializer he_norml", ["did you mean 'he_normal'"]),
        ("show --seeds 1", ["--seeds"]),
    ],
)
def test_bad_lines(capsys, line, parts):
    error = refused(capsys, line.split())
    assert [part for part in parts if part not in error] == []


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


def test_show_refuses_a_bad_file_too(capsys):
    Path("f.yaml").write_text("hiden: [3]")
    assert "f.yaml: unknown field 'hiden'; did you mean 'hidden'" in refused(
        capsys, ["show", "--config-file", "f.yaml"]
    )


STRANGERS = """
import jax, jax.numpy as jnp, optax
print_nothing = 3
def sine(x): return jnp.sin(x)
def initial(k, s, d): return jax.random.normal(k, s, d) / 100
def descent(learning_rate): return optax.sgd(learning_rate)
def half_time(steps): return lambda count: jnp.where(count < steps // 2, 1.0, 0.0)
def raising(*args, **kwargs): raise RuntimeError("no way\\nat all")
def nothing(*args, **kwargs): return None
def small(key, shape, dtype): return jnp.zeros((1,), dtype)
def double(x): return x.astype(jnp.float16)
def flat(x): return x.ravel()
def constant(steps): return 3
def no_gradient(x): return jax.pure_callback(lambda x: x, x, x)
"""


@pytest.mark.parametrize(
    ("option", "name", "part"),
    [
        ("activation", "nothing", "gives None; allowed: float32[3,2]"),
        ("activation", "flat", "gives float32[6]; allowed: float32[3,2]"),
        ("activation", "double", "gives float16[3,2]"),
        ("activation", "raising", "no way"),
        ("activation", "initial", "missing 2 required"),
        ("activation", "no_gradient", "cannot be used"),
        ("activation", "print_nothing", "not callable"),
        ("activation", "sin", "did you mean 'sine'"),
        ("initializer", "small", "gives float32[1]; allowed: float32[3,2]"),
        ("initializer", "sine", "takes 1 positional argument"),
        ("initializer", "raising", "no way"),
        ("output-initializer", "nothing", "gives None"),
        ("optimizer", "sine", "learning_rate"),
        ("optimizer", "nothing", "cannot be used"),
        ("optimizer", "raising", "no way"),
        ("schedule", "constant", "not callable"),
        ("schedule", "raising", "no way"),
        ("dataset", "nothing", "allowed: vgjax.data.Dataset"),
    ],
)
def test_strangers_that_do_not_fit(capsys, monkeypatch, tmp_path, option, name, part):
    import_from(monkeypatch, tmp_path)
    error = refused(capsys, [*SMALL, f"--{option}", f"strangers:{name}", "--out", "run"])
    assert f"strangers:{name}" in error and part in error


def import_from(monkeypatch, folder):
    (folder / "strangers.py").write_text(STRANGERS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "strangers", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.slow
def test_strangers_that_fit_are_trained_with(capsys, monkeypatch, tmp_path):
    import_from(monkeypatch, tmp_path)
    own = {"activation": "sine", "initializer": "initial", "optimizer": "descent", "schedule": "half_time"}
    options = [word for option, name in own.items() for word in (f"--{option}", f"strangers:{name}")]
    assert main([*SMALL, *options, "--epochs", "1", "--out", "run"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())["config"]
    assert {option: config[option] for option in own} == {option: f"strangers:{name}" for option, name in own.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part"),
    [(["--activation", "rellu"], "did you mean 'relu'?"), (["--activatoin", "relu"], "did you mean '--activation'")],
)
def test_a_refusal_is_one_line_of_a_process(words, part):
    line = [*COMMAND, *SMALL, *words, "--out", "run"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert part in done.stderr and not Path("run").exists()


@pytest.mark.slow
def test_a_terminal_without_greek_letters():
    line = [*COMMAND, "show", "--dataset", "iris"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "") and "?_w?" in done.stdout


# Show, data, list


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


@pytest.mark.parametrize("name", EMBEDDED)
def test_known_sizes_are_those_of_the_data(name):
    data = load(name)
    assert (DATASETS[name].features, DATASETS[name].classes) == (data.train_inputs.shape[1], data.classes)


def test_list_names_everything_with_its_source(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for named, source in [
        ("he_normal", "1502.01852"),
        ("leaky_relu", "Maas"),
        ("keras_adam", "keras.optimizers.Adam"),
        ("warmup_cosine", "Goyal"),
        ("agc", "2102.06171"),
        ("fashion_mnist", "Xiao"),
    ]:
        assert re.search(rf"^{named} .*{source}", out, re.M)
    assert main(["list", "clips"]) == 0
    assert "he_normal" not in capsys.readouterr().out


def test_data_list_and_prepare(capsys):
    assert main(["data", "list", "--data-dir", "here"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^digits +yes +1500 +297 +8×8 +10 ", out, re.M) and re.search(r"^mnist +no ", out, re.M)
    assert main(["data", "prepare", "iris"]) == 0
    assert "150 training and 150 test examples" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["list"], ["list", "clips"], ["train", "--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(words, unbuffered):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *words], env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, **pipes) as done:
        done.stdout.close()
        assert (done.stderr.read(), done.wait()) == (b"", 0)


# Config files


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
