"""What users may write, right and wrong, and which it is: ranges and names as the help and the README have them.

Nothing here is read from the package, so that a value that it wrongly takes is found as is one that it wrongly refuses.
"""

from __future__ import annotations

import json
import math
import string
from typing import Any, NamedTuple

import yaml
from hypothesis import assume
from hypothesis import strategies as st

INT32, FLOAT32, SEEDS = 2**31 - 1, 3.4e38, 10**6
WHOLE = {"holdout": 0, "batch_size": 1, "epochs": 0, "steps": 0, "replicas": 1}  # field → the least
HYPERS = ("learning_rate", "weight_decay", "clip_threshold", "sigma_w", "sigma_b")
FLOATS = (*HYPERS, "norm_epsilon", "norm_momentum")
CHOICES = {
    "scaling": ["auto", "1/255", "1/256", "standardised", "none"],
    "norm": ["none", "batch", "layer"],
    "norm_at": ["pre_activation", "post_activation", "layer_inputs", "network_input"],
    "branch": ["plain", "residual", "rezero"],
    "clip": ["none", "value", "global_norm", "layer_norm", "agc"],
    "decay": ["decoupled", "l2"],
    "shuffle": ["every_epoch", "once", "never"],
    "last_batch": ["drop", "keep"],
    "reduction": ["mean", "sum"],
    "validate": ["every_epoch", "end"],
}
INITIALIZERS = [
    "uniform",
    "normal",
    "mean_field",
    "mxnet_xavier",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "lsuv",
]
NAMES = {
    "activation": [
        "sigmoid",
        "tanh",
        "softsign",
        "relu",
        "leaky_relu",
        "elu",
        "selu",
        "gelu",
        "swish",
        "erf",
        "linear",
    ],
    "initializer": INITIALIZERS,
    "output_initializer": INITIALIZERS,
    "optimizer": ["sgd", "momentum", "nesterov", "adam", "keras_adam", "adamw", "rmsprop"],
    "schedule": ["constant", "cosine", "linear", "exponential", "warmup_cosine"],
    "cadence": ["epoch", "every", "log"],
}
WITH_ARGUMENTS = {
    "activation": ["leaky_relu(0.2)", "leaky_relu(slope=1e-3)", " relu ", "jax.numpy:tanh"],
    "initializer": ["uniform(0.1)", "orthogonal(gain=2)", "mxnet_xavier(gaussian, factor_type=in, magnitude=2.34)"],
    "output_initializer": ["", "normal(stddev=0)", "jax.nn.initializers:zeros"],
    "optimizer": ["momentum(0.5)", "adam(b1=0.5, eps=1e-4)", "optax:adabelief"],
    "schedule": ["cosine(alpha=0.1)", "warmup_cosine(0.5)", "exponential(0.5)"],
    "cadence": ["every(2)", "log(3)", "at(0, 1)", "at(0, 99999999999)"],
}
FAMILIES = [
    "norms",
    "spread",
    "weights",
    "points",
    "activations",
    "deltas",
    "noise",
    "decay",
    "gradient_histogram",
    "weight_histogram",
    "update_histogram",
    "activation_histogram",
    "delta_histogram",
]
CONFIG = ("dataset", *CHOICES, *NAMES, *WHOLE, "bias", "hidden", "record", "record_layers", *FLOATS[5:])
FIELDS = (*CONFIG, *HYPERS, "seeds")
DERIVED = ("depth", "width", "sigma_w2", "sigma_b2")
BASE = {"dataset": "iris", "hidden": [3], "batch_size": 50, "steps": 1, "record": ["norms"]}


class Scalar(NamedTuple):
    """Text of a YAML file, and what YAML 1.1 makes of it."""

    text: str
    value: Any


