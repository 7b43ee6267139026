"""Data sets by TFDS: prepared once as its builder made them, refused where damaged, and one line without a network."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from idx_files import FOUR
from paths import SUPPORT, TOP

from vgjax.data import catalogue


def register_builders():
    """Small data sets for TFDS to build: a good one, one that fails half-way, and one with images of any size."""
    import tensorflow_datasets as tfds

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")
        SHAPE = (5, 6, 1)

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=self.SHAPE),
                "label": tfds.features.ClassLabel(num_classes=4),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(40), "test": self._generate_examples(9)}

        def _generate_examples(self, count):
            for n in range(count):
                yield n, {"image": tiny_image(n).reshape(5, 6, 1), "label": n % 4}

    class TinyBroken(TinyImages):
        def _generate_examples(self, count):
            yield 0, {"image": tiny_image(0).reshape(5, 6, 1), "label": 0}
            raise RuntimeError("half-way\nand a second line")

    class TinySizes(TinyImages):
        SHAPE = (None, None, 1)

    return TinyImages


def tiny_image(n):
    return ((np.arange(30) * 7 + n * 5) % 256).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_builder():
    return register_builders()


def run_python(code, *args):
    paths = os.pathsep.join([str(SUPPORT), str(TOP), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    """A data folder in which another process had TFDS build and prepare tiny_images."""
    folder = tmp_path_factory.mktemp("data")
    code = "import sys, test_tfds; from vgjax import data; test_tfds.register_builders()\n"
    ran = run_python(code + "data.prepare('tiny_images', sys.argv[1])", folder)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")  # and TFDS and TensorFlow keep quiet
    return folder


@pytest.fixture
def cached(tiny_cache, tmp_path):
    """The file of a copy of that folder."""
    return shutil.copytree(tiny_cache, tmp_path / "data") / "arrays" / "tiny_images.npz"


@pytest.mark.slow
def test_what_tfds_prepared_is_what_its_builder_made(tiny_cache):
    tiny = catalogue.load("tiny_images", tiny_cache)
    assert (tiny.train_inputs.dtype, tiny.train_labels.dtype) == (np.uint8, np.int32)
    assert (tiny.classes, tiny.shape, tiny.source) == (4, (5, 6), "TFDS tiny_images 1.2.3")
    for count, inputs, labels in (40, tiny.train_inputs, tiny.train_labels), (9, tiny.test_inputs, tiny.test_labels):
        found = sorted(zip(inputs.tolist(), labels.tolist(), strict=True))
        assert found == sorted((tiny_image(n).tolist(), n % 4) for n in range(count))


@pytest.mark.slow
def test_only_the_arrays_stay(tiny_cache):
    assert [p.relative_to(tiny_cache).as_posix() for p in tiny_cache.rglob("*")] == ["arrays", "arrays/tiny_images.npz"]


@pytest.mark.slow
def test_cached_arrays_need_neither_tfds_nor_tensorflow(tiny_cache):
    code = "import sys; from vgjax import data; tiny = data.load('tiny_images', sys.argv[1])\n"
    ran = run_python(code + "print(len(tiny.train_labels), *sys.modules)", tiny_cache)
    assert ran.returncode == 0, ran.stderr
    count, *modules = ran.stdout.split()
    assert count == "40"
    assert not {"tensorflow", "tensorflow_datasets", "sklearn", "jax"} & set(modules)


@pytest.mark.slow
def test_what_tfds_itself_prepared_is_taken_in_its_order(tiny_builder, tmp_path):
    import tensorflow_datasets as tfds

    builder = tiny_builder(data_dir=tmp_path)
    builder.download_and_prepare()
    before = sorted(tmp_path.rglob("*"))
    expected = [int(label) for _, label in tfds.as_numpy(builder.as_dataset("train", as_supervised=True))]
    assert expected != [n % 4 for n in range(40)]
    assert catalogue.load("tiny_images", tmp_path).train_labels.tolist() == expected
    assert sorted(p for p in tmp_path.rglob("*") if "arrays" not in p.parts) == before


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: flip(b, b.index(tiny_image(0).tobytes()) + 11),
        lambda b: flip(b, b.index("classes".encode("utf-32-le")) + 4),
        lambda b: flip(b, b.rindex(b"test_labels.npy") + 3),
    ],
)
def test_damaged_cache_is_named_and_refused_and_made_anew_on_request(tiny_builder, cached, damage):
    whole = catalogue.load("tiny_images", cached.parents[1])
    cached.write_bytes(damage(cached.read_bytes()))
    with pytest.raises(ValueError, match=f"{cached} is damaged .*make it anew by `vgjax data prepare tiny_images`"):
        catalogue.load("tiny_images", cached.parents[1])
    again = catalogue.prepare("tiny_images", cached.parents[1])
    np.testing.assert_array_equal(again.train_inputs, whole.train_inputs)
    np.testing.assert_array_equal(catalogue.load("tiny_images", cached.parents[1]).test_labels, whole.test_labels)


@pytest.mark.slow
def test_another_sets_file_is_refused(cached):
    cached.rename(cached.with_name("cifar10.npz"))
    with pytest.raises(ValueError, match=r"cifar10.npz is damaged \(it holds 'tiny_images'\)"):
        catalogue.load("cifar10", cached.parents[1])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
def test_no_pickle_is_loaded(cached, tmp_path, bare):
    bomb, buffer = np.array([Bomb(tmp_path / "went_off")], dtype=object), io.BytesIO()
    np.save(buffer, bomb, allow_pickle=True)
    with zipfile.ZipFile(cached) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(cached, "w") as archive:
        for name, content in members.items():
            harm = pickle.dumps(bomb) if bare else buffer.getvalue()
            archive.writestr(name, harm if name == "train_labels.npy" else content)
    with pytest.raises(ValueError, match=r"tiny_images.npz is damaged"):
        catalogue.load("tiny_images", cached.parents[1])
    assert not (tmp_path / "went_off").exists()


@pytest.mark.slow
def test_a_preparation_that_fails_says_so_in_one_line_and_leaves_nothing(tiny_builder, tmp_path):
    with pytest.raises(ValueError, match=r"'tiny_broken': TFDS cannot prepare it .RuntimeError: .*half-way") as caught:
        catalogue.load("tiny_broken", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words",
    [
        ("minst", "unknown data set 'minst'; did you mean 'mnist'.*allowed: iris.* any TFDS image classification set"),
        ("kminst", "unknown data set 'kminst'; did you mean 'kmnist'"),
        ("emnist/leters", "data set 'emnist' has no variant 'leters'; did you mean 'letters'"),
        ("./nowhere/mnst", "data set './nowhere/mnst': no such folder; did you mean 'mnist'"),
        ("../mnist", "data set '../mnist': no such folder"),
        ("mnist(3)", r"unknown data set 'mnist\(3\)'; did you mean 'mnist'"),
        ("", "unknown data set ''; allowed: iris"),
        (7, "data set 7 is not allowed; allowed: iris"),
        ("nowhere:data", "cannot import 'nowhere'"),
        ("imdb_reviews", "'imdb_reviews' is not image classification: an example has text, label; allowed"),
        ("coco", "'coco' is not image classification"),
        ("tiny_sizes", r"'tiny_sizes' has uint8 images of \?x\?x1; allowed: uint8 images of one size"),
    ],
)
def test_bad_names_get_one_clear_line(tiny_builder, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        catalogue.load(name, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_without_a_network_the_refusal_is_quick_and_says_what_to_do(no_network, tmp_path):
    start = time.perf_counter()
    with pytest.raises(catalogue.DataUnavailable, match=r"train-images-idx3-ubyte.gz.*--manual-dir DIR") as caught:
        catalogue.load("fashion_mnist", tmp_path / "data")
    assert time.perf_counter() - start < 30  # TFDS's own retries take minutes
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_manual_dir_that_is_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        catalogue.load("mnist", tmp_path, tmp_path / "nowhere")
    monkeypatch.setenv("VGJAX_MANUAL_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"no folder .*elsewhere"):
        catalogue.load("mnist", tmp_path)


@pytest.fixture
def originals():
    """MNIST's original files."""
    folder = Path(os.environ.get("VGJAX_MANUAL_DIR", "")) / "mnist"
    if not (folder / f"{FOUR[0]}.gz").is_file():
        pytest.skip("VGJAX_MANUAL_DIR names no folder with MNIST's original files in mnist/")
    return folder


