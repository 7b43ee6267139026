"""Whatever is written, the command takes it, or says in one line what is wrong and leaves no trace; so Python."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from inputs import BASE, CHOICES, CONFIG, DERIVED, FAMILIES, FIELDS, HYPERS, NAMES, WITH_ARGUMENTS, is_allowed
from refusals import CASES, SHOW, cases, checked_in_python, counted, emptied, is_near, refusal, said, stand_in, taken

import vgjax
from vgjax.config import check_hypers
from vgjax.settings import read_settings
from vgjax.sweeps.grid import read_grid

AT_LEAST = 1000


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    """An empty folder of its own."""
    return stand_in(tmp_path, monkeypatch)


# Config files


def in_a_file(fields: dict[str, str], how: int) -> str:
    """Fields flat, or in sections as a run's own config.yaml has them."""
    of_hypers = [f"{name}: {text}" for name, text in fields.items() if name in HYPERS]
    of_config = [f"{name}: {text}" for name, text in fields.items() if name in CONFIG]
    others = [f"{name}: {text}" for name, text in fields.items() if name not in HYPERS and name not in CONFIG]
    if how == 0:
        return "\n".join([*of_config, *of_hypers, *others]) + "\n"
    sections = ["config:", *("  " + line for line in of_config), *others]
    if of_hypers:
        first = "hypers:\n  " if how == 1 else "hypers:\n- "
        sections.append(first + "\n  ".join(of_hypers))
    return "\n".join(sections) + "\n"


@cases(420)
@given(field=st.sampled_from(FIELDS), value=inputs.scalars(), how=st.integers(0, 2), command=st.integers(0, 2))
def test_every_value_of_every_field(room, field, value, how, command):
    """A value in a file is taken where the help allows it, and refused by every command elsewhere; so in Python."""
    emptied(room)
    plain = {name: inputs.flow(one) for name, one in BASE.items()}
    Path("f.yaml").write_bytes(in_a_file(plain | {field: value.text}, how).encode("utf-8", "surrogatepass"))
    if is_allowed(field, value.value):
        assert "total" in taken([*SHOW, "f.yaml"])
        return
    argv = [SHOW, ["train", "--out", "there", "--config-file"], ["predict", "--config-file"]][command]
    message = refusal(room, [*argv, "f.yaml"])
    assert "f.yaml: " in message or field.split("_")[-1] in message, (field, message)
    with pytest.raises(ValueError) as caught:
        checked_in_python("f.yaml")
    assert str(caught.value) == message


@cases(160)
@given(fields=inputs.right_settings(), how=st.integers(0, 2), toml=st.booleans())
def test_settings_that_are_right(room, fields, how, toml):
    """Fields that are allowed together are taken, and are what was written."""
    emptied(room)
    if toml:
        name, text = "f.toml", inputs.as_toml(fields | BASE)
    else:
        name, text = "f.yaml", in_a_file({name: inputs.flow(value) for name, value in (fields | BASE).items()}, how)
    Path(name).write_text(text, encoding="utf-8")
    taken([*SHOW, name])
    found = read_settings(Path(name))
    as_written = vars(found.config) | found.hypers[0]._asdict() | {"seeds": found.seeds}
    for field, value in (fields | BASE).items():
        assert as_written[field] == (tuple(value) if isinstance(value, list) else value), field
    check_hypers(found.hypers[0])


@cases(120)
@given(named=inputs.typos([name for name in FIELDS if len(name) > 3]), how=st.integers(0, 2))
def test_misspelt_fields(room, named, how):
    """The field that was meant is named, from a file of any form."""
    emptied(room)
    name, typo = named
    sections = {0: f"{typo}: 1\n", 1: f"config:\n  {typo}: 1\n", 2: f"hypers:\n- {typo}: 1\n"}
    meant_here = {0: True, 1: name in CONFIG, 2: name in HYPERS}
    Path("f.yaml").write_text(f"dataset: iris\n{sections[how]}" if how == 0 else sections[how])
    message = refusal(room, ["train", "--out", "there", "--config-file", "f.yaml"])
    assert f"unknown field {typo!r}" in message and message.startswith("f.yaml: ")
    assert not meant_here[how] or is_near(typo, name, message), message


NAMED = {field: [name for name in names if len(name) > 3] for field, names in (NAMES | CHOICES).items()}


