"""A step that is not finite, as lines of the log and as a file from which a person can reproduce it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.report.log import named
from lightning_gradwatch.report.origin import Witness, origin_in_words

# Raised when a reader of an older file would misunderstand a newer one.
FORMAT_VERSION = 1
# A run that is restarted again and again, and fails at each start, shall not fill the directory.
MAX_FILES = 20
_PACKAGES = ("lightning-gradwatch", "pytorch-lightning", "lightning", "torch", "numpy")
_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")
_WHAT_WAS_DONE = {
    "warn": "used by the optimizer as it is",
    "skip": "dropped: weights, momentum and weight decay stay as they were",
    "raise": "not used; training ends",
}


@dataclass(frozen=True, eq=False)
class NonFiniteStep:
    """The first step of a row of steps whose gradients are not finite.

    Attributes:
        step: The Trainer's ``global_step`` before it.
        optimizer: Number of the optimizer.
        optimizer_kind: Its class.
        on_nonfinite: What was set to be done about it.
        witnesses: What each process knows of it; only this one where the others were not asked.
        num_processes: How many processes train.
        not_asked: Why the other processes are not in it, empty where they are.
        snapshot: Its gradients; None where they could not be measured.
        layers: Names of all layers, ``[num_layers]``.
        diagnosis: What the rules made of it; None where they were muted or could not be asked.
        clean_steps: Step, global norm and loss of the last steps before it that were finite, oldest first.
        before_step: Whether the weights were looked at before the step (which was not used), and not after it.
        checkpoint: Path and step of the last checkpoint that is clean; None where none is known.
    """

    step: int
    optimizer: int
    optimizer_kind: str
    on_nonfinite: str
    witnesses: tuple[Witness, ...]
    num_processes: int = 1
    not_asked: str = ""
    snapshot: GradientSnapshot | None = None
    layers: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = None
    clean_steps: tuple[tuple[int, float, float], ...] = ()
    before_step: bool = False
    checkpoint: tuple[str, int] | None = None

    @property
    def origin(self) -> str:
        """Where it came from, in words."""
        if self.not_asked:
            return f"in this process {self.witnesses[0].line}; {self.not_asked}"
        return origin_in_words(self.witnesses)

    @property
    def broken_weights(self) -> tuple[str, ...]:
        """The first layers with a weight that is not finite, in any of the processes."""
        return tuple(dict.fromkeys(name for witness in self.witnesses for name in witness.broken_weights))

    @property
    def weights_broken(self) -> bool | None:
        """Whether any weight is not finite; None where nobody could look."""
        counts = [w.num_broken_weights for w in self.witnesses if w.num_broken_weights is not None]
        return any(counts) if counts else None

    def text(self, optimizer_label: str = "", path: Path | None = None) -> str:
        """Say where it came from, whether training can go on, and where to go back to.

        Args:
            optimizer_label: Name of the optimizer where there are several.
            path: The file that was written of it.

        Returns:
            A few lines.

        Example:
            >>> loss = Witness(batches=(7, 7), loss=float("nan"), num_broken_weights=0)
            >>> print(NonFiniteStep(7, 0, "SGD", "skip", (loss,)).text())
            GradWatch  step 7  not finite: where it came from
              from       batch 7: loss nan
              step       dropped: weights, momentum and weight decay stay as they were
              weights    all finite
              saved      no checkpoint is known from before it
        """
        where = f" [{optimizer_label}]" if optimizer_label else ""
        rows = {
            "from": self.origin,
            "step": _WHAT_WAS_DONE[self.on_nonfinite],
            "weights": self._weights_in_words(),
            "saved": self._checkpoint_in_words(),
            "record": "" if path is None else str(path),
        }
        lines = [f"{key:<9}  {text}" for key, text in rows.items() if text]
        return "\n  ".join([f"GradWatch  step {self.step}{where}  not finite: where it came from", *lines])

    def _weights_in_words(self) -> str:
        if self.weights_broken is None:
            return "could not be looked at"
        if not self.weights_broken:
            return "all finite"
        when = "were not finite already" if self.before_step else "are not finite any more"
        # Each process names the first ones, and counts all.
        rest = max(w.num_broken_weights or 0 for w in self.witnesses) - len(self.broken_weights)
        listed = f"{', '.join(self.broken_weights)} and {rest} more" if rest > 0 else named(self.broken_weights)
        names = f" in {listed}" if self.broken_weights else ""
        return f"{when}{names}: training cannot recover; checkpoints saved from here are poisoned"

    def _checkpoint_in_words(self) -> str:
        if self.checkpoint is None:
            return "no checkpoint is known from before it"
        path, step = self.checkpoint
        return f"last clean checkpoint: {path} (step {step})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values that JSON can hold; numbers that are not finite become strings."""
        return {
            "format_version": FORMAT_VERSION,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "step": self.step,
            "optimizer": {"number": self.optimizer, "kind": self.optimizer_kind},
            "on_nonfinite": self.on_nonfinite,
            "origin": self.origin,
            "num_processes": self.num_processes,
            "processes": [_plain(asdict(witness)) for witness in self.witnesses],
            "layers": self._layers(),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
            "clean_steps": [
                {"step": step, "global_norm": _plain(norm), "loss": _plain(loss)}
                for step, norm, loss in self.clean_steps
            ],
            "weights": {
                "finite": None if self.weights_broken is None else not self.weights_broken,
                "looked_at": "before the step" if self.before_step else "after the step",
                "broken_in": list(self.broken_weights),
            },
            "last_clean_checkpoint": None
            if self.checkpoint is None
            else {"path": self.checkpoint[0], "step": self.checkpoint[1]},
            "environment": _environment(),
        }

    def _layers(self) -> list[dict[str, Any]]:
        """Return the layers whose gradient is not finite, where it began first, as the diagnosis has them."""
        if self.snapshot is None:
            return []
        sick = np.flatnonzero(self.snapshot.present & ~np.isfinite(self.snapshot.clipped_norms))
        norms = {self.layers[column]: float(self.snapshot.clipped_norms[column]) for column in sick}
        first = [name for name in (self.diagnosis.layers if self.diagnosis else ()) if name in norms]
        return [{"name": name, "norm": _plain(norms[name])} for name in dict.fromkeys([*first, *norms])]


