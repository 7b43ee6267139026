"""Mutation testing: small changes of the arithmetic, one at a time, that the tests ought to notice.

Cosmic Ray finds the places and makes the changes (`places.py`). The runs are our own: every mutant is a fork of a
process that has JAX imported and not started, and lives in memory alone, so that no file changes and a mutant costs
seconds; it meets the tests that call its function, quickest first, until one fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import result_page
from places import ROOT, found_again, function_at, mutants, source_of

HERE = Path(__file__).parent
WORK = ROOT / "build" / "mutation"
SEED = 20261122
PLAN = {  # how many mutants of each module, and the tests that know it
    "theory/gaussian": (25, ["theory/mean_field", "theory/profiles"]),
    "theory/mean_field": (25, ["theory/mean_field", "theory/profiles"]),
    "theory/criticality": (10, ["theory/mean_field", "theory/profiles"]),
    "theory/batch_norm": (10, ["theory/mean_field"]),
    "statistics/weights": (40, ["statistics/weights"]),
    "statistics/histograms": (50, ["statistics/histograms"]),
    "statistics/units": (50, ["statistics/units"]),
    "watching/optimizer": (20, ["watching/optimizer"]),
    "training/optim": (40, ["training/optim"]),
    "training/step": (20, ["training/step", "training/replicas", "training/gradients"]),
    "training/chunk": (20, ["training/step", "training/replicas", "training/gradients"]),
    "training/chunk_plan": (20, ["training/chunk_plan"]),
    "network/dense": (10, ["network/dense"]),
}
LEFT_OUT = (  # of these files: they compile for long, and test other modules
    "compiled",
    "explod",
    "lane_is_the_run_alone",
    "normalised_and_residual",
    "progress_and",
    "reference_is_the_derivative",
    "says_what_was_run",
    "shares_their_program",
    "tutorials_network",
)
QUIET = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis is imported before
TOO_SLOW = 20.0  # CPU seconds: tests above this are left out
FIRST = 5.0  # CPU seconds of tests in the first round; what survives them meets all tests
OUTCOMES = {
    0: "survived",
    1: "killed",
    2: "killed at import",  # by the files of tests
    4: "killed at import",  # by tests/conftest.py
    -signal.SIGXCPU: "killed by its limit of time",
    -signal.SIGSEGV: "killed by a crash",
    -signal.SIGABRT: "killed by a crash",
}


def sample(n: int | None, like: Path | None) -> None:
    """Draw places of each module, and one mutant of each place; or take the mutants of an earlier result again.

    Args:
      n: mutants in all; None: as many as `PLAN` says, or all of the earlier ones.
      like: result.json of an earlier run; its mutants are found again by the text of their lines.
    """
    rows, population, all_mutants = [], {}, []
    share = 1.0 if n is None or like else n / sum(number for number, _ in PLAN.values())
    for module, (number, _) in PLAN.items():
        rng = random.Random(f"{SEED} {module}")
        by_place = mutants(module)
        population[module] = {"places": len(by_place), "mutants": sum(map(len, by_place.values()))}
        drawn = min(len(by_place), max(1, round(number * share)))
        for place in sorted(rng.sample(sorted(by_place), drawn)):
            rows.append(rng.choice(by_place[place]))
        all_mutants += [one for found in by_place.values() for one in found] if like else []
        print(module, population[module], flush=True)
    if like:
        rows = found_again(json.loads(like.read_text())["mutants"], all_mutants, n, SEED)
    WORK.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"{r['module']}:{r['line']}:{r['column']}", **r} for r in rows]
    (WORK / "sample.json").write_text(json.dumps({"commit": commit(), "population": population, "mutants": rows}))


def commit() -> str:
    """The commit that is tested."""
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()


class Profile:
    """Pytest plugin: which functions of a module each test calls, and how long it takes."""

    def __init__(self, file: str, known: list[dict]):
        self.file, self.rows, self.tests = file, known, set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Only those not known yet."""
        self.tests, known = {item.nodeid for item in items}, {row["test"] for row in self.rows}
        items[:] = [i for i in items if i.nodeid not in known and not any(part in i.nodeid for part in LEFT_OUT)]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around one test."""
        called = set()

        def see(frame, event, _):
            if event == "call" and frame.f_code.co_filename == self.file:
                called.add((frame.f_code.co_name, frame.f_code.co_firstlineno))

        start = time.process_time()
        threading.setprofile(see)
        sys.setprofile(see)
        yield
        sys.setprofile(None)
        threading.setprofile(None)
        self.rows.append({"test": item.nodeid, "cpu": time.process_time() - start, "calls": sorted(called)})


class Chosen:
    """Pytest plugin: these tests, in this order."""

    def __init__(self, tests: list[str]):
        self.rank = {test: i for i, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Choose and sort."""
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])


def tree_of(name: str, module: str, text: str) -> Path:
    """A copy of package and tests with one module changed: programs that tests start are of the changed package too."""
    tree = WORK / "trees" / name
    shutil.rmtree(tree, ignore_errors=True)
    for part in ("vgjax", "tests"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "mutation"))
    for part in ("experiments", "conftest.py", "pyproject.toml", "README.md", "Makefile"):
        (tree / part).symlink_to(ROOT / part)
    (tree / "vgjax" / f"{module}.py").write_text(text)
    return tree


def in_fork(log: Path, cpu: float, work) -> int:
    """Exit status of `work()` in a fork; −n: ended by signal n, SIGXCPU at its limit of CPU seconds."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu) + 5))
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            status = int(work())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_pytest(tree: Path, files: list[str], plugin: object) -> int:
    """Pytest on some of the test files of a tree, until the first failure."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, HERE))]
    paths = [file_of(name) for name in files]
    return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *QUIET, *paths], plugins=[plugin])


