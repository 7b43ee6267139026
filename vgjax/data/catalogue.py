"""Data sets: name → arrays. Embedded (scikit-learn), from TFDS, a folder of IDX files, or the user's own function.

Inputs are flat: uint8 as stored, or float32; scaling belongs to the config. What TFDS prepares is decoded once and
kept as one .npz file of plain arrays, whose checksums are verified at every load.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from vgjax.data.dataset import Dataset, DataUnavailable, empty_classes
from vgjax.data.idx import idx_folder
from vgjax.data.tfds import check_at_hand, check_kind, decode, in_one_line, quiet_tfds
from vgjax.names import Entry, import_function, nearest, text_of

__all__ = [
    "DATASETS",
    "EMBEDDED",
    "DataUnavailable",
    "Dataset",
    "default_data_dir",
    "empty_classes",
    "load",
    "prepare",
    "ready",
]
ARRAYS = ("train_inputs", "train_labels", "test_inputs", "test_labels")
KINDS = "any TFDS image classification set, a folder of IDX files, or module:function"
PathLike = str | os.PathLike[str]


class _Damaged(ValueError):
    """A damaged file of the cache."""

    def __init__(self, path: Path, name: str, why: object) -> None:
        super().__init__(f"{path} is damaged ({why}): make it anew by `vgjax data prepare {name}`")
        self.path = path


Named = str | os.PathLike[str] | Callable[..., Dataset] | Dataset


def load(
    name: Named,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
) -> Dataset:
    """The data set of that name; one of TFDS's is downloaded and prepared at its first use.

    Args:
      name: a row of `DATASETS`, the TFDS name of an image classification set, a folder of IDX files, `module:function`,
        or in Python a function returning a `Dataset`, or the `Dataset` itself. A row goes before a folder of the same
        name: write `./mnist` for the folder.
      data_dir: where prepared arrays are kept; None: `default_data_dir()`. What TFDS itself prepared there is used.
      manual_dir: original files, as an alternative to downloading: the folder of the data set, or its parent with one
        folder per TFDS name; None: the environment's VGJAX_MANUAL_DIR.

    Returns:
      The arrays, checked.

    Raises:
      DataUnavailable: no files and no network.
      ValueError: an unknown name, or files that are damaged or not what they should be.
    """
    if isinstance(name, Dataset):
        return name
    if callable(name):
        return _own(name)
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"data set {name!r} is not allowed; allowed: {', '.join(DATASETS)}, {KINDS}")
    text = os.fspath(name)
    if text in DATASETS:
        return DATASETS[text].make(data_dir, manual_dir)
    folder = Path(os.path.expanduser(text))
    if text and folder.is_dir():
        return idx_folder(folder)
    if ":" in text:
        return _own(import_function("data set", text))
    if re.fullmatch(r"\w+(/\w[\w.-]*)?", text):  # `emnist/letters` is TFDS's way to name a variant
        return tfds_set(text, data_dir, manual_dir)
    if os.sep in text or "/" in text:
        raise ValueError(f"data set {text!r}: no such folder; {nearest(folder.name, DATASETS)}, {KINDS}")
    raise ValueError(f"unknown data set {text!r}; {nearest(text, DATASETS)}, {KINDS}")


def prepare(
    name: Named,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
) -> Dataset:
    """As `load`, with the same arguments and errors, except that a damaged file of the cache is made anew."""
    try:
        return load(name, data_dir, manual_dir)
    except _Damaged as error:
        error.path.unlink()
        return load(name, data_dir, manual_dir)


def ready(data_dir: PathLike | None = None) -> list[dict[str, Any]]:
    """One row for each data set of the table and for each other one in the cache.

    Returns:
      Rows of name, ready, where, train and test [examples], shape, classes, source; None where it is not known yet.
    """
    cache = _cache(data_dir)
    others = sorted(p.relative_to(cache).with_suffix("").as_posix() for p in cache.rglob("*.npz"))
    rows = []
    for name in dict.fromkeys([*DATASETS, *others]):
        path = cache / f"{name}.npz"
        row = {"name": name, "ready": False, "where": "", "train": None, "test": None, "shape": None, "classes": None}
        row["source"] = DATASETS[name].source if name in DATASETS else ""
        if name in EMBEDDED:
            row |= _facts(load(name)) | {"ready": True, "where": "scikit-learn"}
        elif path.is_file():
            row["where"] = str(path)
            try:
                row |= _read(path, name)[0] | {"ready": True}
            except _Damaged as error:
                row["source"] = str(error)
        rows.append(row)
    return rows


def default_data_dir() -> Path:
    """Where prepared data is kept: VGJAX_DATA_DIR, else TFDS_DATA_DIR, else vgjax in the user's cache folder."""
    given = os.environ.get("VGJAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(os.path.expanduser(given)) if given else user_cache_path("vgjax")


# Embedded


def iris(name: str = "iris", columns: slice = slice(None)) -> Dataset:
    """Iris, unscaled [cm]: 150 flowers of 3 species, for training and test alike."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    inputs, labels = bunch.data[:, columns].astype(np.float32), bunch.target.astype(np.int32)
    return Dataset(name, inputs, labels, inputs, labels, 3, inputs.shape[1:], "scikit-learn iris")


def digits() -> Dataset:
    """Digits: 1797 images of 8×8, their 0..16 brought to 0..255; the first 1500 train, the other 297 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs, labels = np.round(bunch.data * 255 / 16).astype(np.uint8), bunch.target.astype(np.int32)
    return Dataset(
        "digits", inputs[:1500], labels[:1500], inputs[1500:], labels[1500:], 10, (8, 8), "scikit-learn digits"
    )


def _own(make: Callable[..., Dataset]) -> Dataset:
    """The data set that the user's own function returns."""
    try:
        made = make()
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        raise ValueError(f"data set {text_of(make)!r} cannot be used: {error or type(error).__name__}") from error
    if not isinstance(made, Dataset):
        raise ValueError(f"data set {text_of(make)!r} gives a {type(made).__name__}; allowed: vgjax.data.Dataset")
    return made


# TFDS


def tfds_set(name: str, data_dir: PathLike | None = None, manual_dir: PathLike | None = None) -> Dataset:
    """A TFDS image classification set, in TFDS's order, from the cache or prepared for it; arguments as for `load`.

    Raises:
      DataUnavailable: no files and no network.
      ValueError: no such set, or not of class labels for 8-bit images of one size; damaged files.
    """
    path = _cache(data_dir) / f"{name}.npz"
    if path.is_file():
        facts, arrays = _read(path, name, ARRAYS)
        return Dataset(name, **arrays, classes=facts["classes"], shape=facts["shape"], source=facts["source"])
    root, (set_name, _, variant) = _cache(data_dir).parent, name.partition("/")
    manual = _manual_folder(manual_dir, set_name)
    with quiet_tfds() as tfds:
        known = tfds.list_builders(with_community_datasets=False)
        if set_name not in known:
            close = difflib.get_close_matches(name.lower(), dict.fromkeys([*DATASETS, *known]))
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ValueError(f"unknown data set {name!r}; {hint}allowed: {', '.join(DATASETS)}, {KINDS}")
        variants = tfds.builder_cls(set_name).builder_configs
        if variant and variant not in variants:
            raise ValueError(f"data set {set_name!r} has no variant {variant!r}; {nearest(variant, variants)}")
        with in_one_line(name, root):
            builder = tfds.builder(name, data_dir=root, try_gcs=False)
        check_kind(tfds, name, builder.info)
        prepared = builder.data_path.is_dir()  # by TFDS itself, earlier
        if not prepared:
            check_at_hand(name, builder.url_infos or {}, manual)
        with in_one_line(name, Path(builder.data_path) if prepared else root):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".preparing-", dir=root) as scratch:
                if not prepared:
                    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
                    builder = tfds.builder(name, data_dir=scratch, try_gcs=False)
                    builder.download_and_prepare(download_dir=f"{scratch}/downloads", download_config=config)
                dataset = decode(tfds, name, builder)
                members: dict[str, Any] = {key: getattr(dataset, key) for key in ARRAYS}
                np.savez(f"{scratch}/arrays.npz", facts=np.array(json.dumps(_facts(dataset))), **members)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(f"{scratch}/arrays.npz", path)
    return dataset