class NonFiniteFiles:
    """Writes ``gradwatch/nonfinite-step-N.json`` into the log directory, at most ``MAX_FILES`` of them.

    A file appears whole or not at all, and one of an earlier run stays: the next one of the same step gets ``-2``
    behind its name.

    Args:
        directory: The log directory; None where nothing may be written.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = None if directory is None else directory / "gradwatch"
        self._paths: dict[tuple[int, int], Path] = {}

    def write(self, about: NonFiniteStep) -> Path | None:
        """Write what is known of a step, in the place of what was known before.

        Args:
            about: The step.

        Returns:
            The file; None where there are enough of them, or nothing may be written.
        """
        if self._directory is None:
            return None
        key = (about.step, about.optimizer)
        path = self._paths.get(key) or self._free_path(about.step)
        if path is None:
            return None
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        try:
            unfinished.write_text(json.dumps(about.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        self._paths[key] = path
        return path

    def _free_path(self, step: int) -> Path | None:
        assert self._directory is not None, "asked only where something may be written"
        taken = {path.name for path in self._directory.glob("nonfinite-step-*.json")}
        if len(taken) >= MAX_FILES:
            return None
        names = [f"nonfinite-step-{step}{suffix}.json" for suffix in ("", *(f"-{n}" for n in range(2, MAX_FILES + 2)))]
        return self._directory / next(name for name in names if name not in taken)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    seeds = {name: os.environ[name] for name in _SEEDS if name in os.environ}
    return {"platform": platform.platform(), "versions": versions, "seeds": seeds}
