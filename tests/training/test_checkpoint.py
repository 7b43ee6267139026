"""A run that was killed goes on where it stood, to the last bit, on whatever devices; another run is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import small
import yaml
from checkpoint_run import CONFIG, SEEDS
from engine import SETTINGS, changed
from forks import Fork
from paths import TOP
from processes import environment

import vgjax.training.folder
from vgjax import load, run
from vgjax.training import checkpoint

pytestmark = pytest.mark.usefixtures("an_epoch_a_chunk")
LAST = 18  # steps
RESUME = """
import pickle, sys
import jax, numpy as np
import vgjax.training.chunk_plan, vgjax.training.folder
from checkpoint_run import CONFIG, SEEDS, SETTINGS, run, small
vgjax.training.chunk_plan.STEPS_AT_ONCE = 1
vgjax.training.folder.SECONDS_BETWEEN_CHECKPOINTS = 0.0
found = {}
for name, folder, devices in (("one", sys.argv[1], 1), ("two", sys.argv[2], 2), ("whole", sys.argv[3], 1)):
    seen = []
    options = dict(dataset=small.dataset(), folder=folder, tensorboard="none", devices=devices, resume=True)
    result = run(CONFIG, SETTINGS, SEEDS, **options, progress=lambda part, _: seen.append(int(part["evaluated_at"][0])))
    found[name] = seen, result.history.to_dict(), jax.tree.map(np.asarray, result.variables)
