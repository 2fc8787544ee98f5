"""What is read of one optimizer step, from the device to plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import is_not

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.norms import (
    DOUBLE,
    GradientNorms,
    all_exact,
    inexact,
    measure_exactly,
    norms_of,
    sums_in_double,
)
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, GradientSnapshot, IntArray, global_norm
from lightning_gradwatch.measure.transfer import Transfer


class Reading:
    """One optimizer step, measured on the device; it becomes a ``GradientSnapshot`` when somebody asks for it.

    Where norms are summed in float64 (see ``sums_in_double``) everything goes to the host in one transfer, and nobody
    waits for it before the numbers are asked for. Elsewhere the host looks at once, and what float32 could not hold
    is measured in float64 before anybody changes the gradients.

    Args:
        measured: The norms on the device.
        extras: Further vectors that go along, by name.
        known_zeros: Which parameters have a gradient that is known to be exactly zero, and need no second look as
            long as it reads zero, ``[num_parameters]``; what a second look finds is noted in it.
        arrange: Makes the snapshot from ``norms``, ``clipped_norms`` where something clips, and the extras.
    """

    def __init__(
        self,
        measured: GradientNorms,
        extras: Mapping[str, Tensor],
        known_zeros: BoolArray,
        arrange: Callable[[Mapping[str, FloatArray]], GradientSnapshot],
    ) -> None:
        asked = measured.gradients[:1] if measured.alike else measured.gradients
        kinds = {(gradient.device, gradient.dtype) for gradient in asked}
        # The squares of float64 itself have bounds, so such gradients need a second look everywhere.
        self._late = bool(kinds) and all(sums_in_double(device) and dtype not in DOUBLE for device, dtype in kinds)
        self._measured: GradientNorms | None = measured
        self._arrange = arrange
        self._known_zeros = known_zeros
        self._versions: list[int] = []
        self._waiting = {"norms": measured.norms, **extras}
        self._under_way: list[tuple[list[str], Transfer]] = []
        self._numbers: dict[str, FloatArray] = {}
        self._snapshot: GradientSnapshot | None = None
        # Whether squares have overflowed although the gradients are finite.
        self._overflowed = False
        if not self._late:
            self._look(measured, "norms")

    @property
    def sharded(self) -> bool:
        """Whether the gradients are spread over processes; asked before they are let go."""
        return self._measured is not None and self._measured.index.sharded

    @property
    def under_way(self) -> bool:
        """Whether the numbers may not have arrived yet, so that asking for them may wait."""
        return self._late and self._snapshot is None

    def clip_(self, clip: Callable[[GradientNorms], Tensor]) -> None:
        """Let a clipper change the gradients, and keep their norms after it.

        Args:
            clip: Changes gradients in place and returns their norms after it.
        """
        measured = self._measured
        assert measured is not None, "nobody clips after the step"
        if not self._late and (self._overflowed or _overflows(self._numbers["norms"])):
            # The clipper is given the norms that the second look found; MPS has no float64.
            exact, device = torch.as_tensor(self._numbers["norms"]), measured.norms.device
            measured = replace(measured, norms=exact.float().to(device) if device.type == "mps" else exact.to(device))
        self._take_clipped(measured, clip(measured))

    @property
    def changed(self) -> bool:
        """Whether someone else has changed, replaced or dropped a gradient since it was measured and clipped."""
        if self._measured is None or not self._versions:
            return False
        now, before = self._gradients_now(self._measured), self._measured.gradients
        return any(map(is_not, now, before)) or _versions(before) != self._versions

    def measure_again(self) -> None:
        """Measure what the gradients are by now, after someone else has clipped them, and let them go.

        One that was dropped (None) counts as zero: nothing of it is used.
        """
        if self._measured is None:
            return
        now = self._gradients_now(self._measured)
        kept = [place for place, gradient in enumerate(now) if gradient is not None]
        gradients = [gradient for gradient in now if gradient is not None]
        norms = norms_of(gradients)
        if len(kept) < len(now):
            places = torch.tensor(kept, dtype=torch.long, device=norms.device)
            norms = norms.new_zeros(len(now)).index_put_((places,), norms)
            gradients = [old if new is None else new for old, new in zip(self._measured.gradients, now, strict=True)]
            dropped = np.setdiff1d(np.arange(len(now)), kept)
            self._take_clipped(replace(self._measured, gradients=gradients), norms, dropped)
        else:
            self._take_clipped(replace(self._measured, gradients=gradients), norms)
        self.release()

    @staticmethod
    def _gradients_now(measured: GradientNorms) -> list[Tensor | None]:
        parameters: Sequence[Tensor] = measured.index.parameters
        if len(measured.members) < len(parameters):
            parameters = [parameters[member] for member in measured.members.tolist()]
        return [parameter.grad for parameter in parameters]

    def release(self) -> None:
        """Let the gradients go: the person may free them."""
        self._start()
        self._measured = None

    def send(self) -> None:
        """Start the transfer of what is on the device; from here on nobody shall change the gradients."""
        if self._measured is not None:
            self._versions = _versions(self._measured.gradients)
        self._start()

    def _start(self) -> None:
        if self._waiting:
            self._under_way.append((list(self._waiting), Transfer(list(self._waiting.values()))))
            self._waiting = {}

    def snapshot(self) -> GradientSnapshot:
        """Return the plain numbers so far; waits for what is still under way."""
        if self._snapshot is None:
            self._snapshot = self._arrange(self._arrived())
        return self._snapshot

    def _take_clipped(self, measured: GradientNorms, norms: Tensor, dropped: IntArray | None = None) -> None:
        if not isinstance(norms, Tensor):
            raise TypeError(f"clip_ must return the norms after clipping, a tensor. Got {norms!r}")
        self._waiting["clipped_norms"] = norms
        self._snapshot = None
        if not self._late:
            self._look(measured, "clipped_norms", dropped)

    def _arrived(self) -> dict[str, FloatArray]:
        self._start()
        for names, transfer in self._under_way:
            self._numbers.update(zip(names, transfer.numbers(), strict=True))
        self._under_way.clear()
        return self._numbers

    def _look(self, measured: GradientNorms, name: str, dropped: IntArray | None = None) -> None:
        """Bring norms that were summed in float32 to the host, and replace what float32 could not hold."""
        norms = self._arrived()[name]
        if name == "norms":
            self._known_zeros[measured.members] &= norms == 0
        if all_exact(norms, measured.index.sizes):
            return
        known = self._known_zeros[measured.members] & (norms == 0)
        if dropped is not None:
            known[dropped] = True
        suspicious = np.flatnonzero(inexact(norms, measured.index.sizes[measured.members]) & ~known)
        if suspicious.size:
            exact = measure_exactly([measured.gradients[i] for i in suspicious.tolist()])
            self._overflowed = bool((np.isfinite(exact) & ~np.isfinite(norms[suspicious])).any())
            norms[suspicious] = exact
        if name == "norms":
            self._known_zeros[measured.members] = norms == 0


def _versions(gradients: Sequence[Tensor]) -> list[int]:
    """Return how often each gradient was changed in place; one made in inference mode does not count."""
    try:
        return [gradient._version for gradient in gradients]
    except RuntimeError:
        return [0 if gradient.is_inference() else gradient._version for gradient in gradients]


def _overflows(norms: FloatArray) -> bool:
    """Tell whether float32 holds each norm but not that of all gradients seen as one vector."""
    return bool(float(np.finfo(np.float32).max) < global_norm(norms, np.ones(len(norms), dtype=np.bool_)) < np.inf)
