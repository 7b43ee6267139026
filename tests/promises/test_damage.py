"""Files of which a bit has flipped or the end is missing are named and refused; what is read executes nothing."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small

import vgjax.training.folder
from vgjax import load, run
from vgjax.command.cli import main
from vgjax.data import catalogue
from vgjax.sweeps.grid import Grid
from vgjax.sweeps.sweep import sweep

pytestmark = pytest.mark.usefixtures("an_epoch_a_chunk")
STEPS = [3, 6, 9]
FLIPS = 6  # in each file


def go(folder, resume=True, **options):
    return run(small.CONFIG, dataset=small.dataset(), folder=folder, tensorboard="none", resume=resume, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that ended, with its last two checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgjax.training.folder, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        folder = tmp_path_factory.mktemp("whole") / "run"
        go(folder, resume=False)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same, stopped after its second chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgjax.training.folder, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        folder = tmp_path_factory.mktemp("stopped") / "run"

        def stop(part, _):
            if part["evaluated_at"].values[-1] == STEPS[1]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go(folder, resume=False, progress=stop)
    return folder


def flips(content, n, seed=0):
    """The content with one bit flipped, n times another."""
    rng = np.random.default_rng(seed)
    for place in rng.integers(8 * len(content), size=n):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def files_of(folder):
    """What a run is gone on with; of one step's checkpoints the last."""
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".csv"]
    return [path for path in found if last in path.parents or last.parent not in path.parents]


@pytest.mark.parametrize("which", ["stopped", "whole"])
def test_a_flipped_bit(which, request, whole, tmp_path):
    """Anywhere in a run's folder: the file is named and nothing touched, or the run ends as the undisturbed one."""
    origin, folder = request.getfixturevalue(which), tmp_path / "run"
    expected, named = load(whole), 0
    shutil.copytree(origin, folder)
    for file in files_of(folder):
        content = file.read_bytes()
        for damaged in flips(content, FLIPS):
            file.write_bytes(damaged)
            before = contents(folder)
            try:
                result = go(folder)
            except ValueError as error:
                assert str(file) in str(error) and "\n" not in str(error), error
                assert contents(folder) == before
                named += 1
                file.write_bytes(content)
            else:
                assert small.identical(result.history, expected) and small.identical(load(folder), expected), file
                shutil.rmtree(folder)
                shutil.copytree(origin, folder)
    assert named >= FLIPS * 10


@pytest.mark.parametrize("which", ["stopped", "whole"])
def test_a_cut_file(which, request, tmp_path):
    """Half of it, or nothing, of every file that a run is gone on with."""
    origin, folder = request.getfixturevalue(which), tmp_path / "run"
    shutil.copytree(origin, folder)
    harmless = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax's notes for itself
    for file in [file for file in files_of(folder) if file.name not in harmless]:
        content = file.read_bytes()
        for end in (0, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:end])
            before = contents(folder)
            with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
                go(folder)
            assert "\n" not in str(caught.value) and contents(folder) == before
        file.write_bytes(content)
    assert small.identical(go(folder).history, load(request.getfixturevalue("whole")))


def test_without_the_damaged_checkpoint(stopped, whole, tmp_path, capfd):
    """The line says what to do, and that works to the last bit: from the checkpoint before, or from the start."""
    for origin in (stopped, whole):
        folder = tmp_path / origin.parent.name
        shutil.copytree(origin, folder)
        last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
        [file, *_] = (last / "state" / "d").iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match=f"{file} is damaged.*without the folder {last} the run goes on"):
            go(folder)
        shutil.rmtree(last)
        seen = []
        result = go(folder, progress=lambda part, _, seen=seen: seen.append(int(part["evaluated_at"].values[-1])))
        assert seen == (STEPS if origin == whole else STEPS[1:])
        assert small.identical(result.history, load(whole)) and small.identical(load(folder), load(whole))
    assert capfd.readouterr().err == ""


def test_a_missing_chunk(stopped, whole, tmp_path):
    """A hole in the history is seen; without the checkpoints the run begins anew, as the line says."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    (folder / "history" / f"until-{STEPS[0]:09d}.nc").unlink()
    with pytest.raises(ValueError, match=f"{folder}: .*missing; without {folder / 'checkpoints'} the run begins anew"):
        go(folder)
    shutil.rmtree(folder / "checkpoints")
    assert small.identical(go(folder).history, load(whole))


def test_the_checksums_are_those_of_sha256sum(whole):
    """Another program finds the same: of the files of a checkpoint, and of what is above a file's last line."""
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    for step in (whole / "checkpoints").iterdir():
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=step, check=True, capture_output=True)
    for name in ("config.yaml", "history.nc"):
        content, seal, digest = (whole / name).read_bytes().rpartition(b"# sha256 ")
        assert seal and digest.decode().strip() == hashlib.sha256(content).hexdigest()


