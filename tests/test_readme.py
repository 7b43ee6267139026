"""What the pages promise is there."""

import re
from pathlib import Path

import pytest
from paths import TOP

PAGES = [TOP / "README.md", TOP / "experiments" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(TOP)))
def test_every_relative_link_and_picture_exists(page: Path) -> None:
    """No dead link, and no placeholder left to fill in."""
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (page.parent / link.partition("#")[0]).exists(), link
    assert not re.search(r"\b[A-Z]+_[A-Z]+\b", text)


@pytest.mark.slow
def test_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines of Python do what they say, from a folder of the user's."""
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.S)
    code = next(block for block in blocks if "import vgjax" in block)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("epochs=5", "epochs=1").replace("seeds=8", "seeds=2"), "README.md", "exec"), {})
    assert (tmp_path / "history.nc").stat().st_size > 1000


@pytest.mark.slow
def test_initializer_in_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of an initializer of one's own is imported by its name and used."""
    from vgjax.command.cli import main

    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.S)
    (tmp_path / "mine.py").write_text(next(block for block in blocks if "# mine.py" in block))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = "train --dataset digits --initializer mine:half_he --steps 2 --hidden 8 --tensorboard none --out run"
    assert main(options.split()) == 0
    assert "mine:half_he" in (tmp_path / "run" / "config.yaml").read_text()


def test_clinic_commands_in_the_readme_are_understood() -> None:
    """Every line with the clinic parses."""
    from vgjax.command.cli import parse
    from vgjax.command.clinic import Clinic

    lines = re.findall(r"^\.venv/bin/vgjax (clinic [^#\n]+)", PAGES[0].read_text(), re.M)
    assert len(lines) == 3 and all(isinstance(parse(line.split()), Clinic) for line in lines)


@pytest.mark.slow
def test_a_loop_of_ones_own_in_the_readme_runs(capsys: pytest.CaptureFixture) -> None:
    """Its printed record is of the layers' gradients, by name."""
    import jax

    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.S)
    code = next(block for block in blocks if "vgjax.watch(" in block)
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "10", "20"]
    assert all("gradient/rms/dense_11" in line and "nan" not in line for line in lines)


@pytest.mark.slow
def test_the_sweep_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The grid and both of its commands, in one epoch: the plan first, then the map; said again, nothing is run."""
    from vgjax.command.cli import main

    text = PAGES[0].read_text()
    grid = re.search(r"```yaml\n# grid.yaml\n(.*?)```", text, re.S)[1]
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(grid.replace("epochs: 3", "steps: 3").replace("seeds: 4", "seeds: 1"))
    plan, draw = (line.partition("#")[0].split()[1:] for line in re.findall(r"^\.venv/bin/vgjax sweep .*", text, re.M))
    assert main(plan) == 0 and not Path("sweeps").exists()
    assert "12, of which 0 are finished already" in capsys.readouterr().out
    assert main(draw) == 0
    picture = Path("sweeps/grid/sigma_w2_depth_validation_accuracy")
    for suffix in (".png", ".svg", ".csv"):
        assert picture.with_name(picture.name + suffix).stat().st_size > 500
    assert "programs    1 to compile, for 3 slices" in capsys.readouterr().out
    assert main(draw) == 0 and "12, of which 12 are finished already" in capsys.readouterr().out
