"""Whatever the command line is, it is taken or refused in one line that helps; processes say what `main` says."""

from __future__ import annotations

import shlex
import subprocess
import sys

import inputs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from inputs import BASE, FIELDS
from refusals import CASES, SHOW, cases, emptied, is_near, refusal, stand_in, taken, tree

from vgjax.command.cli import parse
from vgjax.config import check_hypers

AT_LEAST = 350


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    """An empty folder of its own."""
    return stand_in(tmp_path, monkeypatch)


OPTIONS = {  # of `vgjax train`: one of each kind → values that are right, and values that are wrong
    "--batch-size": (["50", "+50", "5_0"], ["", "x", "1.5", "0", "-1", "9" * 30, "9" * 5000, "│ ──", "\n"]),
    "--learning-rate": (["1", "1e-3", "0", "-0", ".5"], ["", "x", "-1", "nan", "inf", "1e400", "1e39", "\x1b[31m"]),
    "--clip-threshold": (["0", "inf", "1e9"], ["-1", "nan", "-inf", "x"]),
    "--norm-momentum": (["0", "0.9"], ["1", "-1", "nan", "x"]),
    "--clip": (["none", "agc"], ["", "Value", "valu", "a'b", '"', "│", "x" * 500, "a\nb", "none,value", "(none)"]),
    "--activation": (["relu", " tanh ", "leaky_relu(0.2)"], ["", "rel u", "re\nlu", "relu(", "a" * 5000, ":"]),
    "--initializer": (["lsuv", "uniform(0.1)"], ["", "x", "normal(x)", "json:no"]),
    "--cadence": (["every(3)", "log"], ["every(0)", "at()", "at(-1)", "log(9999)", "every(1.5)", "never", "at(1, 2"]),
    "--hidden": (["3", "3 4", ""], ["0", "x", "3 x", "1.5", "3,4", "-3", "3 0"]),
    "--record": (["norms", "all", "norms decay", ""], ["nrms", "norms x", "norms,decay", "''"]),
    "--record-layers": (["*", "layer_1"], ["layer_9", "[", "x", ""]),
}  # fmt: skip
IN_TRAINING = {
    "--seeds": ["0", "-1", "x", "1.5", "4294967296", "2000000", "", ",", "9" * 5000],
    "--devices": ["0", "x", "99"],
}
IN_TRAINING |= {
    "--tensorboard": ["al", "", "0"],
    "--shard": ["lane", ""],
    "--distributed": ["x", "a:b c d", ":1 2 0", "a:1 2 2"],
}
IN_TRAINING |= {
    "--data-dir": [],
    "--out": [],
    "--config-file": ["", ".", "there", "nowhere.yaml", "there/kept", "a\nb.yaml", "x" * 300],
}


def words(option: str, text: str, form: int) -> list[str]:
    """An option with its value, as one word or two, spelt with - or _; lists are several words."""
    option = option if form % 2 else "--" + option[2:].replace("-", "_")
    if option.replace("_", "-") in ("--hidden", "--record", "--record-layers"):
        return [option, *text.split()]
    return [f"{option}={text}"] if form > 1 else [option, text]


@cases(150)
@given(data=st.data(), option=st.sampled_from(sorted(OPTIONS)), form=st.integers(0, 3), wrong=st.booleans())
def test_every_option(room, data, option, form, wrong):
    """An option's value is taken or refused by all commands alike, in every spelling; the last one counts."""
    emptied(room)
    right_ones, wrong_ones = OPTIONS[option]
    right, bad = data.draw(st.sampled_from(right_ones)), data.draw(st.sampled_from(wrong_ones))
    listed = option in ("--hidden", "--record", "--record-layers")
    show = [*SHOW[:-1], "--dataset", "iris"]
    if wrong:
        command = data.draw(
            st.sampled_from([show, ["train", "--dataset", "iris", "--out", "there"], ["predict", "--dataset", "iris"]])
        )
        before = [] if listed else words(option, right, form)
        refused = [*command, *before, *words(option, bad, form)]
        message = refusal(room, refused)
        assert option.lstrip("-").split("-")[-1] in message or (option == "--record" and "family" in message), message
        assert len(message) < len(bad) + 1000
    else:
        given = words(option, right, form)
        if option in ("--learning-rate", "--clip-threshold"):  # which `vgjax show` does not take
            check_hypers(parse(["train", *given]).hypers)
        else:
            taken([*show, *given])


@cases(50)
@given(data=st.data(), option=st.sampled_from(sorted(IN_TRAINING)), last=st.booleans())
def test_options_of_training(room, data, option, last):
    """Seeds, devices, folders and jobs: wrong values, and no value at all."""
    emptied(room)
    bad = data.draw(st.sampled_from([*IN_TRAINING[option], None]))
    given = [option] if bad is None else [option, *bad.split(" ")] if option != "--config-file" else [option, bad]
    if bad is None and option == "--distributed":
        return  # as the cluster says
    given = given if last else [*given, "--steps", "1"]
    message = refusal(
        room,
        [
            "train",
            "--dataset",
            "iris",
            "--batch-size",
            "50",
            *([] if option == "--out" else ["--out", "there"]),
            *given,
        ],
    )
    named = option.lstrip("-") in message or (bad and bad.strip(".") and bad.splitlines()[0][:20] in message)
    assert named or (option == "--config-file" and "there" in message) or bad in ("", "."), message