def _manual_folder(manual_dir: PathLike | None, set_name: str) -> Path | None:
    """The folder with the original files of this data set; None where no folder is given."""
    given = manual_dir or os.environ.get("VGJAX_MANUAL_DIR")
    if not given:
        return None
    manual = Path(os.path.expanduser(given))
    if not manual.is_dir():
        raise ValueError(f"no folder {str(manual)!r} to take original files from")
    return manual / set_name if (manual / set_name).is_dir() else manual


# The cache


def _cache(data_dir: PathLike | None) -> Path:
    return Path(os.path.expanduser(data_dir or default_data_dir()), "arrays")


def _facts(dataset: Dataset) -> dict[str, Any]:
    """The facts that `vgjax data list` shows."""
    counts = {"train": len(dataset.train_labels), "test": len(dataset.test_labels)}
    return counts | {key: getattr(dataset, key) for key in ("name", "shape", "classes", "source")}


def _read(path: Path, name: str, keys: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and arrays of a file of the cache. Zip keeps a checksum of each member and verifies it as it reads."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {key: io.BytesIO(archive.read(f"{key}.npy")) for key in ("facts", *keys)}
        arrays = {key: np.load(member, allow_pickle=False) for key, member in members.items()}
        facts = json.loads(arrays.pop("facts").item())
        if facts["name"] != name:
            raise ValueError(f"it holds {facts['name']!r}")
        return facts | {"shape": tuple(facts["shape"])}, arrays
    except Exception as error:  # a damaged file may fail anywhere
        raise _Damaged(path, name, error) from None


EMBEDDED = ("iris", "iris_petal", "digits")


@dataclass(frozen=True)
class Row(Entry):
    """A row of `DATASETS`: the numbers of features and classes are known before the data is loaded."""

    features: int
    classes: int


DATASETS: dict[str, Row] = {
    "iris": Row(lambda *_: iris(), "150 flowers, 4 lengths [cm], 3 species", "scikit-learn; Fisher 1936", 4, 3),
    "iris_petal": Row(
        lambda *_: iris("iris_petal", slice(2, 4)),
        "iris, petal length and width alone",
        "scikit-learn; Fisher 1936",
        2,
        3,
    ),
    "digits": Row(
        lambda *_: digits(), "1797 digits of 8×8, 10 classes", "scikit-learn; Alpaydin & Kaynak 1998, UCI", 64, 10
    ),
    "mnist": Row(partial(tfds_set, "mnist"), "70000 digits of 28×28, 10 classes", "TFDS; LeCun et al. 1998", 784, 10),
    "fashion_mnist": Row(
        partial(tfds_set, "fashion_mnist"),
        "70000 garments of 28×28, 10 classes",
        "TFDS; Xiao et al. 2017, 1708.07747",
        784,
        10,
    ),
    "cifar10": Row(
        partial(tfds_set, "cifar10"), "60000 photographs of 32×32×3, 10 classes", "TFDS; Krizhevsky 2009", 3072, 10
    ),
}
