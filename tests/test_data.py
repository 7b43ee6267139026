"""Data sets: what is loaded equals what was written, and nothing damaged, unknown or half-written gets through."""

import contextlib
import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vgjax import data

FOUR = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def bytes_of_idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, arrays, names=FOUR, zipped=False):
    folder.mkdir(exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        content = bytes_of_idx(array)
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (7, 3, 4)), np.arange(7) % 5, draw.integers(0, 256, (4, 3, 4)), np.arange(4)]


# Embedded


def test_iris_is_scikit_learns_unscaled():
    from sklearn.datasets import load_iris

    iris, petal = data.load("iris"), data.load("iris_petal")
    assert (iris.train_inputs.dtype, iris.train_labels.dtype, iris.shape, iris.classes) == ("f4", "i4", (4,), 3)
    np.testing.assert_allclose(iris.train_inputs, load_iris().data, rtol=1e-7)
    np.testing.assert_array_equal(iris.test_labels, np.repeat([0, 1, 2], 50))
    np.testing.assert_allclose(petal.test_inputs, load_iris(as_frame=True).data.filter(like="petal"), rtol=1e-7)


def test_digits_fill_the_range_of_bytes_and_are_cut_at_1500():
    from sklearn.datasets import load_digits

    digits, images = data.load("digits"), load_digits().data
    assert (digits.train_inputs.shape, digits.test_inputs.shape) == ((1500, 64), (297, 64))
    assert (digits.train_inputs.dtype, digits.shape, digits.train_inputs.max()) == ("u1", (8, 8), 255)
    np.testing.assert_allclose(digits.test_inputs / 255 * 16, images[1500:], atol=16 / 255 / 2)
    np.testing.assert_array_equal(digits.train_labels, load_digits().target[:1500])


# The user's own


def of_its_own(**changes):
    inputs, labels = np.zeros((3, 2), np.uint8), np.array([0, 1, 1], np.int32)
    parts = {"train_inputs": inputs, "train_labels": labels, "test_inputs": inputs, "test_labels": labels}
    return data.Dataset("own", **({"classes": 2, "shape": (2,), "source": "here"} | parts | changes))


