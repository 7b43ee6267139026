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
from vgjax.command.cli import main
from vgjax.config import Config, Hypers
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


# Lists


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


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["list"], ["list", "clips"], ["train", "--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(words, unbuffered):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *words], env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, **pipes) as done:
        done.stdout.close()
        assert (done.stderr.read(), done.wait()) == (b"", 0)
