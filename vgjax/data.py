"""Data sets: name → arrays. Embedded (scikit-learn), from TFDS, a folder of IDX files, or the user's own function.

Inputs are flat: uint8 as stored, or float32; scaling belongs to the config. What TFDS prepares is decoded once and
kept as one .npz file of plain arrays, whose checksums are verified at every load; TFDS and TensorFlow are imported only
to prepare it.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vgjax.names import Entry, import_function, nearest, text_of

ARRAYS = ("train_inputs", "train_labels", "test_inputs", "test_labels")
KINDS = "any TFDS image classification set, a folder of IDX files, or module:function"
ADVICE = "give the original files by --manual-dir DIR, or run `vgjax data prepare` where there is a network"
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on the host; where there is no test split, the training set stands in for it.

    Raises:
      ValueError: shapes, types or labels do not fit together.
    """

    name: str
    train_inputs: np.ndarray
    """Training examples, uint8 or float32 [examples, features]."""
    train_labels: np.ndarray
    """Their classes, int32 from 0 [examples]."""
    test_inputs: np.ndarray
    """Test examples, of the same type [examples, features]."""
    test_labels: np.ndarray
    """Their classes [examples]."""
    classes: int
    """Number of classes."""
    shape: tuple[int, ...]
    """Shape of one example before it was flattened; their product is the number of features."""
    source: str
    """Where it comes from."""

    def __post_init__(self) -> None:
        features = math.prod(self.shape)
        for split in ("train", "test"):
            inputs, labels = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels")
            problem = ""
            if inputs.dtype not in (np.uint8, np.float32) or labels.dtype != np.int32:
                problem = f"{inputs.dtype} inputs and {labels.dtype} labels; allowed: uint8 or float32, and int32"
            elif inputs.dtype != self.train_inputs.dtype:
                problem = f"{inputs.dtype} inputs, where training has {self.train_inputs.dtype}"
            elif len(inputs) == 0 or inputs.shape != (len(labels), features) or labels.ndim != 1:
                problem = f"inputs {inputs.shape} and labels {labels.shape}; allowed: (N, {features}) and (N,), N > 0"
            elif labels.min() < 0 or labels.max() >= self.classes:
                problem = f"labels {labels.min()} to {labels.max()}; allowed: 0 to {self.classes - 1}"
            elif inputs.dtype == np.float32 and (bad := ~np.isfinite(inputs)).any():
                first = int(bad.any(axis=1).argmax())
                problem = f"{bad.sum()} of {bad.size} inputs that are NaN or infinite, the first in example {first}"
            if problem:
                raise ValueError(f"data set {self.name!r}: its {split} split has {problem}")


def empty_classes(dataset: Dataset, holdout: int = 0) -> list[int]:
    """The classes of which there is no training example.

    Args:
      dataset: the data.
      holdout: so many training examples do not train.
    """
    counts = np.bincount(dataset.train_labels[holdout:], minlength=dataset.classes)
    return np.flatnonzero(counts == 0).tolist()


class DataUnavailable(ValueError):
    """A data set that exists, with neither its files nor a network at hand."""


