"""What goes to the sinks: one reading with what it changed."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot, LayerDescription, SignalSnapshot


@dataclass(frozen=True, eq=False)
class StepReport:
    """A reading, what began and ended with it, and everything before it.

    Attributes:
        snapshot: The reading.
        onsets: Faults that began with it and are to be told.
        recoveries: Faults that are over with it.
        diagnoses: All faults so far, oldest first.
        history: All readings so far; not to be changed.
        num_readings: How many readings had a gradient so far; the history keeps fewer of a long run.
        optimizer_label: ``""`` where there is one optimizer, else ``"optimizer_0"`` and so on.
        log_step: Where it belongs on the x axis of the loggers.
        due: Whether the logging interval asks for scalars now.
        skipped_steps: How many steps were dropped so far because of non-finite gradients.
        clips: Whether a clipper of GradWatch is set.
        signals: What the signal probe saw in this step, None without one.
        muted: Faults that began with it and that the person does not want to hear of: drawn, and nothing else.
        descriptions: What the layers are, ``[num_layers]``.
        optimizer_kind: Class of the optimizer, such as ``"Adam"``.

    Example:
        >>> import torch
        >>> from lightning_gradwatch import GradWatch
        >>> class Loudest:
        ...     def write(self, report):
        ...         norms = report.snapshot.norms
        ...         print(report.snapshot.step, report.history.layers[norms.argmax()], norms.max().round(2))
        ...     def close(self):
        ...         pass
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> _ = [torch.nn.init.ones_(weight) for weight in model.parameters()]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with GradWatch(sinks=[Loudest()]).attach(model, optimizer):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        0 1 4.36
    """

    snapshot: GradientSnapshot
    history: GradientHistory
    onsets: tuple[Diagnosis, ...] = ()
    recoveries: tuple[Diagnosis, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    num_readings: int = 0
    optimizer_label: str = ""
    log_step: int = 0
    due: bool = False
    skipped_steps: int = 0
    clips: bool = False
    signals: SignalSnapshot | None = None
    muted: tuple[Diagnosis, ...] = ()
    descriptions: tuple[LayerDescription, ...] = ()
    optimizer_kind: str = ""