@cases(120)
@given(data=st.data(), field=st.sampled_from(sorted(NAMED)), as_option=st.booleans())
def test_misspelt_names(room, data, field, as_option):
    """The name that was meant is named: of an activation, initializer, optimizer, schedule, cadence or choice."""
    emptied(room)
    name, typo = data.draw(inputs.typos(NAMED[field]))
    if as_option:
        argv = ["train", "--dataset", "iris", "--out", "there", f"--{field.replace('_', '-')}={typo}"]
    else:
        Path("f.yaml").write_text(f"dataset: iris\n{field}: {inputs.flow(typo)}\n")
        argv = ["train", "--config-file", "f.yaml", "--out", "new"]
    if is_allowed(field, typo):
        return
    message = refusal(room, argv)
    assert repr(typo) in message and is_near(typo, name, message), message


@cases(12)
@given(named=inputs.typos(["digits", "fashion_mnist"]), listed=inputs.typos(FAMILIES))
def test_misspelt_data_sets_and_families(room, named, listed):
    """The same of data sets and of what is recorded."""
    emptied(room)
    (name, typo), (family, other) = named, listed
    message = refusal(room, ["train", "--dataset", typo, "--out", "there", "--steps", "1"])
    assert typo in message and is_near(typo, name, message), message
    message = refusal(room, ["train", "--dataset", "iris", "--record", "norms", other, "--out", "there"])
    assert repr(other) in message and is_near(other, family, message), message


@pytest.mark.parametrize("number", range(len(inputs.NO_CONFIG)))
def test_files_that_are_no_config(room, number):
    """Every command that reads one says so with the file's name, whatever its bytes are."""
    for argv in (["train", "--out", "there", "--config-file"], ["predict", "--config-file"], SHOW, ["sweep"]):
        emptied(room)
        Path("f.yaml").write_bytes(inputs.NO_CONFIG[number])
        assert "f.yaml: " in refusal(room, [*argv, "f.yaml"])


@pytest.mark.parametrize("number", range(len(inputs.SAME_CONFIG)))
def test_files_that_are_one_all_the_same(room, number):
    Path("f.yaml").write_bytes(inputs.SAME_CONFIG[number])
    taken([*SHOW, "f.yaml"])


@cases(120)
@given(
    place=st.integers(0, 400),
    length=st.integers(0, 30),
    new=st.binary(max_size=3)
    | st.sampled_from([b"\t", b": ", b"- ", b"[", b"}", b"\n\n", b"'", b"&a ", b"*a ", b"#", b"\\"]),
    grid=st.booleans(),
)
def test_damaged_files(room, place, length, new, grid):
    """Some bytes of a file are lost, others stand there: it is taken or refused in one line."""
    emptied(room)
    fields = BASE | {"activation": "leaky_relu(0.1)", "learning_rate": 0.5, "seeds": [1, 2], "norm": "batch"}
    fields |= {"product": {"sigma_w2": {"linspace": [1, 2, 3]}, "bias": [True, False]}} if grid else {}
    whole = yaml.safe_dump(fields).encode()
    place %= len(whole)
    Path("g.yaml").write_bytes(whole[:place] + new + whole[place + length :])
    argv = ["sweep", "g.yaml", "--dry-run"] if grid else [*SHOW, "g.yaml"]
    try:
        read_grid(Path("g.yaml")) if grid else checked_in_python("g.yaml")
    except ValueError as error:
        assert str(error) == refusal(room, argv)
    else:
        counted()
        assert grid or said(argv)[0] == 0


# Grids


@st.composite
def values_of(draw: st.DrawFn, name: str) -> tuple[Any, int | None]:
    """What an axis may be given, and how many values that are; None where it is wrong."""
    low, high = sorted(draw(st.lists(st.integers(1, 40), min_size=2, max_size=2, unique=True)))
    n, kind = draw(st.integers(-1, 5)), draw(st.sampled_from(["list", "linspace", "geomspace", "arange", "wrong"]))
    whole = name in ("depth", "width", "epochs", "steps")
    if kind == "list":
        found = draw(
            st.lists(st.integers(1, 40) | st.just(-1) | st.just("x") | st.booleans(), max_size=4, unique_by=str)
        )
        right = found and all(type(one) is int and one >= 0 for one in found)
        return found, len(found) if right else None
    if kind == "linspace":
        points = np.linspace(low, high, max(n, 0)).tolist()
        return {kind: [low, high, n]}, len({round(x) if whole else x for x in points}) or None
    if kind == "geomspace":
        start = draw(st.sampled_from([low, 0, -1]))
        points = np.geomspace(low, high, max(n, 0)).tolist() if start > 0 else []
        return {kind: [start, high, n]}, len({round(x) if whole else x for x in points}) or None
    if kind == "arange":
        given, step = draw(st.sampled_from([[low, high], [high, low]])), draw(st.sampled_from([1, 2, -1, 0]))
        points = range(*given, step) if step else []
        return {kind: [*given, step]}, len(points) or None
    wrong: list[Any] = [3, "x", None, {}, [], [[]], [None], {"logspace": [1, 2, 3]}, {"linspace": [1, 2]}]
    wrong += [{"linspace": 3}, {"linspace": [1, 2, 2.5]}, {"linspace": ["a", 2, 3]}, {"linspace": [1, math.inf, 3]}]
    wrong += [
        {"linspace": [1, 2, 3], "arange": [3]},
        {"arange": []},
        {"arange": [1, 10**9, 1]},
        {"linspace": [1, 2, 10**9]},
    ]
    return draw(st.sampled_from(wrong)), None