def test_a_damaged_config_on_the_command_line(whole, tmp_path, capfd):
    """`--resume` takes its options from the run's config.yaml: a bit in it is no other option."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    file = folder / "config.yaml"
    file.write_bytes(file.read_bytes().replace(b"tanh", b"ta~h"))
    assert main(["train", "--resume", "--out", str(folder)]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"vgjax: {file} is damaged") and said.count("\n") == 1


def test_a_damaged_sweep(tmp_path):
    """A bit in a slice, finished or not, or in the sweep's own history, which is made anew."""
    grid = Grid(product={"learning_rate": [0.1, 0.2]}, config=small.CONFIG)
    expected = sweep(grid, folder=tmp_path, dataset=small.dataset(), lanes=1)
    slices = [file for file in sorted(tmp_path.glob("slices/*/*")) if file.suffix in (".yaml", ".nc")]
    assert len(slices) == 4
    for file in [*slices, tmp_path / "history.nc"]:
        content = file.read_bytes()
        for damaged in flips(content, FLIPS):
            file.write_bytes(damaged)
            if file in slices:
                with pytest.raises(ValueError, match=re.escape(str(file))):
                    sweep(grid, folder=tmp_path, dataset=small.dataset(), lanes=1)
                assert file.read_bytes() == damaged
            else:
                assert small.identical(sweep(grid, folder=tmp_path, dataset=small.dataset(), lanes=1), expected)
                assert small.identical(load(tmp_path), expected)
        file.write_bytes(content)


def test_other_idx_files(tmp_path):
    """A changed pixel cannot be seen in them, but a run that was begun with others is not gone on with."""
    content = np.arange(400) % 256
    for split, n in (("train", 40), ("t10k", 10)):
        for kind, sizes, rank in (("images", (n, 2, 2), 3), ("labels", (n,), 1)):
            head = bytes([0, 0, 8, rank]) + b"".join(size.to_bytes(4, "big") for size in sizes)
            values = content[: np.prod(sizes)] % (256 if rank == 3 else 3)
            (tmp_path / f"{split}-{kind}-idx{rank}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    line = ["train", "--dataset", str(tmp_path), "--hidden", "4", "--batch-size", "20", "--epochs", "1"]
    line += ["--out", str(tmp_path / "run"), "--tensorboard", "none"]
    assert main(line) == 0
    file = tmp_path / "train-images-idx3-ubyte"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(ValueError, match=r"holds another run \(data is 'IDX files in"):
        run(
            vgjax.Config(dataset=str(tmp_path), hidden=(4,), batch_size=20, epochs=1),
            dataset=catalogue.load(str(tmp_path)),
            folder=tmp_path / "run",
            resume=True,
        )


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_loaded(whole, stopped, tmp_path):
    """Whatever file of a run or a data set has a pickle in it, bare, as .npy or as .npz, with its right checksum."""
    went_off, array = tmp_path / "went_off", np.array([Bomb(tmp_path / "went_off")], dtype=object)
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, array, allow_pickle=True)
    np.savez(npz, facts=array, train_inputs=array)
    bombs = [pickle.dumps(array), npy.getvalue(), npz.getvalue()]
    for origin in (whole, stopped):
        folder = tmp_path / origin.parent.name
        shutil.copytree(origin, folder)
        for file in files_of(folder):
            content = file.read_bytes()
            sums = next((above / "SHA256SUMS" for above in file.parents if (above / "SHA256SUMS").exists()), None)
            for bomb in bombs:
                file.write_bytes(bomb + b"# sha256 " + hashlib.sha256(bomb).hexdigest().encode() + b"\n")
                with pytest.MonkeyPatch.context() as patch:
                    if sums and file != sums:  # whoever wrote the bomb has written its checksum too
                        lines, digest = sums.read_text(), hashlib.sha256(file.read_bytes()).hexdigest()
                        patch.setattr(
                            Path,
                            "read_text",
                            read_instead(
                                sums,
                                re.sub(rf"\w+(?=  {re.escape(str(file.relative_to(sums.parent)))}\n)", digest, lines),
                            ),
                        )
                    try:
                        go(folder)
                    except ValueError as error:
                        assert "\n" not in str(error)
                    else:
                        assert file.name in ("_CHECKPOINT_METADATA", "commit_success.txt") or "process_0" in str(file)
                assert not went_off.exists(), file
            shutil.rmtree(folder)
            shutil.copytree(origin, folder)
            assert file.read_bytes() == content
    cache = tmp_path / "data" / "arrays" / "mnist.npz"
    cache.parent.mkdir(parents=True)
    for bomb in bombs:
        cache.write_bytes(bomb)
        with pytest.raises(ValueError, match=f"{cache} is damaged"):
            catalogue.load("mnist", tmp_path / "data")
    assert not went_off.exists()
    pickle.loads(bombs[0])
    assert went_off.exists()  # it would have


def read_instead(file, text):
    read = Path.read_text
    return lambda path, *args, **kwargs: text if path == file else read(path, *args, **kwargs)


@pytest.mark.parametrize("command", [["train", "--config-file"], ["show", "--config-file"], ["sweep"]])
def test_yaml_executes_nothing(tmp_path, monkeypatch, capfd, command):
    """Python's own tags are refused in one line, in every YAML that a user gives."""
    monkeypatch.chdir(tmp_path)
    for tag in ("object/apply:os.system ['touch executed']", "object/new:subprocess.Popen [[touch, executed]]"):
        Path("f.yaml").write_text(f"dataset: iris\nactivation: !!python/{tag}\nproduct: {{depth: [1]}}")
        assert main([*command, "f.yaml"]) == 2
        said = capfd.readouterr().err
        assert said.startswith("vgjax: f.yaml: damaged") and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f.yaml"]


def test_a_runs_own_yaml_executes_nothing(whole, tmp_path):
    """Nor where it has the right checksum."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    content = f"config: !!python/object/apply:os.system ['touch {tmp_path}/executed']\n".encode()
    seal = f"# sha256 {hashlib.sha256(content).hexdigest()}\n"
    (folder / "config.yaml").write_bytes(content + seal.encode())
    with pytest.raises(ValueError, match=r"config\.yaml is damaged") as caught:
        go(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()