@cases(70)
@given(
    named=inputs.typos([name for name in (*FIELDS, "resume", "tensorboard", "devices") if len(name) > 4]),
    form=st.integers(0, 3),
)
def test_misspelt_options(room, named, form):
    """The option that was meant is named, with its command."""
    emptied(room)
    name, typo = named
    message = refusal(room, ["train", "--out", "there", *words(f"--{typo.replace('_', '-')}", "1", form)])
    assert is_near(typo, name, message) or form == 0 or "allowed: see `vgjax" in message, message


LONG = "x" * 300
LINES = {  # command → what is wrong after it, as a shell would take it apart
    "": [
        *("", "''", "'\n'", "-", "---", "-x", "--version", "--help=1", f"{LONG}", "'tr│ain'", "'train train'"),
        *("dat list", "lst"),
    ],
    "train": [
        *("surplus", "''", "'\n'", f"{LONG}", "--resume", "--resume=1", "--resume=yes", "-resume"),
        *("--resume --out nowhere", "--resume --out there", "--resume --out there/kept", "--resume --out ''"),
        *(f"--resume --out {LONG}", "--resume --out 'a\nb'", "--resume=1 --out there", "--no-bias=1", "--bias no"),
        *("--=1", "--out", "--config-file", "--hidden --bias x", "--lanes 3", "--dataset ''", "--dataset ' '"),
        *("--dataset 'a\nb'", "--dataset :", "--dataset ./nowhere", "--dataset '~nobody/x'", "--dataset there"),
        *("--dataset sys:exit", "--dataset os:no", "--dataset iris --scaling 1/255"),
        *("--dataset iris --batch-size 151", "--dataset iris --holdout 150", "--dataset iris --replicas 3"),
        *("--dataset iris --epochs 0", "--dataset iris --steps 2147483647"),
        "--dataset iris --batch-size 50 --steps 3 --cadence 'at(3)'",
        "--dataset iris --batch-size 50 --steps 3 --cadence sys:exit",
        "--dataset iris --batch-size 1 --epochs 14000000 --cadence every",
        "--dataset iris --batch-size 1 --epochs 14000000 --cadence 'at(0)'",
        *("--dataset iris --optimizer adamw --decay l2", "--activation sys:exit"),
        "--dataset iris --batch-size 50 --out there/kept",
    ],
    "sweep": [
        *("''", ".", "there", "there/kept", "nowhere.yaml", "f.json", "'a\nb.yaml'", f"{LONG}.yaml", "", "a b"),
        *("--dry-run", "g.yaml --lanes x", "g.yaml --epochs 1"),
    ],
    "predict": [
        *("--dataset iris --draws 1", "--dataset iris --draws x", "--dataset iris --draws 9999999999"),
        *("--dataset iris --seeds 1", "--steps", "--resume", "--dataset 'nowhere!'"),
    ],
    "show": [
        *("--out there", "--features 0", "--classes -1", "--features x", "--seeds 1", "--dataset x/y/z"),
    ],
    "diagnose": [
        *("", "''", "nowhere", "there", "there/kept", "a b", "there --fail-on sever", "'a\nb'", f"{LONG}", "--json"),
        *("there --json=1", "there --jsn"),
    ],
    "data": [
        *("", "lits", "prepare", "prepare ''", "prepare 'a\nb'", "list x", "prepare iris digits"),
        *("prepare '~nobody/x'", "prepare there"),
    ],
    "clinic": [
        *("", "''", "he_norml", "relu", "--activation rellu", ":", "nowhere:f", "a b", "he_normal --activation x"),
        "'normal(x)'",
    ],
    "list": [
        *("optimizer", "''", "clips x", "--all", "Clips"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("command", "rest"), [(command, rest) for command, those in LINES.items() for rest in those])
def test_lines(room, command, rest):
    """One line each; where a word was misspelt, the nearest is named (tests/test_cli.py has what each says)."""
    emptied(room)
    (room / "f.json").write_text("{}")
    (room / "g.yaml").write_text(yaml.safe_dump(BASE | {"product": {"depth": [1, 2]}}))
    refusal(room, [*command.split(), *shlex.split(rest)])


PROCESSES = [
    *(
        "train --resume=1",
        "train --activation rellu",
        "diagnose 'a\nb'",
        "train --clip '\udcff'",
        "sweep f.yaml",
        "trian",
    ),
    *("train --activation 'leaky_relu(\"\\d\")'", "data prepare '~nobody/x!'", "predict --config-file there", "list x"),
    *("show --dataset iris --learning-rate nan", "clinic relu"),
]


@pytest.mark.parametrize("line", PROCESSES, ids=repr)
def test_processes(room, line):
    """A process of its own says the same, and ends with the same status."""
    emptied(room)
    (room / "f.yaml").write_text("hiden: [3]\n")
    message = refusal(room, shlex.split(line))
    before = tree(room)
    code = "import sys; from vgjax.command.cli import main; sys.exit(main())"
    process = [sys.executable, "-c", code, *shlex.split(line)]
    done = subprocess.run(process, capture_output=True, text=True, errors="surrogateescape", cwd=room)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"vgjax: {message}\n") and tree(room) == before


def test_so_many_cases(capsys, request):
    """It says how many; of a part of the file (`-k`) fewer."""
    with capsys.disabled():
        print(f"\n{CASES.total()} cases: {', '.join(f'{name} {n}' for name, n in CASES.items())}")
    whole = not request.config.option.keyword and "::" not in "".join(request.config.args)
    assert CASES.total() >= AT_LEAST or not whole
