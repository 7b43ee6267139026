"""Wheels and sdists carry the commit that they are built from; all else about the package stands in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

TOP = Path(__file__).parent


def write_commit(folder: str) -> None:
    """Write the commit, where it is known, into the copy of the package in that folder."""
    environment = runpy.run_path(str(TOP / "vgjax" / "environment.py"))
    if commit := environment["commit"]():
        Path(folder, "vgjax", environment["COMMIT_FILE"]).write_text(f"{commit}\n")


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
