"""Parts that need a library of which the rest has no need, loaded when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

INSTALL = "matplotlib is not installed, which plots need: pip install lightning-gradwatch[plot]"


def drawing(name: str) -> Any:
    """Load a module of this floor that draws with matplotlib.

    Args:
        name: ``"plot"``, ``"depth_plot"`` or ``"figure"``.

    Returns:
        The module.

    Raises:
        ImportError: If matplotlib is missing.

    Example:
        >>> drawing("figure").SIZE
        (9.0, 5.0)
    """
    try:
        return importlib.import_module(f"lightning_gradwatch.report.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise ImportError(INSTALL) from error