ODD = [
    *(Scalar(text, None) for text in ("null", "~", "", "&anchor")),
    *(Scalar(text, True) for text in ("true", "on", "Yes")),
    *(Scalar(text, False) for text in ("false", "off", "NO")),
    *(
        Scalar(str(n), n)
        for n in (0, 1, 2, 3, 50, -1, INT32, INT32 + 1, SEEDS + 1, 2**32 - 1, 2**32, 10**30, -(10**30))
    ),
    *(Scalar("9" * 400, int("9" * 400)), Scalar("010", 8), Scalar("0x10", 16), Scalar("1_000", 1000)),
    *(Scalar("1:30", 90), Scalar("0b11", 3), Scalar("!!int 3", 3), Scalar("!!float 3", 3.0), Scalar("!!str 3", "3")),
    *(Scalar(text, float(text)) for text in ("1.0", "0.5", "-0.5", "-0.0", "1.0e-3", "1.0e+39", "1.0e+400", "3.4e+38")),
    *(Scalar(text, text) for text in ("1e-3", "1e400", "-1e3", "0x", "1 2", "3.4e38", "inf", "nan")),
    *(Scalar(".inf", math.inf), Scalar("-.inf", -math.inf), Scalar(".NaN", math.nan)),
    *(Scalar(f"'{text}'", text) for text in ("3", "1.5", "yes", "", " ", "relu", "layer_*", "os:path", ":", "a:b")),
    *(Scalar(f"'{text}'", text) for text in ("relu(", "relu(1)", "leaky_relu(x)", "every(0)", "normal(1e400)", "at()")),
    *(Scalar('"re\\nlu"', "re\nlu"), Scalar('"re\\0lu"', "re\0lu"), Scalar("'│ ────'", "│ ────")),
    *(Scalar(f"'{text}'", text) for text in ('leaky_relu("\\d")', "relu(1if 2 else 3)", "mxnet_xavier(magnitude=-1)")),
    *(Scalar("2020-01-01", "a date"), Scalar("!!binary aGVsbG8=", b"hello"), Scalar("!!set {a}", {"a"})),
    *(Scalar("[]", []), Scalar("{}", {}), Scalar("[3]", [3]), Scalar("[3, 4]", [3, 4]), Scalar("[0]", [0])),
    *(Scalar("[-1]", [-1]), Scalar("[3.0]", [3.0]), Scalar("['3']", ["3"]), Scalar("[true]", [True])),
    *(Scalar("[null]", [None]), Scalar("[[3]]", [[3]]), Scalar("[3, a]", [3, "a"]), Scalar("{a: 3}", {"a": 3})),
    *(Scalar("[norms, all]", ["norms", "all"]), Scalar("['*']", ["*"]), Scalar("[layer_2]", ["layer_2"])),
    *(Scalar("[layer_9]", ["layer_9"]), Scalar("[layer_1, x]", ["layer_1", "x"]), Scalar("[nrms]", ["nrms"])),
    *(Scalar("&a [3, *a]", [3, "…"]), Scalar("&a {x: *a}", {"x": "…"}), Scalar("a" * 3000, "a" * 3000)),
]


def is_whole(value: Any, least: int, most: int = INT32) -> bool:
    """A whole number in that range."""
    return type(value) is int and least <= value <= most


def is_allowed(field: str, value: Any) -> bool:
    """Whether a config file may have that field with that value, the rest being `BASE`."""
    if field == "replicas":
        return is_whole(value, 1) and 50 % value == 0
    if field in WHOLE:
        return is_whole(value, WHOLE[field])
    if field in FLOATS:
        if isinstance(value, str):  # YAML takes 1e-3 for a text
            try:
                value = float(value)
            except ValueError:
                return False
        if type(value) not in (int, float):
            return False
        if field == "norm_momentum":
            return 0 <= value < 1
        return 0 <= value <= FLOAT32 or (field == "clip_threshold" and value == math.inf)
    if field == "bias":
        return isinstance(value, bool)
    if field in CHOICES:
        return isinstance(value, str) and value in CHOICES[field]
    if field in NAMES:
        return isinstance(value, str) and (value in WITH_ARGUMENTS[field] or value.strip() in NAMES[field])
    if field == "seeds":
        listed = isinstance(value, list) and value != [] and all(is_whole(one, 0, 2**32 - 1) for one in value)
        return is_whole(value, 1, SEEDS) or listed
    if field == "hidden":
        return isinstance(value, list) and all(is_whole(width, 1) for width in value)
    if field == "record":
        return isinstance(value, list) and all(isinstance(one, str) and one in [*FAMILIES, "all"] for one in value)
    if field == "record_layers":
        return (
            isinstance(value, list)
            and value != []
            and all(one in ("*", "layer_*", "layer_1", "layer_2") for one in value)
        )
    return isinstance(value, str)  # the data set, which is looked up where data are needed


def right_values(field: str) -> st.SearchStrategy[Any]:
    """Values that are allowed."""
    if field == "replicas":
        return st.sampled_from([1, 2, 5, 10, 25, 50])
    if field in WHOLE:
        return st.integers(max(WHOLE[field], field in ("epochs", "steps")), INT32)
    if field == "norm_momentum":
        return st.floats(0, 1, exclude_max=True)
    if field in FLOATS:
        return st.floats(0, FLOAT32) | st.integers(0, 10**9)
    if field == "bias":
        return st.booleans()
    if field in CHOICES:
        return st.sampled_from(CHOICES[field])
    if field in NAMES:
        return st.sampled_from(NAMES[field] + WITH_ARGUMENTS[field])
    if field == "seeds":
        return st.integers(1, SEEDS) | st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True)
    if field == "hidden":
        return st.lists(st.integers(1, 1000), max_size=5)
    if field == "record":
        return st.lists(st.sampled_from([*FAMILIES, "all"]), max_size=4)
    if field == "record_layers":
        return st.lists(st.sampled_from(["*", "layer_*", "layer_1", "layer_[1-3]"]), min_size=1, max_size=2)
    return st.just("iris")