def test_own_data_sets_by_import_path_callable_or_value(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(
        "from vgjax.data import load\ndef small():\n    return load('iris')\ndef wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert data.load("mydata:small").name == "iris"
    assert data.load(of_its_own).name == "own"
    value = of_its_own()
    assert data.load(value) is value
    with pytest.raises(ValueError, match=r"'mydata:wrong' gives a int; allowed: vgjax.data.Dataset"):
        data.load("mydata:wrong")
    with pytest.raises(ValueError, match="mydata has no 'smal'; did you mean 'small'"):
        data.load("mydata:smal")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train_inputs": np.zeros((3, 2))}, "train split has float64 inputs"),
        ({"train_labels": np.zeros(3)}, "float64 labels; allowed: uint8 or float32, and int32"),
        ({"test_inputs": np.zeros((3, 2), np.float32)}, "test split has float32 inputs, where training has uint8"),
        ({"test_inputs": np.zeros((4, 2), np.uint8)}, r"test split has inputs \(4, 2\) and labels \(3,\)"),
        ({"shape": (3,)}, r"allowed: \(N, 3\)"),
        ({"classes": 1}, "labels 0 to 1; allowed: 0 to 0"),
        ({"test_labels": np.array([0, -1, 1], np.int32)}, "test split has labels -1 to 1"),
        (
            {k: np.full((3, 2), np.nan, np.float32) for k in ("train_inputs", "test_inputs")},
            "6 of 6 inputs",
        ),
        ({"train_inputs": np.zeros((0, 2), np.uint8), "train_labels": np.zeros(0, np.int32)}, "N > 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=f"data set 'own': .*{words}"):
        of_its_own(**changes)


# IDX folders


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("names", [FOUR, [n.replace("t10k", "test").replace("-idx", ".idx") for n in FOUR]])
def test_idx_folder_gives_what_was_written(tmp_path, arrays, zipped, names):
    found = data.load(str(write_idx(tmp_path / "x", arrays, names, zipped)))
    np.testing.assert_array_equal(found.train_inputs, arrays[0].reshape(7, 12))
    np.testing.assert_array_equal(found.train_labels, arrays[1])
    np.testing.assert_array_equal(found.test_inputs, arrays[2].reshape(4, 12))
    np.testing.assert_array_equal(found.test_labels, arrays[3])
    assert (found.train_inputs.dtype, found.train_labels.dtype) == (np.uint8, np.int32)
    assert (found.classes, found.shape) == (5, (3, 4))


def test_a_row_goes_before_a_folder_of_its_name_and_a_path_means_the_folder(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "iris", arrays)
    write_idx(tmp_path / "mine", arrays)
    assert data.load("iris").shape == (4,)
    assert data.load("./iris").shape == data.load("mine").shape == data.load(Path("mine")).shape == (3, 4)


@pytest.mark.parametrize(
    "name, damage, words",
    [
        (FOUR[0], lambda b: b[:-1], "is damaged: 99 bytes, where its header announces 100"),
        (FOUR[0], lambda b: b + b"\0", "is damaged: 101 bytes, where its header announces 100"),
        (FOUR[2], lambda b: b[:9], "is damaged: 9 bytes"),
        (FOUR[2], lambda b: b[:4] + b"\xff" * 12 + b[16:], "is damaged: 64 bytes"),
        (FOUR[3], lambda b: b"", "is not an IDX file"),
        (FOUR[1], lambda b: b"\0\0\x0d" + b[3:], "begins with 00 00 0d, not 00 00 08"),
        (FOUR[1], lambda b: gzip.compress(b)[:-3], "damaged"),
        (FOUR[1], lambda b: gzip.compress(b)[:-8] + b"\0" * 8, "damaged"),
        (FOUR[1], lambda b: gzip.compress(b[:-1]), "is damaged: 14 bytes"),
    ],
)
def test_damaged_idx_files_are_named_and_refused(tmp_path, arrays, name, damage, words):
    path = write_idx(tmp_path / "x", arrays) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} .*{words}") as caught:
        data.load(path.parent)
    assert "\n" not in str(caught.value)


def test_no_cut_of_a_gzipped_file_passes(tmp_path, arrays):
    path = write_idx(tmp_path / "x", arrays, zipped=True) / f"{FOUR[0]}.gz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            data.load(path.parent)


@pytest.mark.parametrize(
    "place, array, words",
    [
        (1, np.arange(6), r"images \(7, 3, 4\) and labels \(6,\) do not belong together"),
        (1, np.zeros((7, 2)), "do not belong together"),
        (2, np.zeros((4, 4, 4)), r"training images are \(3, 4\), test images \(4, 4\)"),
        (2, np.zeros((0, 3, 4)), "do not belong together"),
    ],
)
def test_idx_files_of_different_sets_are_refused(tmp_path, arrays, place, array, words):
    arrays[place] = array
    with pytest.raises(ValueError, match=words):
        data.load(write_idx(tmp_path / "x", arrays))


@pytest.mark.parametrize("name", FOUR)
def test_a_missing_idx_file_is_named(tmp_path, arrays, name):
    (write_idx(tmp_path / "x", arrays) / name).unlink()
    with pytest.raises(ValueError, match=f"it has no {name} and no {name}.gz"):
        data.load(tmp_path / "x")


# TFDS


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
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
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
    code = "import sys, test_data; from vgjax import data; test_data.register_builders()\n"
    ran = run_python(code + "data.prepare('tiny_images', sys.argv[1])", folder)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")  # and TFDS and TensorFlow keep quiet
    return folder


@pytest.fixture
def cached(tiny_cache, tmp_path):
    """The file of a copy of that folder."""
    return shutil.copytree(tiny_cache, tmp_path / "data") / "arrays" / "tiny_images.npz"


def test_what_tfds_prepared_is_what_its_builder_made(tiny_cache):
    tiny = data.load("tiny_images", tiny_cache)
    assert (tiny.train_inputs.dtype, tiny.train_labels.dtype) == (np.uint8, np.int32)
    assert (tiny.classes, tiny.shape, tiny.source) == (4, (5, 6), "TFDS tiny_images 1.2.3")
    for count, inputs, labels in (40, tiny.train_inputs, tiny.train_labels), (9, tiny.test_inputs, tiny.test_labels):
        found = sorted(zip(inputs.tolist(), labels.tolist(), strict=True))
        assert found == sorted((tiny_image(n).tolist(), n % 4) for n in range(count))


def test_only_the_arrays_stay(tiny_cache):
    assert [p.relative_to(tiny_cache).as_posix() for p in tiny_cache.rglob("*")] == ["arrays", "arrays/tiny_images.npz"]


def test_cached_arrays_need_neither_tfds_nor_tensorflow(tiny_cache):
    code = "import sys; from vgjax import data; tiny = data.load('tiny_images', sys.argv[1])\n"
    ran = run_python(code + "print(len(tiny.train_labels), *sys.modules)", tiny_cache)
    assert ran.returncode == 0, ran.stderr
    count, *modules = ran.stdout.split()
    assert count == "40"
    assert not {"tensorflow", "tensorflow_datasets", "sklearn", "jax"} & set(modules)


def test_what_tfds_itself_prepared_is_taken_in_its_order(tiny_builder, tmp_path):
    import tensorflow_datasets as tfds

    builder = tiny_builder(data_dir=tmp_path)
    builder.download_and_prepare()
    before = sorted(tmp_path.rglob("*"))
    expected = [int(label) for _, label in tfds.as_numpy(builder.as_dataset("train", as_supervised=True))]
    assert expected != [n % 4 for n in range(40)]
    assert data.load("tiny_images", tmp_path).train_labels.tolist() == expected
    assert sorted(p for p in tmp_path.rglob("*") if "arrays" not in p.parts) == before


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


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
    whole = data.load("tiny_images", cached.parents[1])
    cached.write_bytes(damage(cached.read_bytes()))
    with pytest.raises(ValueError, match=f"{cached} is damaged .*make it anew by `vgjax data prepare tiny_images`"):
        data.load("tiny_images", cached.parents[1])
    again = data.prepare("tiny_images", cached.parents[1])
    np.testing.assert_array_equal(again.train_inputs, whole.train_inputs)
    np.testing.assert_array_equal(data.load("tiny_images", cached.parents[1]).test_labels, whole.test_labels)


def test_another_sets_file_is_refused(cached):
    cached.rename(cached.with_name("cifar10.npz"))
    with pytest.raises(ValueError, match=r"cifar10.npz is damaged \(it holds 'tiny_images'\)"):
        data.load("cifar10", cached.parents[1])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


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
        data.load("tiny_images", cached.parents[1])
    assert not (tmp_path / "went_off").exists()


def test_a_preparation_that_fails_says_so_in_one_line_and_leaves_nothing(tiny_builder, tmp_path):
    with pytest.raises(ValueError, match=r"'tiny_broken': TFDS cannot prepare it .RuntimeError: .*half-way") as caught:
        data.load("tiny_broken", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


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
        data.load(name, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.fixture
def no_network(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens at the port named discard
        monkeypatch.setenv(variable.upper(), "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY", "VGJAX_MANUAL_DIR"):
        monkeypatch.delenv(variable, raising=False)


def test_without_a_network_the_refusal_is_quick_and_says_what_to_do(no_network, tmp_path):
    start = time.perf_counter()
    with pytest.raises(data.DataUnavailable, match=r"train-images-idx3-ubyte.gz.*--manual-dir DIR") as caught:
        data.load("fashion_mnist", tmp_path / "data")
    assert time.perf_counter() - start < 30  # TFDS's own retries take minutes
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_file_with_the_wrong_checksum_is_named(no_network, tmp_path, arrays):
    folder = write_idx(tmp_path / "mnist", arrays, zipped=True)
    for given in tmp_path, folder:
        with pytest.raises(ValueError, match=f"'mnist': {folder}/t.*.gz is not the file that TFDS's checksum asks for"):
            data.load("mnist", tmp_path / "data", given)
        assert list((tmp_path / "data").iterdir()) == []


def test_a_manual_dir_that_is_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        data.load("mnist", tmp_path, tmp_path / "nowhere")
    monkeypatch.setenv("VGJAX_MANUAL_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"no folder .*elsewhere"):
        data.load("mnist", tmp_path)


@pytest.fixture
def originals():
    """MNIST's original files."""
    folder = Path(os.environ.get("VGJAX_MANUAL_DIR", "")) / "mnist"
    if not (folder / f"{FOUR[0]}.gz").is_file():
        pytest.skip("VGJAX_MANUAL_DIR names no folder with MNIST's original files in mnist/")
    return folder


def test_mnist_by_tfds_is_mnist_by_its_files(originals, tmp_path):
    by_tfds, by_files = data.load("mnist", tmp_path, originals), data.load(originals)
    assert (by_tfds.train_inputs.shape, by_tfds.test_inputs.shape) == ((60000, 784), (10000, 784))
    assert (by_tfds.shape, by_tfds.classes) == (by_files.shape, by_files.classes) == ((28, 28), 10)
    for split in "train", "test":
        one, other = (
            sorted(zip(map(bytes, getattr(d, f"{split}_inputs")), getattr(d, f"{split}_labels").tolist(), strict=True))
            for d in (by_tfds, by_files)
        )
        assert one == other
    start = time.perf_counter()
    data.load("mnist", tmp_path)
    assert time.perf_counter() - start < 2  # decoded once: typically 0.1 s


def test_a_missing_original_is_asked_of_the_network_once(originals, no_network, tmp_path):
    folder = tmp_path / "mnist"
    shutil.copytree(originals, folder)
    folder.chmod(0o755)
    (folder / f"{FOUR[3]}.gz").unlink()
    start = time.perf_counter()
    with pytest.raises(data.DataUnavailable, match=f"{FOUR[3]}.gz"):
        data.load("mnist", tmp_path / "data", folder)
    assert time.perf_counter() - start < 20  # typically 0.5 s
    assert list((tmp_path / "data").iterdir()) == []


# The list, the folders


def test_ready_lists_the_table_and_the_cache(cached):
    shutil.copy(cached, cached.with_name("cifar10.npz"))
    rows = {row["name"]: row for row in data.ready(cached.parents[1])}
    assert list(rows) == [*data.DATASETS, "tiny_images"]
    tiny = {"ready": True, "where": str(cached), "train": 40, "test": 9, "shape": (5, 6), "classes": 4}
    assert rows["tiny_images"] == {"name": "tiny_images", "source": "TFDS tiny_images 1.2.3"} | tiny
    assert (rows["digits"]["ready"], rows["digits"]["train"], rows["digits"]["shape"]) == (True, 1500, (8, 8))
    assert (rows["mnist"]["ready"], rows["mnist"]["train"]) == (False, None)
    assert not rows["cifar10"]["ready"] and "is damaged" in rows["cifar10"]["source"]


def test_ready_writes_nothing(tmp_path):
    assert [row["name"] for row in data.ready(tmp_path / "none")] == list(data.DATASETS)
    assert not (tmp_path / "none").exists()


def test_where_data_is_kept(monkeypatch):
    for variable in ("VGJAX_DATA_DIR", "TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert data.default_data_dir() == Path.home() / ".cache" / "vgjax"
    for variable, given, expected in (  # each goes before the one above it
        ("XDG_CACHE_HOME", "/a", "/a/vgjax"),
        ("TFDS_DATA_DIR", "/b", "/b"),
        ("VGJAX_DATA_DIR", "~/c", Path.home() / "c"),
    ):
        monkeypatch.setenv(variable, given)
        assert data.default_data_dir() == Path(expected)


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_row_makes_a_data_set_or_says_what_is_missing(name, no_network, tmp_path):
    with contextlib.suppress(data.DataUnavailable):
        made = data.DATASETS[name].make(tmp_path)
        assert (made.name, set(made.train_labels)) == (name, set(range(made.classes)))
