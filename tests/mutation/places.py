"""Places of the arithmetic where it can be changed, and every change of it within its kind; Cosmic Ray finds both."""

from __future__ import annotations

import ast
import difflib
import random
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
KINDS = (ARITHMETIC, {"BitOr", "BitAnd", "BitXor", "LShift", "RShift"}, {"Is", "IsNot"})


def source_of(module: str) -> str:
    """The module's text."""
    return (ROOT / "vgjax" / f"{module}.py").read_text()


def is_plausible(operator: str) -> bool:
    """Whether an operator changes into one of its own kind: `<<` for `+` would only raise TypeError on floats."""
    if operator in ("core/VariableReplacer", "core/VariableInserter"):
        return False
    if "ReplaceBinaryOperator" not in operator and "ReplaceComparisonOperator" not in operator:
        return True
    old, new = operator.split("_")[-2:]
    return all((old in kind) == (new in kind) for kind in KINDS)


def meaning(source: str) -> str:
    """The syntax tree without annotations, which nothing evaluates."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
    return ast.dump(tree)


def mutants(module: str) -> dict[tuple[int, int], list[dict]]:
    """All mutants of a module by their place (line, column)."""
    import cosmic_ray.ast
    import cosmic_ray.mutating
    import cosmic_ray.plugins

    source, found = source_of(module), {}
    original, lines = meaning(source), source.splitlines()
    for name in filter(is_plausible, sorted(cosmic_ray.plugins.operator_names())):
        operator = cosmic_ray.plugins.get_operator(name)()
        tree = cosmic_ray.ast.get_ast(source)
        positions = [at for node in cosmic_ray.ast.ast_nodes(tree) for at in operator.mutation_positions(node)]
        for occurrence, ((line, column), _) in enumerate(positions):
            mutated = cosmic_ray.mutating.mutate_code(source, operator, occurrence)
            try:
                if meaning(mutated) == original:
                    continue
            except SyntaxError:
                continue
            changed = mutated.splitlines()
            row = {"module": module, "line": line, "column": column, "operator": name, "source": mutated}
            row |= {"before": lines[line - 1].strip(), "after": changed[line - 1].strip()}
            found.setdefault((line, column), []).append(row)
    return found


def function_at(source: str, line: int, column: int) -> tuple[str, int] | None:
    """Name and first line of the innermost function around a place; None: it runs at import."""
    inner = None
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if (node.lineno, node.col_offset) <= (line, column) < (node.end_lineno, node.end_col_offset):
            decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
            inner = getattr(node, "name", "<lambda>"), min([node.lineno, *decorators])
    return inner


def change(mutant: dict) -> str:
    """The changed line as it is in the mutant."""
    pair = source_of(mutant["module"]).splitlines(), mutant["source"].splitlines()
    lines = list(difflib.unified_diff(*pair, n=0, lineterm=""))[2:]
    added = [line[1:] for line in lines if line[0] == "+"]
    return " ".join(" ".join(added).split()) or f"without {mutant['before']}"


def found_again(earlier: list[dict], mutants: list[dict], n: int | None, seed: int) -> list[dict]:
    """Today's mutants that change the same lines in the same way; `n` of them, drawn with `seed`."""
    today: dict[tuple, list[dict]] = {}
    for one in mutants:
        today.setdefault((one["operator"].removeprefix("core/"), bare(one["before"])), []).append(one)
    found, lost = [], 0
    for row in earlier:
        candidates = today.get((row["operator"], bare(row["line"])), [])
        same = [one for one in candidates if bare(change(one)) == bare(row["change"])]
        lost += not same
        found += [{**same[0], "earlier": row["outcome"]}] if same else []
    print(f"{len(found)} of {len(earlier)} mutants found again; the lines of {lost} have changed", flush=True)
    if n is None or n >= len(found):
        return found
    places = sorted(random.Random(seed).sample(range(len(found)), n))
    return [found[i] for i in places]


def bare(line: str) -> str:
    """The code of a line, without spaces and comment."""
    return "".join(line.partition("#")[0].split())
