"""From what a signal probe recorded on the device to plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.signals import Call, Signals
from lightning_gradwatch.measure.snapshot import FloatArray, IntArray, SignalSnapshot, TimeProfile, combine_norms
from lightning_gradwatch.measure.transfer import Transfer
from lightning_gradwatch.measure.updates import WeightSample

# So many calls of one layer in a forward pass make a profile along time: a convolution used for two branches or a
# discriminator used on two batches makes none. Ours.
MIN_CALLS = 8


class ProbeReading:
    """A probe of one optimizer step; it becomes a ``SignalSnapshot`` when somebody asks for it.

    Args:
        number: Number of the optimizer.
        step: ``global_step`` before the step.
        layers: Names of all layers.
        signals: What was recorded.
        sample: The weights before the step, of the layers that the optimizer holds; None where it holds none.
        scale: What a loss scaler multiplied the loss by.
    """

    def __init__(
        self,
        number: int,
        step: int,
        layers: Sequence[str],
        signals: Signals,
        sample: WeightSample | None,
        scale: Tensor | None = None,
    ) -> None:
        self._number, self._step, self._layers = number, step, tuple(layers)
        self._signals = signals
        self._sample = sample
        self._scale = scale
        self._moved: tuple[Tensor, Tensor] | None = None
        self._columns = [] if sample is None else sample.columns
        self._deltas = [_deltas(call) for call in signals.calls]
        self._sent: tuple[list[int], Transfer | None] | None = None

    def measure_updates(self) -> None:
        """Measure how far the step that was just made has moved each layer, and send everything to the host."""
        if self._sample is not None:
            self._moved, self._sample = self._sample.measure(), None
        self._send()

    def snapshot(self) -> SignalSnapshot:
        """Bring everything to the host, in one transfer, and arrange it by layers."""
        calls, chosen = self._signals.calls, self._deltas
        self._send()
        signals, deltas, alive, steep, times, moved, scale = self._arrived()
        factor = float(scale[0][0]) if scale else 1.0
        factor = factor if factor > 0 else float("nan")
        return SignalSnapshot(
            step=self._step,
            optimizer=self._number,
            layers=self._layers,
            order=_order(calls),
            sizes=self._sizes(calls),
            signal=self._by_layer(calls, [[norm] for norm in signals]),
            delta=self._by_layer(calls, _regrouped(deltas, chosen)) / factor,
            dead=self._shares(alive),
            saturated=self._shares(steep),
            update_ratio=self._updates(moved),
            training=self._any(calls, [call.training for call in calls]),
            fed_by_cut=self._any(calls, _fed_by_lost(calls)),
            unscaled_float16=self._signals.float16 and self._scale is None,
            time=(*self._recurrent(times, factor), *self._repeated(calls, _regrouped(deltas, chosen), factor)),
        )

    def _send(self) -> None:
        """Begin the one transfer; the host need not wait for it before the snapshot is asked for."""
        if self._sent is not None:
            return
        groups: list[list[Tensor]] = [
            [call.norm for call in self._signals.calls],
            [norm for several in self._deltas for norm in several],
            [_share(units.alive) for units in self._signals.units.values()],
            [_share(units.steep) for units in self._signals.units.values()],
            [norms for _, norms, _ in self._signals.times],
            [] if self._moved is None else list(self._moved),
            [] if self._scale is None else [self._scale],
        ]
        parts = [part.reshape(-1) for group in groups for part in group]
        self._sent = [len(group) for group in groups], Transfer(parts) if parts else None

    def _arrived(self) -> list[list[FloatArray]]:
        assert self._sent is not None, "it is sent before it is asked for"
        lengths, transfer = self._sent
        numbers = iter(transfer.numbers() if transfer else [])
        return [[next(numbers) for _ in range(length)] for length in lengths]

    def _sizes(self, calls: Sequence[Call]) -> FloatArray:
        columns = np.array([call.column for call in calls], dtype=np.int64)
        sizes = np.array([call.size for call in calls], dtype=np.float64)
        found = np.bincount(columns, weights=sizes, minlength=len(self._layers))
        known: FloatArray = np.where(found > 0, found, np.nan)
        return known

    def _by_layer(self, calls: Sequence[Call], norms: Sequence[Sequence[FloatArray]]) -> FloatArray:
        """Return the root mean square over all calls of each layer, ``[num_layers]``."""
        parts = [
            (call.column, norm[0], call.size) for call, several in zip(calls, norms, strict=True) for norm in several
        ]
        columns = np.array([column for column, _, _ in parts], dtype=np.int64)
        weights = np.array([size for _, _, size in parts], dtype=np.float64)
        sizes = np.bincount(columns, weights=weights, minlength=len(self._layers))
        values = np.array([norm for _, norm, _ in parts], dtype=np.float64)
        whole = combine_norms(values, columns, len(self._layers))
        found: FloatArray = whole / np.sqrt(np.where(sizes > 0, sizes, np.nan))
        return found

    def _any(self, calls: Sequence[Call], flags: Sequence[bool]) -> FloatArray:
        """Return for each layer 1 where it is true of a call, 0 where of none, NaN where there is no call."""
        found = np.full(len(self._layers), np.nan)
        columns = np.array([call.column for call in calls], dtype=np.int64)
        found[columns] = 0.0
        found[columns[np.array(flags, dtype=np.bool_)]] = 1.0
        return found

    def _shares(self, kept: Sequence[FloatArray]) -> FloatArray:
        shares = np.full(len(self._layers), np.nan)
        for column, share in zip(self._signals.units, kept, strict=True):
            shares[column] = 1 - float(share[0])
        return shares

    def _updates(self, moved: Sequence[FloatArray]) -> FloatArray:
        ratios = np.full(len(self._layers), np.nan)
        if moved:
            before, step = moved
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios[self._columns] = step / before
        return ratios

    def _recurrent(self, times: Sequence[FloatArray], factor: float) -> Iterable[TimeProfile]:
        found: dict[int, TimeProfile] = {}
        for (column, _, sizes), norms in zip(self._signals.times, times, strict=True):
            # Of several calls the longest sequence tells most.
            if column not in found or len(norms) > len(found[column].delta):
                both_ways = column in self._signals.both_ways
                found[column] = TimeProfile(column, norms / np.sqrt(sizes) / factor, both_ways=both_ways)
        return found.values()

    @staticmethod
    def _repeated(
        calls: Sequence[Call], deltas: Sequence[Sequence[FloatArray]], factor: float
    ) -> Iterable[TimeProfile]:
        several: dict[int, list[float]] = {}
        for call, norms in zip(calls, deltas, strict=True):
            norm = math.hypot(*(float(n[0]) for n in norms)) if norms else math.nan
            several.setdefault(call.column, []).append(norm / np.sqrt(call.size) / factor)
        for column, profile in several.items():
            if len(profile) >= MIN_CALLS and not np.isnan(profile).all():
                yield TimeProfile(column, np.array(profile), recurrent=False)


def _deltas(call: Call) -> list[Tensor]:
    """Return the gradients of the step's own backward pass; of any other where nobody announced one."""
    announced = [norm for norm, in_backward in call.deltas if in_backward]
    return announced or [norm for norm, _ in call.deltas]


def _fed_by_lost(calls: Sequence[Call]) -> list[bool]:
    """Tell which calls were fed, behind a cut, by a layer of this step to which no gradient came back on any way."""
    reached = {call.column for call in calls if call.deltas}
    lost = {call.column for call in calls} - reached
    return [not lost.isdisjoint(call.fed_by_cut) for call in calls]


def _order(calls: Sequence[Call]) -> IntArray:
    return np.array(list(dict.fromkeys(call.column for call in calls)), dtype=np.int64)


def _share(mask: Tensor | None) -> Tensor:
    return torch.full((1,), float("nan")) if mask is None else mask.to(torch.float32).mean().reshape(1)


def _regrouped(values: Sequence[FloatArray], like: Sequence[Sequence[object]]) -> list[list[FloatArray]]:
    rest = iter(values)
    return [[next(rest) for _ in group] for group in like]
