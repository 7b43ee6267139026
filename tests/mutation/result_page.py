"""The result of mutation testing as a file of numbers and a page."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path

import yaml
from places import bare, change

HERE = Path(__file__).parent

PAGE = """# Mutation testing

Drawn with seed {seed}: places of the modules below, and at each one change of an operator, a number, a condition, a
loop or a decorator, within its kind (`-` for `+`, not `<<`); annotations are left out. A mutant is killed when a test
fails, or the tests need three times their CPU time and half a minute more. How: [`mutants.py`](mutants.py), `make
mutants`. Every mutant with the test that killed it: [`result.json`](result.json). Tests were added for those that
survived a first round; survivors with a reason below met that round's tests alone.

| module | places | mutants | drawn | killed | equivalent | killed of drawn | killed of those not equivalent |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

Modules of commit {commit}, tests of {tests_at}, {date}; cosmic-ray {cosmic-ray}, pytest {pytest}, jax {jax},
NumPy {numpy}, Python {python}.

## Survivors

| where | the line | the mutant | why it does the same, or as well |
| --- | --- | --- | --- |
{alive}
"""


def reason(mutant: dict) -> str:
    """Why a mutant does the same as the code, if somebody has found that out."""
    rows = yaml.safe_load((HERE / "equivalent.yaml").read_text())
    listed = {(row["module"], bare(row["change"])): row["reason"] for row in rows}
    return listed.get((mutant["module"], bare(change(mutant))), "")


def write(drawn: dict, results: dict[str, dict], facts: dict, modules: list[str]) -> str:
    """Write result.json, and result.md with its table, and give the latter's text.

    Args:
      drawn: the sample: `population` of each module, and `mutants`.
      results: what became of a mutant, by its id.
      facts: commits and seed.
      modules: in the order of the table.
    """
    rows, table, alive = [], [], []
    for m in drawn["mutants"]:
        found, mutated = results.get(m["id"]), change(m)
        if found is None:
            continue
        row = {"at": m["id"], "operator": m["operator"].removeprefix("core/"), "line": m["before"], "change": mutated}
        row |= {"outcome": found["outcome"], "by": found["by"]}
        if found["outcome"] == "survived":
            row["equivalent"] = reason(m)
            where = f"`vgjax/{m['module']}.py:{m['line']}`"
            old, new = (f"`{text}`".replace("|", "\\|") for text in (m["before"], mutated))
            alive.append(f"| {where} | {old} | {new} | {row['equivalent'] or '**not killed**'} |")
        if "earlier" in m:
            row["earlier"] = m["earlier"]
        rows.append(row)
    for module in [*modules, "all"]:
        own = [row for row in rows if module in ("all", row["at"].split(":")[0])]
        killed = sum(row["outcome"] != "survived" for row in own)
        equal = sum(bool(row.get("equivalent")) for row in own)
        sizes = [drawn["population"][m] for m in modules if module in ("all", m)]
        places, population = (sum(size[key] for size in sizes) for key in ("places", "mutants"))
        shares = [f"{100 * killed / n:.1f} %" for n in (len(own), len(own) - equal) if n]
        table.append(" | ".join(map(str, [f"| {module}", places, population, len(own), killed, equal, *shares])) + " |")
    versions = {name: importlib.metadata.version(name) for name in ("cosmic-ray", "pytest", "jax", "numpy")}
    facts = facts | {"date": str(datetime.date.today()), "python": platform.python_version(), **versions}
    (HERE / "result.json").write_text(json.dumps({**facts, "mutants": rows}, indent=1, ensure_ascii=False) + "\n")
    text = PAGE.format(**facts, table="\n".join(table), alive="\n".join(alive))
    (HERE / "result.md").write_text(text)
    return text