@cases(160)
@given(data=st.data(), section=st.sampled_from(["product", "zip", "points"]), seeds=st.integers(0, 3))
def test_grids(room, data, section, seeds):
    """The points of a grid are counted; empty, upside-down, unequal and unknown axes are refused."""
    emptied(room)
    names = data.draw(
        st.lists(st.sampled_from([*DERIVED, "learning_rate", "steps"]), min_size=1, max_size=3, unique=True)
    )
    axes = {name: data.draw(values_of(name)) for name in names}
    counts = [n for _, n in axes.values()]
    grid: dict[str, Any] = BASE | {"seeds": seeds}
    if section == "points":
        lists = {name: values for name, (values, _) in axes.items() if isinstance(values, list)}
        n_points = max(map(len, lists.values()), default=0)
        grid["points"] = [
            {name: values[i] for name, values in lists.items() if i < len(values)} for i in range(n_points)
        ]
        counts = [axes[name][1] for name in lists]
        size = n_points if n_points and all(counts) else None
    else:
        grid[section] = {name: values for name, (values, _) in axes.items()}
        size = None if None in counts else int(np.prod(counts))
        if section == "zip" and size is not None:
            return  # rounded numbers stay in a zip, and may be the same point: tests/test_grid.py
    Path("g.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    if size is None or seeds == 0:
        message = refusal(room, ["sweep", "g.yaml", "--out", "there"])
        assert message.startswith("g.yaml: ") and any(word in message for word in (*names, section, "seeds")), message
        return
    counted()
    assert len(read_grid(Path("g.yaml"))) == size * seeds


@cases(60)
@given(named=inputs.typos([name for name in (*FIELDS[:-1], *DERIVED, "product", "points") if len(name) > 3]))
def test_misspelt_axes(room, named):
    """The axis that was meant is named."""
    emptied(room)
    name, typo = named
    content = {typo: {"depth": [1]}} if name in ("product", "points") else {"product": {typo: [1]}}
    Path("g.yaml").write_text(yaml.safe_dump(BASE | content))
    message = refusal(room, ["sweep", "g.yaml"])
    assert repr(typo) in message and is_near(typo, name, message), message


# Python

PYTHON: list[tuple[str, dict[str, Any], str]] = [
    *(("config", {name: value}, name) for name in CHOICES for value in (None, 3, "nothing")),
    *(("config", {name: value}, name) for name in NAMES for value in (None, 3, b"relu", [], "no such name")),
    *(("config", {name: value}, name) for name in inputs.WHOLE for value in (None, "3", 1.5, True, -1, 2**31, [1])),
    *(("config", {name: value}, name) for name in ("hidden", "record") for value in (None, 3, "abc", [None])),
    *(("config", {name: value}, name) for name in inputs.FLOATS[5:] for value in (None, "1", -1, math.nan, True)),
    *(("config", {"bias": value}, "bias") for value in (None, 1, "no")),
    *(("config", {"dataset": value}, "dataset") for value in (None, 3, Path("iris"))),
    *(("hypers", {name: value}, name) for name in HYPERS for value in (None, "1", -1, math.nan, [1.0], 10**400)),
    *(("hypers", {name: value}, name) for name in HYPERS if name != "clip_threshold" for value in (math.inf, 1e39)),
    *(("run", {"hypers": value}, "hypers") for value in (None, 3, {}, [], [3], (0.1,))),
    *(("run", {"seeds": value}, "seeds") for value in (None, "3", 1.5, True, 0, [], [-1], ["1"], 2**32, [2**32])),
    *(("run", {"devices": value}, "devices") for value in (0, -1, 999, "1", 1.0)),
    *(("run", {name: "no"}, name) for name in ("shard", "tensorboard")),
    ("run", {"paired": True, "seeds": 2}, "paired"),
    *(("run", {"config": value}, "config") for value in (None, {})),
]  # fmt: skip


@pytest.mark.parametrize(("where", "wrong", "named"), PYTHON, ids=lambda value: repr(value)[:40])
def test_python(room, where, wrong, named):
    """A ValueError of one line, and no folder."""
    counted()
    with pytest.raises(ValueError) as caught:
        config = vgjax.Config(**BASE | (wrong if where == "config" else {}))
        hypers = vgjax.Hypers(**(wrong if where == "hypers" else {}))
        vgjax.run(**{"config": config, "hypers": hypers, "folder": room / "run"} | (wrong if where == "run" else {}))
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and named.split("_")[-1] in message and "allowed:" in message, message
    assert not list(room.iterdir())


# What is right runs

RUNS = 24
LANES = [vgjax.Hypers(), vgjax.Hypers(0.5, 0.01, 0.1, 1.5, 0.2), vgjax.Hypers(0.0, 1.0, math.inf, 0.0, 0.0)]
LANES += [vgjax.Hypers(1e30, clip_threshold=1e9), vgjax.Hypers(1e-30, 1e-30, 0.0, 1e-30, 1e-30)]


def designs() -> list[dict[str, Any]]:
    """Settings in which every name of every table and every choice is there at least once."""
    draw = random.Random(0)
    tables = {name: [*NAMES[name], *WITH_ARGUMENTS[name]] for name in NAMES} | CHOICES | {"bias": [True, False]}
    tables["record"] = [[one] for one in FAMILIES] + [[], ["norms", "decay"]]
    tables |= {"hidden": [[3], [], [4, 3], [3, 3, 3]], "batch_size": [50, 40], "steps": [1, 2, 4], "holdout": [0, 60]}
    tables |= {"replicas": [1, 1, 2], "norm_epsilon": [1e-5, 0.0, 1], "norm_momentum": [0.99, 0.0]}
    tables |= {"dataset": ["iris", "iris_petal"], "scaling": ["auto", "standardised", "none"]}
    columns = {}
    for name, values in tables.items():
        column = [value for value, _ in zip(itertools.cycle(values), range(RUNS), strict=False)]
        draw.shuffle(column)
        columns[name] = column
    found = [{name: column[i] for name, column in columns.items()} for i in range(RUNS)]
    for one in found:
        if one["replicas"] > 1:
            one["last_batch"] = "drop"
        if one["optimizer"] == "adamw":
            one["decay"] = "decoupled"
    return found


def test_every_name_is_in_a_run():
    for name, names in (NAMES | {"record": [[one] for one in FAMILIES]}).items():
        assert not [one for one in names if one not in [design[name] for design in designs()]]


@pytest.mark.parametrize("number", range(RUNS))
def test_what_is_right_runs(room, number):
    """Its history has the lanes, steps and layers that were asked for, finite unless a lane says where it went bad."""
    counted()
    design = designs()[number]
    config = vgjax.Config(**design)
    history = vgjax.run(config, LANES, (0, 2**32 - 1), paired=False).history
    sizes = history.sizes
    assert sizes["lane"] == len(LANES) * 2 * config.replicas
    n_train = 150 - config.holdout
    per_epoch = n_train // config.batch_size if config.last_batch == "drop" else -(-n_train // config.batch_size)
    assert history["evaluated_at"].values[-1] <= config.steps
    assert (np.diff(history["step"]) > 0).all() and history["step"].values[0] == 0
    assert sizes["evaluation"] <= -(-config.steps // per_epoch)
    if config.record:
        assert list(history["layer"].values) == [f"layer_{i}" for i in range(1, len(config.hidden) + 2)]
    fine = history.isel(lane=history["first_bad_step"].values < 0)
    assert fine.sizes["lane"] > 0 and np.isfinite(fine["train_loss"]).all()
    # the last step, or a norm without ε, may spoil what only the validation sees
    tame = fine.isel(lane=(fine["learning_rate"].values < 1) & (config.norm_epsilon > 0))
    assert np.isfinite(tame["validation_loss"].isel(evaluation=-1)).all()
    assert ((fine["train_accuracy"] >= 0) & (fine["train_accuracy"] <= 1)).all()
    for name in ("gradient_rms", "gradient_norm", "weight_norm", "delta_rms", "activation_std"):
        assert name not in fine or np.isfinite(fine[name]).all(), name
    bad = history.isel(lane=history["first_bad_step"].values >= 0)
    assert (bad["first_bad_step"] < config.steps).all()


def test_so_many_cases(capsys, request):
    """It says how many; of a part of the file (`-k`) fewer."""
    with capsys.disabled():
        print(f"\n{CASES.total()} cases: {', '.join(f'{name} {n}' for name, n in CASES.items())}")
    whole = not request.config.option.keyword and "::" not in "".join(request.config.args)
    assert CASES.total() >= AT_LEAST or not whole
