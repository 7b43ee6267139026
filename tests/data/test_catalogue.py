"""Data sets: what is loaded equals what was written, and nothing damaged, unknown or half-written gets through."""

import contextlib
import gzip
from pathlib import Path

import numpy as np
import pytest
from idx_files import FOUR, write_idx

from vgjax.data import catalogue


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (7, 3, 4)), np.arange(7) % 5, draw.integers(0, 256, (4, 3, 4)), np.arange(4)]


# Embedded


def test_iris_is_scikit_learns_unscaled():
    from sklearn.datasets import load_iris

    iris, petal = catalogue.load("iris"), catalogue.load("iris_petal")
    assert (iris.train_inputs.dtype, iris.train_labels.dtype, iris.shape, iris.classes) == ("f4", "i4", (4,), 3)
    np.testing.assert_allclose(iris.train_inputs, load_iris().data, rtol=1e-7)
    np.testing.assert_array_equal(iris.test_labels, np.repeat([0, 1, 2], 50))
    np.testing.assert_allclose(petal.test_inputs, load_iris(as_frame=True).data.filter(like="petal"), rtol=1e-7)


def test_digits_fill_the_range_of_bytes_and_are_cut_at_1500():
    from sklearn.datasets import load_digits

    digits, images = catalogue.load("digits"), load_digits().data
    assert (digits.train_inputs.shape, digits.test_inputs.shape) == ((1500, 64), (297, 64))
    assert (digits.train_inputs.dtype, digits.shape, digits.train_inputs.max()) == ("u1", (8, 8), 255)
    np.testing.assert_allclose(digits.test_inputs / 255 * 16, images[1500:], atol=16 / 255 / 2)
    np.testing.assert_array_equal(digits.train_labels, load_digits().target[:1500])


# The user's own


def of_its_own(**changes):
    inputs, labels = np.zeros((3, 2), np.uint8), np.array([0, 1, 1], np.int32)
    parts = {"train_inputs": inputs, "train_labels": labels, "test_inputs": inputs, "test_labels": labels}
    return catalogue.Dataset("own", **({"classes": 2, "shape": (2,), "source": "here"} | parts | changes))


def test_own_data_sets_by_import_path_callable_or_value(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(
        "from vgjax.data.catalogue import load\ndef small():\n    return load('iris')\ndef wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert catalogue.load("mydata:small").name == "iris"
    assert catalogue.load(of_its_own).name == "own"
    value = of_its_own()
    assert catalogue.load(value) is value
    with pytest.raises(ValueError, match=r"'mydata:wrong' gives a int; allowed: vgjax.data.Dataset"):
        catalogue.load("mydata:wrong")
    with pytest.raises(ValueError, match="mydata has no 'smal'; did you mean 'small'"):
        catalogue.load("mydata:smal")


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
    found = catalogue.load(str(write_idx(tmp_path / "x", arrays, names, zipped)))
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
    assert catalogue.load("iris").shape == (4,)
    assert (
        catalogue.load("./iris").shape == catalogue.load("mine").shape == catalogue.load(Path("mine")).shape == (3, 4)
    )


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
        catalogue.load(path.parent)
    assert "\n" not in str(caught.value)


def test_no_cut_of_a_gzipped_file_passes(tmp_path, arrays):
    path = write_idx(tmp_path / "x", arrays, zipped=True) / f"{FOUR[0]}.gz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            catalogue.load(path.parent)


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
        catalogue.load(write_idx(tmp_path / "x", arrays))


@pytest.mark.parametrize("name", FOUR)
def test_a_missing_idx_file_is_named(tmp_path, arrays, name):
    (write_idx(tmp_path / "x", arrays) / name).unlink()
    with pytest.raises(ValueError, match=f"it has no {name} and no {name}.gz"):
        catalogue.load(tmp_path / "x")


def test_a_file_with_the_wrong_checksum_is_named(no_network, tmp_path, arrays):
    folder = write_idx(tmp_path / "mnist", arrays, zipped=True)
    for given in tmp_path, folder:
        with pytest.raises(ValueError, match=f"'mnist': {folder}/t.*.gz is not the file that TFDS's checksum asks for"):
            catalogue.load("mnist", tmp_path / "data", given)
        assert list((tmp_path / "data").iterdir()) == []


# The list, the folders


def test_ready_writes_nothing(tmp_path):
    assert [row["name"] for row in catalogue.ready(tmp_path / "none")] == list(catalogue.DATASETS)
    assert not (tmp_path / "none").exists()


def test_where_data_is_kept(monkeypatch):
    for variable in ("VGJAX_DATA_DIR", "TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert catalogue.default_data_dir() == Path.home() / ".cache" / "vgjax"
    for variable, given, expected in (  # each goes before the one above it
        ("XDG_CACHE_HOME", "/a", "/a/vgjax"),
        ("TFDS_DATA_DIR", "/b", "/b"),
        ("VGJAX_DATA_DIR", "~/c", Path.home() / "c"),
    ):
        monkeypatch.setenv(variable, given)
        assert catalogue.default_data_dir() == Path(expected)


@pytest.mark.parametrize("name", catalogue.DATASETS)
def test_every_row_makes_a_data_set_or_says_what_is_missing(name, no_network, tmp_path):
    with contextlib.suppress(catalogue.DataUnavailable):
        made = catalogue.DATASETS[name].make(tmp_path)
        assert (made.name, set(made.train_labels)) == (name, set(range(made.classes)))
