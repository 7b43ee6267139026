"""Strict shapes and dtypes everywhere, JAX's compilation cache, and a user's environment."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.pop("PYTHONUNBUFFERED", None)  # a user's process buffers what it prints

import compilation_cache

compilation_cache.set_up()

import compiling
import jax
import pytest

from vgjax.training import chunk_plan

compiling.set_up()

collect_ignore_glob = ["tests/mutation/*", "tests/support/*"]  # no tests
MOST_MAPS = 15_000

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# Files that take longest, which begin first, so that no process is left with one of them at the end.
LONGEST = ("test_experiments", "test_kills", "test_machines", "test_figures_at_start", "test_rules", "test_examination")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, those of `LONGEST` before the others."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile as users do for a test that is marked `optimised`, else quickly."""
    compiling.compile_as(compiling.USERS if item.get_closest_marker("optimised") else compiling.QUICK)


@pytest.fixture(autouse=True)
def examples_run_in_a_folder_of_their_own(request: pytest.FixtureRequest) -> None:
    """What the example of a docstring writes is not left behind."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Linux gives a process 65530 memory maps, and every compiled program takes several: all are let go in time."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        compiling.forget_programs()


@pytest.fixture(scope="module")
def an_epoch_a_chunk() -> Iterator[None]:
    """Short epochs are chunks of their own, as long ones are: so that a small run can be interrupted between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_plan, "STEPS_AT_ONCE", 1)
        yield


@pytest.fixture
def no_network(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens at the port named discard
        monkeypatch.setenv(variable.upper(), "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY", "VGJAX_MANUAL_DIR"):
        monkeypatch.delenv(variable, raising=False)
