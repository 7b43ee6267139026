"""vgjax: how the gradient signal fares, layer by layer: measured, predicted by theory, and explained.

Names are imported when they are first asked for, so that `vgjax --help` does not wait for JAX; `__init__.pyi` lists
them.
"""

from typing import Any

import lazy_loader

_lazily, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

_MODULES = {"analysis", "clinic", "config", "data", "diagnosis", "figures", "report", "theory"}
__all__ = sorted({"__version__", *_names} - _MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vgjax")
    return _lazily(name)