def file_of(name: str) -> str:
    """tests/theory/test_profiles.py of theory/profiles."""
    folder, _, module = name.rpartition("/")
    return f"tests/{folder}/test_{module}.py"


def profile(module: str) -> list[dict]:
    """The module's tests, run on it as it is: all have to pass; a process for each file, and once for each test."""
    rows = []
    for name in PLAN[module][1]:
        stem = f"{module}-{name}".replace("/", "_")
        kept, log = WORK / f"{stem}.json", WORK / f"{stem}.log"
        known = json.loads(kept.read_text()) if kept.exists() else []

        def work(name: str = name, kept: Path = kept, known: list = known) -> int:
            tree = tree_of(kept.stem, module, source_of(module))
            plugin = Profile(str(tree / "vgjax" / f"{module}.py"), known)
            status = run_pytest(tree, [name], plugin)
            if status in (0, 5):
                kept.write_text(json.dumps([row for row in plugin.rows if row["test"] in plugin.tests]))
            return status

        if in_fork(log, 3600, work) not in (0, 5):  # 5: nothing new
            raise SystemExit(f"{file_of(name)} fails on the code as it is: {log}")
        rows += json.loads(kept.read_text())
    return rows


def test_one(mutant: dict, tests: list[dict]) -> dict:
    """Whether the tests kill a mutant."""
    ids = [row["test"] for row in tests]
    files = [n for n in PLAN[mutant["module"]][1] if any(test.startswith(file_of(n)) for test in ids)]
    name = mutant["id"].replace(":", "_").replace("/", "_")
    tree, log = tree_of(name, mutant["module"], mutant["source"]), WORK / f"{name}.log"
    start, limit = time.time(), 30 + 3 * sum(row["cpu"] for row in tests)
    status = in_fork(log, limit, lambda: run_pytest(tree, files, Chosen(ids))) if tests else 0
    shutil.rmtree(tree)
    if status not in OUTCOMES:
        raise SystemExit(f"pytest ended with status {status}: {log}")
    text = log.read_text(errors="replace") if tests else ""
    by = [line.split(" - ")[0].removeprefix("FAILED ") for line in text.splitlines() if line.startswith("FAILED")]
    found = {"id": mutant["id"], "outcome": OUTCOMES[status], "by": "".join(by[:1]), "tests": len(tests)}
    return found | {"seconds": round(time.time() - start, 1)}


def preload() -> None:
    """What all forks share; no backend may be alive."""
    import flax.linen  # noqa: F401
    import hypothesis  # noqa: F401
    import jax.numpy  # noqa: F401
    import optax  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import xarray  # noqa: F401
    from jax._src import xla_bridge

    assert not xla_bridge.backends_are_initialized()
    assert not any(name.startswith("vgjax") for name in sys.modules)


def run(again: bool, modules: list[str]) -> None:
    """Test the mutants that have no result yet; `again`: the survivors with no reason to be, on all tests."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    preload()
    results = WORK / "results.jsonl"
    known = {row["id"]: row for row in map(json.loads, results.read_text().splitlines())} if results.exists() else {}
    rows = json.loads((WORK / "sample.json").read_text())["mutants"]
    profiles = {module: profile(module) for module in modules}
    for mutant in (row for row in rows if row["module"] in modules):
        found = known.get(mutant["id"])
        is_open = found and found["outcome"] == "survived" and not result_page.reason(mutant)
        if found and not (again and is_open):
            continue
        tests = sorted((t for t in profiles[mutant["module"]] if t["cpu"] < TOO_SLOW), key=lambda row: row["cpu"])
        place = function_at(mutant["source"], mutant["line"], mutant["column"])
        calling = [t for t in tests if place and list(place) in t["calls"]]
        calling = calling or [t for t in tests if t["calls"]]  # what runs at import can change any of them
        if again:
            calling += [t for t in tests if t not in calling]
        else:
            spent = itertools.accumulate(t["cpu"] for t in calling)
            calling = [t for t, until in zip(calling, spent, strict=True) if until < FIRST or t is calling[0]]
        found = test_one(mutant, calling)
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(found["seconds"], found["outcome"], mutant["id"], mutant["after"], found["by"], flush=True)


def report() -> None:
    """Write what is known so far, and print the page."""
    drawn = json.loads((WORK / "sample.json").read_text())
    results = {row["id"]: row for row in map(json.loads, (WORK / "results.jsonl").read_text().splitlines())}
    facts = {"commit": drawn["commit"], "tests_at": commit(), "seed": SEED}
    print(result_page.write(drawn, results, facts, list(PLAN)))


def main() -> None:
    """Draw the sample, run it, show the survivors all tests, report; it goes on where it stopped."""
    parser = argparse.ArgumentParser(description=main.__doc__, epilog=f"To begin anew: rm -r {WORK.relative_to(ROOT)}")
    parser.add_argument("what", choices=["all", "sample", "run", "again", "report"], nargs="?", default="all")
    parser.add_argument("modules", nargs="*", default=list(PLAN))
    parser.add_argument("--n", type=int, help="mutants in all; default: some 340")
    parser.add_argument("--like", type=Path, help="take the mutants of this result.json again")
    args = parser.parse_args()
    if args.what == "sample" or not (WORK / "sample.json").exists():
        sample(args.n, args.like)
    for again in (False, True):
        if args.what in ("all", "again" if again else "run"):
            run(again, args.modules)
    if args.what in ("all", "report"):
        report()


if __name__ == "__main__":
    main()