@pytest.mark.slow
def test_mnist_by_tfds_is_mnist_by_its_files(originals, tmp_path):
    by_tfds, by_files = catalogue.load("mnist", tmp_path, originals), catalogue.load(originals)
    assert (by_tfds.train_inputs.shape, by_tfds.test_inputs.shape) == ((60000, 784), (10000, 784))
    assert (by_tfds.shape, by_tfds.classes) == (by_files.shape, by_files.classes) == ((28, 28), 10)
    for split in "train", "test":
        one, other = (
            sorted(zip(map(bytes, getattr(d, f"{split}_inputs")), getattr(d, f"{split}_labels").tolist(), strict=True))
            for d in (by_tfds, by_files)
        )
        assert one == other
    start = time.perf_counter()
    catalogue.load("mnist", tmp_path)
    assert time.perf_counter() - start < 2  # decoded once: typically 0.1 s


def test_a_missing_original_is_asked_of_the_network_once(originals, no_network, tmp_path):
    folder = tmp_path / "mnist"
    shutil.copytree(originals, folder)
    folder.chmod(0o755)
    (folder / f"{FOUR[3]}.gz").unlink()
    start = time.perf_counter()
    with pytest.raises(catalogue.DataUnavailable, match=f"{FOUR[3]}.gz"):
        catalogue.load("mnist", tmp_path / "data", folder)
    assert time.perf_counter() - start < 20  # typically 0.5 s
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.slow
def test_ready_lists_the_table_and_the_cache(cached):
    shutil.copy(cached, cached.with_name("cifar10.npz"))
    rows = {row["name"]: row for row in catalogue.ready(cached.parents[1])}
    assert list(rows) == [*catalogue.DATASETS, "tiny_images"]
    tiny = {"ready": True, "where": str(cached), "train": 40, "test": 9, "shape": (5, 6), "classes": 4}
    assert rows["tiny_images"] == {"name": "tiny_images", "source": "TFDS tiny_images 1.2.3"} | tiny
    assert (rows["digits"]["ready"], rows["digits"]["train"], rows["digits"]["shape"]) == (True, 1500, (8, 8))
    assert (rows["mnist"]["ready"], rows["mnist"]["train"]) == (False, None)
    assert not rows["cifar10"]["ready"] and "is damaged" in rows["cifar10"]["source"]
