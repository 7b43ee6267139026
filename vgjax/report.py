"""Write self-contained HTML pages: tables, figures with captions, and the environment they were made in."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr

from vgjax.files import whole


def write_page(path: Path, sections: Sequence[Any], figures: Path, environment: Mapping[str, Any]) -> Path:
    """Write the page of a reproduction.

    Args:
      path: the HTML file.
      sections: one for each experiment, with title, rows, pictures (name, sentence) and notes.
      figures: the folder with the PNG of each picture.
      environment: what the results were made with.

    Returns:
      The absolute path of the page.
    """
    images = {
        picture.name: base64.b64encode((figures / f"{picture.name}.png").read_bytes()).decode()
        for section in sections
        for picture in section.pictures
    }
    values = {"sections": sections, "images": images, "environment": environment, "verdicts": _count_verdicts(sections)}
    return write_html(path, "report.html", **values)


def write_html(path: Path, template: str, **values: Any) -> Path:
    """Write a page, complete or not at all; the values are escaped.

    Args:
      path: the HTML file.
      template: its file in this package.
      values: by their names in the template, which shows figures through its filter `inline`.

    Returns:
      The absolute path of the page.
    """
    templates = jinja2.Environment(loader=jinja2.PackageLoader("vgjax", ""), autoescape=True, trim_blocks=True)
    templates.filters |= {"number": format_number, "inline": _inline}
    page = templates.get_template(template).render(values)
    with whole(path) as temporary:
        temporary.write_text(page)
    return path.absolute()


def _inline(figure: Any) -> str:
    """A figure as a data URL."""
    from vgjax.figures import as_png

    return f"data:image/png;base64,{base64.b64encode(as_png(figure)).decode()}"


def format_number(x: float | None) -> str:
    """Text of a number: a few significant digits, with a power of ten for very large and small ones; "" for NaN.

    >>> format_number(4.8e-7)
    '4.80·10⁻⁷'
    """
    if x is None or math.isnan(x):
        return ""
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if x == round(x) and abs(x) < 1e6:
        return f"{x:.0f}"
    if 1e-3 <= abs(x) < 1e5:
        return f"{x:.4g}"
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def as_json(content: Any, **layout: Any) -> str:
    """JSON text: named fields become objects, arrays lists, NaN and infinity null.

    >>> as_json({"a": (1, float("nan"))})
    '{"a": [1, null]}'
    """
    return json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, **layout)


def _plain(value: Any) -> Any:
    """The value as dicts, lists, strings and finite numbers."""
    if isinstance(value, xr.Dataset):
        return {name: _plain(variable.values) for name, variable in value.variables.items()}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count_verdicts(sections: Sequence[Any]) -> dict[str, int]:
    """Verdict → number of rows that have it."""
    verdicts = [row.verdict for section in sections for row in section.rows]
    return {verdict: verdicts.count(verdict) for verdict in ("reproduced", "differs", "no data")}