with open(sys.argv[4], "wb") as file:
    pickle.dump(found, file)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder whose run was ended by SIGKILL after its second chunk and before its last; what was there then."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = Fork([folder], TOP, environment(2), "import sys, checkpoint_run; checkpoint_run.main(sys.argv[1])")
    deadline = time.monotonic() + 240
    while len(list((folder / "history").glob("until-*.nc"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.errors()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "history.nc").exists()
    return folder


@pytest.fixture(scope="module")
def resumed(killed, tmp_path_factory):
    """The killed run resumed on one device, on two, and an undisturbed one."""
    top = tmp_path_factory.mktemp("resumed")
    folders = [top / name for name in ("one", "two", "whole")]
    for folder in folders[:2]:
        shutil.copytree(killed, folder)
    process = Fork([*folders, top / "found"], TOP, environment(2), RESUME)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return top, pickle.loads((top / "found").read_bytes())


@pytest.mark.slow
def test_the_killed_run_had_a_checkpoint(killed):
    """It stopped half-way: at least one whole checkpoint, and a history that can be read."""
    steps = [int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit()]
    assert steps and max(steps) < LAST
    assert load(killed)["evaluated_at"].values.tolist()[:2] == [3, 6]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["one", "two"])
def test_resumed_is_undisturbed(resumed, which):
    """History and variables are bitwise those of a run that nobody killed; on two devices to rounding."""
    _, found = resumed
    seen, history, variables = found[which]
    whole_seen, whole, whole_variables = found["whole"]
    assert whole_seen == [3, 6, 9, 12, 15, 18] and 0 < len(seen) < 6 and seen == whole_seen[-len(seen) :]
    assert history["coords"]["step"]["data"] == whole["coords"]["step"]["data"]
    exact = which == "one"
    for name, v in whole["data_vars"].items():
        a, b = np.array(history["data_vars"][name]["data"]), np.array(v["data"])
        if exact or a.dtype.kind == "U":
            np.testing.assert_array_equal(a, b, err_msg=name)
        elif "histogram" not in name:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(whole_variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6)


@pytest.mark.slow
def test_the_folder_of_a_resumed_run(resumed):
    """Its merged history is the one that was returned; nothing temporary is left; it says with what it was made."""
    top, found = resumed
    assert load(top / "one").to_dict()["data_vars"]["loss"] == found["one"][1]["data_vars"]["loss"]
    assert not (top / "one" / "history").exists() and not list((top / "one").glob(".*"))
    made_with = json.loads((top / "one" / "environment.json").read_text())
    assert {"python", "versions", "devices", "commit", "date"} <= set(made_with)
    assert made_with["versions"]["jax"] == jax.__version__
    settings = yaml.safe_load((top / "one" / "config.yaml").read_text())
    assert settings["config"]["hidden"] == [8, 6] and settings["seeds"] == [0, 1]
    assert [s["learning_rate"] for s in settings["hypers"]] == [0.1, 0.05]


def again(folder, config=CONFIG, settings=SETTINGS, seeds=SEEDS, resume=True, **options):
    return run(
        config, settings, seeds, dataset=small.dataset(), folder=folder, tensorboard="none", resume=resume, **options
    )


@pytest.mark.slow
def test_a_finished_run_resumed_is_itself(resumed):
    """No step is run again; history and variables are those at its end."""
    top, found = resumed
    seen = []
    result = again(top / "whole", progress=lambda part, _: seen.append(part))
    assert not seen
    assert result.history["loss"].values.tolist() == found["whole"][1]["data_vars"]["loss"]["data"]
    for a, b in zip(jax.tree.leaves(result.variables), jax.tree.leaves(found["whole"][2]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config": changed(epochs=6, norm="batch", norm_at="post_activation", optimizer="adam", hidden=(8, 7))},
            r"hidden is \[8, 6\] there",
        ),
        (
            {"config": changed(epochs=6, norm="batch", norm_at="post_activation", optimizer="sgd")},
            "optimizer is 'adam' there, 'sgd' here",
        ),
        ({"seeds": 3}, r"seeds is \[0, 1\] there, \[0, 1, 2\] here"),
        ({"settings": SETTINGS[0]}, "hypers is"),
        ({"resume": False}, "holds this run already; go on with --resume"),
    ],
)
def test_another_run_is_refused(resumed, changes, message):
    """The first field that differs is named, and the folder stays as it was."""
    folder = resumed[0] / "whole"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match=message) as caught:
        again(folder, **changes)
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_strangers_folder_is_refused(tmp_path):
    """A folder with other things in it is not written into; nor one whose config.yaml is damaged."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        again(tmp_path)
    (tmp_path / "config.yaml").write_text("- not\n- a run\n")
    with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
        again(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("written", [0, 1])
def test_killed_before_it_was_a_run(tmp_path, monkeypatch, written):
    """Between any two of its first files: it is begun again, and lacks none."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vgjax.training.folder, ("write_made_with", "write_plain")[written], killed)
        with pytest.raises(KeyboardInterrupt):
            vgjax.training.folder.RunFolder.open(tmp_path / "run", {"config": {}}, resume=False)
    vgjax.training.folder.RunFolder.open(tmp_path / "run", {"config": {}}, resume=False).close()
    assert {"config.yaml", "environment.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_refusals_leave_no_folder(tmp_path):
    """What cannot run is refused before a folder is made."""
    for config in (changed(activation="rellu"), changed(batch_size=57), changed(optimizer="adamw", decay="l2")):
        with pytest.raises(ValueError):
            again(tmp_path / "run", config=config, resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported(resumed, tmp_path):
    """One line that names the checkpoint, where its arrays were cut off."""
    folder = tmp_path / "run"
    shutil.copytree(resumed[0] / "whole", folder)
    latest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in latest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"checkpoints/{LAST}/SHA256SUMS is damaged") as caught:
        again(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_save_and_restore(tmp_path):
    """Typed keys, integers and floats come back bit for bit; of many checkpoints the last two are kept."""
    tree = {"key": jax.random.split(jax.random.key(3), 2), "count": np.int32(7), "w": np.float32([1e-30, np.nan, -0.0])}
    tree = jax.tree.map(jax.numpy.asarray, tree)
    manager = checkpoint.open_checkpoints(tmp_path)
    assert checkpoint.restore(manager, tree)[0] == 0
    for step in (3, 6, 9):
        checkpoint.save(manager, step, tree)
    manager.wait_until_finished()
    like = jax.tree.map(lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x * 0, tree)
    step, back = checkpoint.restore(manager, like)
    manager.close()
    assert step == 9 and sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [6, 9]
    assert (jax.random.key_data(back["key"]) == jax.random.key_data(tree["key"])).all()
    assert back["count"] == 7 and np.asarray(back["w"]).tobytes() == np.asarray(tree["w"]).tobytes()