@st.composite
def right_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a config that are allowed together."""
    names = draw(st.lists(st.sampled_from(FIELDS), unique=True, max_size=8))
    found = {name: draw(right_values(name)) for name in names}
    if "replicas" in found:
        found |= {"batch_size": 50, "last_batch": "drop"}
    if str(found.get("optimizer", "")).startswith("adamw"):
        found["decay"] = "decoupled"
    return found


def scalars() -> st.SearchStrategy[Scalar]:
    """A value as a YAML file may have it, of any kind."""
    plain = st.one_of(
        st.integers(), st.floats(), st.booleans(), st.text(max_size=20), st.lists(st.integers(-3, 9), max_size=3)
    )
    return st.sampled_from(ODD) | plain.map(lambda value: Scalar(flow(value), value))


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("...\n").strip()
    )


def as_toml(fields: dict[str, Any]) -> str:
    """The same as TOML, whose scalars and lists are JSON's where they are plain."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


@st.composite
def typos(draw: st.DrawFn, names: list[str]) -> tuple[str, str]:
    """A name and the same with a letter dropped, doubled, swapped, changed, added, in capitals, or with a blank."""
    name = draw(st.sampled_from(names))
    i, letter = draw(st.integers(0, len(name) - 1)), draw(st.sampled_from(string.ascii_lowercase))
    made = {
        "dropped": name[:i] + name[i + 1 :],
        "doubled": name[:i] + name[i] + name[i:],
        "swapped": name[:i] + name[i : i + 2][::-1] + name[i + 2 :],
        "changed": name[:i] + letter + name[i + 1 :],
        "added": name[:i] + letter + name[i:],
        "capitals": name.upper(),
    }
    typo = made[draw(st.sampled_from(sorted(made)))]
    assume(typo and typo not in names)
    return name, typo


def distance(a: str, b: str) -> int:
    """Letters to be added, dropped, changed or swapped between two words (Damerau's, without overlaps)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


# Files that are no config, and what may be said of them

NO_CONFIG: list[bytes] = [
    *(b"", b"\n", b"# only a comment\n", b"---\n", b"- 1\n- 2\n", b"3", b"text", b"null", b"[]", b"[dataset, iris]"),
    *(
        b"---\nepochs: 1\n---\nepochs: 2\n",
        b"\tepochs: 1\n",
        b"epochs: 1\n\tsteps: 2\n",
        b"epochs: [1\n",
        b"'",
        b"@",
        b"%",
    ),
    *(b"epochs: 1\nepochs: 2\n", b"hypers: {sigma_w: 1, sigma_w: 2}\n", b"? [1, 2]\n: 3\n", b"? {a: 1}\n: 3\n"),
    *(b"epochs: *nothing\n", b"<<: 3\n", b"!!python/name:os.system x\n", b"epochs: !own 3\n", b"%YAML 3.0\n---\n{}\n"),
    *(b"\xff\xfee\x00p\x00", b"epochs: 1\nactivation: \xff\n", b"\0", b"epochs: 1\0\n", b"epochs: \x07\n", b"\x80"),
    *(b"[" * 5000, b"{a: " * 3000, b"- " * 5000, b"epochs: " + b"9" * 5000, b"epochs: 0x" + b"f" * 6000),
    *(b"3: 4\n", b"null: 4\n", b"true: 4\n", b"2020-01-01: 4\n", b"epochs: 2020-13-45\n", b"[1, 2]: 3\n", b"'': 3\n"),
    *(b"config: 3\n", b"config: [epochs]\n", b"config: null\n", b"hypers: 3\n", b"hypers: [3]\n", b"hypers: {a: 1}\n"),
    *(
        b"config: {config: {}}\n",
        b"hypers: [{}, {sigma_w: -1}]\n",
        b"paired: 3\n",
        b'"hid\\nden": [3]\n',
        b"a: &a [*a]\n",
    ),
]
SAME_CONFIG: list[bytes] = [  # ways to write one that is none the worse for it
    b"\xef\xbb\xbfdataset: iris\n",
    b"dataset: iris\r\nhidden: [3]\r\n",
    b"dataset: iris",
    b"--- # a document\ndataset: iris\n...\n",
    b"<<: {epochs: 3}\ndataset: iris\n",
    b"config: &a {dataset: iris}\nhypers: []\n",
    b"{dataset: iris, hidden: [3]}",
    b"'dataset': \"iris\"\nlearning_rate: 1e-3\n",
]
