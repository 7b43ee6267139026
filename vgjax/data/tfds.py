"""TFDS for `vgjax.data`: without its messages, with early refusals in one line; a builder's examples as arrays.

Only this module imports TFDS, and only to prepare a data set.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vgjax.data.dataset import Dataset, DataUnavailable

ADVICE = "give the original files by --manual-dir DIR, or run `vgjax data prepare` where there is a network"


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """TFDS without its messages (progress bars on a terminal only) and its minutes of retries."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN prints a notice at every log level
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            import tensorflow_datasets as tfds
            from tensorflow_datasets.core.download import downloader

            tfds.display_progress_bar(sys.stderr.isatty())
            retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 2
            try:
                yield tfds
            finally:
                downloader.MAX_RETRIES = retries
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def in_one_line(name: str, where: Path) -> Iterator[None]:
    """Turn the errors of TFDS into one line; `where`: the folder that it reads or writes."""
    try:
        yield
    except Exception as error:  # builders have many authors, and raise anything
        import requests
        from tensorflow_datasets.core.download.util import DownloadError

        if wrong := re.search("downloaded to (.+), has wrong checksum", str(error)):
            raise ValueError(f"data set {name!r}: {wrong[1]} is not the file that TFDS's checksum asks for") from None
        line = next(iter(str(error).strip().splitlines()), "")
        if isinstance(error, requests.RequestException | DownloadError):
            raise DataUnavailable(f"data set {name!r}: a download failed ({line}); {ADVICE}") from None
        what = f"{type(error).__name__}: {re.sub(r'{{.*?}} ', '', line)}"
        raise ValueError(f"data set {name!r}: TFDS cannot prepare it ({what}); see {where}") from error


def check_kind(tfds: Any, name: str, info: Any) -> None:
    """Refuse a data set whose examples are not one uint8 image of fixed size and one class label."""
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


def check_at_hand(name: str, infos: Mapping[str, Any], manual: Path | None) -> None:
    """Refuse at once if no original file is at hand and no network answers; TFDS would try for minutes."""
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


def decode(tfds: Any, name: str, builder: Any) -> Dataset:
    """The examples of a prepared builder as arrays on the host."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow uses the GPU already
        tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all the memory that JAX needs
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