class _Damaged(ValueError):
    """A file of the cache that is not what was written."""

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
    return Path(os.path.expanduser(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vgjax"))


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
    """What a user's own function gives."""
    try:
        made = make()
    except (Exception, SystemExit) as error:  # a stranger's function may raise anything
        raise ValueError(f"data set {text_of(make)!r} cannot be used: {error or type(error).__name__}") from error
    if not isinstance(made, Dataset):
        raise ValueError(f"data set {text_of(make)!r} gives a {type(made).__name__}; allowed: vgjax.data.Dataset")
    return made


# IDX folders


def idx_folder(folder: PathLike) -> Dataset:
    """The four files of MNIST's format in a folder, gzipped or not, under MNIST's names (t10k- or test-).

    Raises:
      ValueError: a file is missing or damaged, or the files do not belong together. A changed pixel in a file that is
        not gzipped cannot be seen, as the format has no checksum; but a run does not go on with other files.
    """
    folder = Path(folder)
    (train, train_labels), (test, test_labels) = _idx_split(folder, "train"), _idx_split(folder, "t10k|test")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{folder}: training images are {train.shape[1:]}, test images {test.shape[1:]}")
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    flat, flat_test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    digest = hashlib.sha256()
    for array in (flat, train_labels, flat_test, test_labels):
        digest.update(array.tobytes())
    shape, source = train.shape[1:], f"IDX files in {folder}, SHA-256 {digest.hexdigest()[:16]}"
    return Dataset(str(folder), flat, train_labels, flat_test, test_labels, classes, shape, source)


def _idx_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and int32 labels of one split."""
    images, labels = (_read_idx(_idx_file(folder, prefix, kind)) for kind in ("images", "labels"))
    if images.ndim < 2 or labels.ndim != 1 or 0 in images.shape or len(images) != len(labels):
        name = prefix.split("|")[0]
        raise ValueError(f"{folder}: {name} images {images.shape} and labels {labels.shape} do not belong together")
    return images, labels.astype(np.int32)


def _idx_file(folder: Path, prefix: str, kind: str) -> Path:
    pattern = re.compile(rf"({prefix})-{kind}[-.]idx\d[-.]ubyte(\.gz)?")
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if not found:
        name = f"{prefix.split('|')[0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        raise ValueError(f"{folder} is not a folder of IDX files: it has no {name} and no {name}.gz")
    return found[0]


def _read_idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file: 00 00 08 (unsigned bytes), rank, big-endian sizes, content."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it begins with {content[:3].hex(' ')}, not 00 00 08")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else None
    size = start if shape is None else start + math.prod(shape)
    if shape is None or len(content) != size:
        raise ValueError(f"{path} is damaged: {len(content)} bytes, where its header announces {size}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


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
    given = manual_dir or os.environ.get("VGJAX_MANUAL_DIR")
    manual = Path(os.path.expanduser(given)) if given else None
    if manual and not manual.is_dir():
        raise ValueError(f"no folder {str(manual)!r} to take original files from")
    if manual and (manual / set_name).is_dir():
        manual /= set_name
    with _quiet_tfds() as tfds:
        known = tfds.list_builders(with_community_datasets=False)
        if set_name not in known:
            close = difflib.get_close_matches(name.lower(), dict.fromkeys([*DATASETS, *known]))
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ValueError(f"unknown data set {name!r}; {hint}allowed: {', '.join(DATASETS)}, {KINDS}")
        variants = tfds.builder_cls(set_name).builder_configs
        if variant and variant not in variants:
            raise ValueError(f"data set {set_name!r} has no variant {variant!r}; {nearest(variant, variants)}")
        with _in_one_line(name, root):
            builder = tfds.builder(name, data_dir=root, try_gcs=False)
        _check_kind(tfds, name, builder.info)
        prepared = builder.data_path.is_dir()  # by TFDS itself, earlier
        if not prepared:
            _check_at_hand(name, builder.url_infos or {}, manual)
        with _in_one_line(name, Path(builder.data_path) if prepared else root):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".preparing-", dir=root) as scratch:
                if not prepared:
                    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
                    builder = tfds.builder(name, data_dir=scratch, try_gcs=False)
                    builder.download_and_prepare(download_dir=f"{scratch}/downloads", download_config=config)
                dataset = _decode(tfds, name, builder)
                members: dict[str, Any] = {key: getattr(dataset, key) for key in ARRAYS}
                np.savez(f"{scratch}/arrays.npz", facts=np.array(json.dumps(_facts(dataset))), **members)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(f"{scratch}/arrays.npz", path)
    return dataset


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[Any]:
    """TFDS without its chatter (bars on a terminal only), its look-ups in the cloud and its minutes of retries."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow announces them past its own log level
    from unittest import mock  # it imports asyncio

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            import tensorflow_datasets as tfds
            from tensorflow_datasets.core.download import downloader

            tfds.display_progress_bar(sys.stderr.isatty())
            no_look_up = mock.patch.object(tfds.core.DatasetInfo, "initialize_from_bucket")
            with no_look_up, mock.patch.object(downloader, "MAX_RETRIES", 2):
                yield tfds
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _in_one_line(name: str, where: Path) -> Iterator[None]:
    """Says in one line what TFDS raises in many; `where`: the folder that it reads or writes."""
    try:
        yield
    except Exception as error:  # builders are the code of many hands
        import requests
        from tensorflow_datasets.core.download.util import DownloadError

        if wrong := re.search("downloaded to (.+), has wrong checksum", str(error)):
            raise ValueError(f"data set {name!r}: {wrong[1]} is not the file that TFDS's checksum asks for") from None
        line = next(iter(str(error).strip().splitlines()), "")
        if isinstance(error, requests.RequestException | DownloadError):
            raise DataUnavailable(f"data set {name!r}: a download failed ({line}); {ADVICE}") from None
        what = f"{type(error).__name__}: {re.sub(r'{{.*?}} ', '', line)}"
        raise ValueError(f"data set {name!r}: TFDS cannot prepare it ({what}); see {where}") from error


def _check_kind(tfds: Any, name: str, info: Any) -> None:
    """Refuse what is not one image of fixed size and one class label."""
    keys = [key for key in info.supervised_keys or () if isinstance(key, str)]
    image, label = ([info.features[key] for key in keys] + [None, None])[:2]
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"data set {name!r} is not image classification: an example has {', '.join(info.features)}; "
            "allowed: one image to classify under one label"
        )
    if None in image.shape or image.np_dtype != np.uint8:
        shape = "x".join(str(n or "?") for n in image.shape)
        kind = image.np_dtype.__name__
        raise ValueError(f"data set {name!r} has {kind} images of {shape}; allowed: uint8 images of one size")


def _check_at_hand(name: str, infos: Mapping[str, Any], manual: Path | None) -> None:
    """Refuse at once where no original file is at hand and no network answers; TFDS would try for minutes."""
    import requests

    files_of = {url: info.filename or url for url, info in infos.items()}
    missing = {url: file for url, file in files_of.items() if not (manual and (manual / file).is_file())}
    if len(missing) < len(infos) or not missing:
        return  # some are there: TFDS knows which of them this variant needs
    for url in list({urlsplit(url).netloc: url for url in missing}.values())[:3]:
        try:
            requests.head(url, timeout=5)
        except (requests.ConnectionError, requests.Timeout):
            continue
        except requests.RequestException:
            pass  # not HTTP, or a strange answer: TFDS may still manage
        return
    files = ", ".join(list(missing.values())[:4])
    raise DataUnavailable(f"data set {name!r}: no network to download {files}, and no such file at hand; {ADVICE}")


def _decode(tfds: Any, name: str, builder: Any) -> Dataset:
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # already in use
        tf.config.set_visible_devices([], "GPU")  # it would take all of the memory that JAX needs
    splits, (image, label) = builder.info.splits, builder.info.supervised_keys
    if "train" not in splits:
        raise ValueError(f"no split 'train', only {', '.join(splits)}")
    arrays: list[Any] = []
    for split in ("train", next((split for split in ("test", "validation") if split in splits), "train")):
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        batches = builder.as_dataset(split, batch_size=1000, as_supervised=True, read_config=in_order)
        inputs, labels = zip(*tfds.as_numpy(batches), strict=True)
        arrays += [np.concatenate(inputs).reshape(sum(map(len, inputs)), -1), np.concatenate(labels).astype(np.int32)]
    shape = builder.info.features[image].shape
    shape = shape[:2] if shape[2] == 1 else shape
    classes, source = builder.info.features[label].num_classes, f"TFDS {name} {builder.version}"
    return Dataset(name, *arrays, classes=classes, shape=shape, source=source)  # type: ignore[misc]


# The cache


def _cache(data_dir: PathLike | None) -> Path:
    return Path(os.path.expanduser(data_dir or default_data_dir()), "arrays")


def _facts(dataset: Dataset) -> dict[str, Any]:
    """What `vgjax data list` shows."""
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
    """A data set whose size is known without having it at hand."""

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
