"""Wheels and sdists carry the commit that they are built from; all else about the package stands in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ENVIRONMENT = runpy.run_path(str(Path(__file__).parent / "vgjax" / "environment.py"))
COMMIT = ENVIRONMENT["commit"]()  # asked for at once: the folder that an sdist is made in looks like a change


def write_commit(folder: str) -> None:
    """Write the commit, where it is known, into the copy of the package in that folder."""
    if COMMIT:
        Path(folder, "vgjax", ENVIRONMENT["COMMIT_FILE"]).write_text(f"{COMMIT}\n")


class BuildWithCommit(build_py):
    """Make the package that goes into a wheel; an editable install is the checkout itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_commit(self.build_lib)


class SdistWithCommit(sdist):
    """Make the folder that goes into an sdist, which has no .git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_commit(base_dir)


setup(cmdclass={"build_py": BuildWithCommit, "sdist": SdistWithCommit})
