"""One class for both packages that hold the same Trainer: each takes callbacks of its own class only."""

from __future__ import annotations

import importlib

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_classes() -> tuple[type, ...]:
    """Return the class Callback of each package that is installed.

    Raises:
        ImportError: If none is.
    """
    found = []
    for package in _PACKAGES:
        try:
            found.append(importlib.import_module(package).Callback)
        except ModuleNotFoundError as error:
            # Something that an installed package needs is missing: that is another error.
            if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
                raise
    if not found:
        raise ImportError("GradWatch needs Lightning: pip install pytorch-lightning (or: pip install lightning)")
    return tuple(dict.fromkeys(found))


# A Trainer or LightningCLI of either package takes it.
Callback = type("Callback", callback_classes(), {})
