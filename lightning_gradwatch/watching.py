"""The core: what happens before a step, after it and at the end, asking each floor in turn.

It knows nothing of Lightning. Whoever drives it calls, for each batch, ``begin_batch``, then ``before_backward`` with
the loss, ``before_step`` when an optimizer is about to use its gradients and ``after_step`` when it has, and
``end_batch``; at the end, or after an error, ``finish``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.coroner import Coroner
from lightning_gradwatch.course import Course
from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.display import Display
from lightning_gradwatch.exchanges import Exchanges
from lightning_gradwatch.harmless import Guard, Stopwatch, harmless
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.losses import LossWindow
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.layers import KnownLayer
from lightning_gradwatch.measure.left_out import find_left_out
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.signal_history import SignalHistory
from lightning_gradwatch.poisoned import PoisonedSteps
from lightning_gradwatch.prober import Prober
from lightning_gradwatch.record import Record
from lightning_gradwatch.rehearsing import MakeStage
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.health import assert_healthy
from lightning_gradwatch.report.log import closing_text, start_text, stop_text
from lightning_gradwatch.report.optional import drawing
from lightning_gradwatch.report.show import page_of, save_run
from lightning_gradwatch.report.sink import Sink
from lightning_gradwatch.report.start import left_out_lines
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.resuming import Resumable
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.stepper import Stepper
from lightning_gradwatch.steps import LossScaler, OptimizerStep, Steps
from lightning_gradwatch.surroundings import Surroundings
from lightning_gradwatch.viewer.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Watch:
    """Watches the training of one model.

    Args:
        settings: What the person has set.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.disabled_reason: str | None = None
        # Epoch and index of the batch, None where nobody tells; also noted after GradWatch had to switch itself off.
        self.place: tuple[int, int] | None = None
        self._stopwatch = Stopwatch()
        self._guard = Guard(self._stopwatch, self._failed)
        self._began = time.perf_counter()
        self._teller = teller = Teller()
        self._record = record = Record(settings, teller)
        self._poisoned = PoisonedSteps(settings.on_nonfinite, settings.max_consecutive_skips)
        self._steps = Steps(settings.every_n_steps)
        self._losses = LossWindow()
        self._prober = Prober(settings.probe_every_n_steps)
        self._inquests = Inquests(teller, settings.on_nonfinite)
        coroner = Coroner(self._inquests, record, before_steps=settings.on_nonfinite != "warn")
        self._exchanges = Exchanges(self, record, self._inquests, teller)
        self._course = Course(self, self._steps, self._losses, self._prober, record, coroner, self._exchanges)
        schedule = self._prober.schedule
        self._resumable = Resumable(record, self._steps, self._poisoned, schedule, settings.clipper, teller.warn)
        self._display = Display(settings, record, teller)
        # The columns of the fit before; they keep no model alive.
        self._known: tuple[KnownLayer, ...] = ()
        self._picture = "none"

    @property
    def core(self) -> Watch:
        """Itself; what drives it has it under the same name."""
        return self

    @property
    def seconds(self) -> float:
        """How long watching has taken so far."""
        return self._stopwatch.seconds

    def guarded(self) -> Guard:
        """Switch off where the code inside fails; a ``GradientFault`` is raised on purpose and goes through."""
        return self._guard

    def _failed(self, error: Exception) -> None:
        if self.disabled_reason is None:
            self.disable(f"{type(error).__name__}: {error}", error)

    @property
    def history(self) -> GradientHistory:
        """Everything that was measured."""
        return self._record.history

    @property
    def probes(self) -> SignalHistory:
        """What the signal probe has seen."""
        return self._record.probes

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """All faults so far, oldest first."""
        return self._record.diagnoses

    @property
    def remedies(self) -> list[Remedy]:
        """Ways out of all faults, those first of the fault that is to be cured first."""
        return self._record.remedies

    @property
    def global_norms(self) -> dict[int, float]:
        """The newest global norm of each optimizer; the last finite one where a loss scaler drops the step."""
        return dict(self._record.norms)

    @property
    def skipped_steps(self) -> int:
        """How many poisoned steps were dropped."""
        return self._poisoned.num_skipped

    @property
    def overflowed_steps(self) -> int:
        """How many steps a loss scaler has dropped."""
        return self._steps.num_overflows

    def join(self, *, alone: bool, surroundings: Surroundings | None = None) -> None:
        """Take part in what several processes exchange; every process has to call it before ``start``, well or not.

        Args:
            alone: Whether no other process trains the same model; where one does, ``agree`` has to be called.
            surroundings: Where this process stands among them.
        """
        self._exchanges.begin(alone=alone)
        self._display.directory = None if surroundings is None else surroundings.directory
        self._inquests.begin(surroundings or Surroundings())

    def agree_on_start(self, anywhere: Callable[[bool], bool]) -> None:
        """Learn whether all processes can decide together which steps are dropped; all have to call it.

        Args:
            anywhere: Tells whether something is true in any of the processes.
        """
        stepper = self._course.stepper
        if self.settings.on_nonfinite != "warn" and anywhere(stepper is None) and stepper is not None:
            stepper.decide_alone()

    def start(
        self,
        model: nn.Module,
        num_optimizers: int,
        make_sinks: Callable[[], Sequence[Sink]] = tuple,
        picture: str = "",
        tells: bool = True,
        clips_elsewhere: bool = False,
        clipped: bool = False,
        anywhere: Callable[[bool], bool] | None = None,
        in_step: bool = False,
        note: str = "",
        optimizers: Sequence[Optimizer] = (),
    ) -> None:
        """Begin to watch.

        Args:
            model: The model.
            num_optimizers: How many optimizers train it.
            make_sinks: Makes the places where reports go; not called where nothing is told.
            picture: Where the person finds the picture, for the first and the last lines.
            tells: Whether this process tells anything: rank zero only.
            clips_elsewhere: Whether someone else clips between ``before_step`` and ``after_step``.
            clipped: Whether someone is known to do so, and a clipper of ours would be refused: none is advised then.
            anywhere: Tells whether something is true in any of several processes; None in one process alone.
            in_step: Whether all processes come to each step of an optimizer together.
            note: What else the person should know from the start.
            optimizers: The optimizers where they are known already, to tell what none of them holds.
        """
        with self.guarded():
            self._teller.speaks = tells
            self._began, self._stopwatch.seconds = time.perf_counter(), 0.0
            self._record.clipped = clipped
            self._steps.restart()
            self._losses.take()
            try:
                # Before anything else that can fail, so that a run that is not watched can say why.
                self._record.open(tuple(make_sinks()) if tells else ())
            finally:
                # Also where that fails: `clipper` and `on_nonfinite` go on.
                reader = Reader(model, self._known)
                self._course.stepper = Stepper(
                    self.settings,
                    reader,
                    self._poisoned,
                    self._teller.warn,
                    clips_elsewhere=clips_elsewhere,
                    anywhere=anywhere,
                    in_step=in_step,
                )
            self._picture = picture
            self._begin(reader, several=num_optimizers > 1)
            if self.disabled_reason is None:
                self._note_left_out(reader, optimizers)
        if note:
            self._teller.say(f"GradWatch  {note}")

    @harmless
    def _begin(self, reader: Reader, *, several: bool) -> None:
        self._prober.start(reader)
        names = [layer.name for layer in reader.layers]
        if self._record.begin(names, several=several):
            self._steps.forget()
            self._resumable.reset_clipper()
        self._resumable.take_back(names)
        self._teller.say(start_text(reader.descriptions, self._picture))

    def _note_left_out(self, reader: Reader, optimizers: Sequence[Optimizer]) -> None:
        left_out = find_left_out(reader.model, reader.layers, optimizers)
        if left_out.layers:
            reader.note_left_out(left_out.layers)
        for line in left_out_lines(left_out):
            self._teller.say(line)

    @harmless
    def begin_batch(self, log_step: int, due: bool) -> None:
        """Note where the next readings belong on the loggers' axis, and whether they ask for scalars."""
        self._course.begin_batch(log_step, due)

    @harmless
    def entered(self, module: nn.Module, args: Any) -> Any:
        """Take note of a call with which the batch has begun; returns other arguments for it, or None."""
        return self._prober.entered(module, args)

    def before_backward(self, loss: Tensor) -> None:
        """Take the loss before its gradients are computed: its value, and once its graph."""
        if self._course.stepper is not None and (self.disabled_reason is None or self.settings.acts):
            # Also where GradWatch had to switch itself off: a step that is dropped then is asked for its loss.
            with self.guarded():
                if loss.numel() == 1:
                    self._losses.add(loss, None if self.place is None else self.place[1])
        self._before_backward(loss)

    @harmless
    def _before_backward(self, loss: Tensor) -> None:
        stepper = self._course.stepper
        if stepper is None:
            return
        if loss.numel() == 1:
            stepper.reader.read_graph(loss)
        self._prober.before_backward(opaque=stepper.reader.topology.opaque)

    @harmless
    def after_backward(self) -> None:
        """Note that the backward pass is over; another forward pass may follow before the step."""
        self._prober.after_backward()

    @harmless
    def take_back_loss(self) -> None:
        """Forget the newest loss: its gradients have reached no part of this model."""
        self._losses.take_back()

    def before_zero_grad(self) -> None:
        """Forget the losses so far: their gradients are about to be zeroed, and no step uses them."""
        self._losses.take()

    @harmless
    def forget_passes(self) -> None:
        """Forget losses and signals since the last step: their gradients were zeroed, and no step uses them."""
        self._losses.take()
        self._prober.forget()

    def before_step(
        self,
        number: int,
        optimizer: Optimizer,
        step: int,
        scaler: LossScaler | None = None,
        unscales: bool = False,
        divided_by: int = 1,
    ) -> None:
        """Read the gradients that an optimizer is about to use, clip them, and drop the step where that is asked.

        Args:
            number: Number of the optimizer.
            optimizer: The optimizer.
            step: ``global_step`` before the step.
            scaler: What scales the loss and drops steps that overflow, None where nothing does.
            unscales: Whether the optimizer unscales its gradients itself, inside ``step``.
            divided_by: What each loss was divided by because so many are accumulated; there may have been fewer.

        Raises:
            GradientFault: If ``on_nonfinite`` says so.
        """
        loss = self._losses.take(divided_by)
        self._course.before_step(OptimizerStep(number, optimizer, step, scaler, unscales), loss)

    def after_step(self, number: int, *, certain: bool = True) -> None:
        """Note that an optimizer has really stepped, and what its gradients were after someone else's clipping.

        Args:
            number: Number of the optimizer.
            certain: False for one that tells nothing: a loss scaler may have dropped the step.
        """
        pending = self._steps.pending.get(number)
        if pending is not None:
            self._course.after_step(pending, certain=certain)
        elif self._steps.surprises(number):
            self._teller.warn(
                f"optimizer {number} has stepped without a word to GradWatch (as with "
                "optimizers(use_pl_optimizer=False)): such steps are not measured, clipped or dropped"
            )

    def end_batch(self, *, wait: bool = False, make_stage: MakeStage | None = None) -> tuple[Diagnosis, ...]:
        """Settle the steps of the batch, those whose numbers are still on their way at the optimizer's next step.

        Args:
            wait: Whether those are waited for: somebody wants to know now.
            make_stage: Makes the place where remedies are tried with this batch, which nobody has any more afterwards.

        Returns:
            The faults that began and were told.
        """
        self._record.make_stage = make_stage
        try:
            return self._end_batch(wait=wait or make_stage is not None or bool(self.settings.stop_on))
        finally:
            self._record.make_stage = None

    def _end_batch(self, *, wait: bool) -> tuple[Diagnosis, ...]:
        self._end_probe()
        self._course.settle_batch(wait=wait)
        if self.disabled_reason is not None:
            self._steps.pending.clear()
        return self._record.take_onsets()

    @harmless
    def end_epoch(self) -> None:
        """Remove the probe's hooks: a batch that ``on_train_batch_start`` has skipped has no end."""
        self._prober.stop()

    @harmless
    def _end_probe(self) -> None:
        self._prober.end_batch()
        told = self._prober.why_none()
        if told:
            self._teller.say(f"GradWatch  {told}")

    def agree(self, mean: Callable[[Sequence[float]], Sequence[float]], *, now: bool = False) -> None:
        """Exchange with the other processes what only each of them knows; to be called by all after every batch.

        Args:
            mean: Takes this process's numbers and returns their mean over all processes.
            now: Whether training ends with this batch, in all processes: what is open is exchanged now.
        """
        with self._stopwatch:
            # The end of it is the same in all processes: each of them knows whether any has asked.
            while self._exchanges.end_batch(mean, self._course.stepper, now=now) and now:
                pass

    def finish(self, error: BaseException | None = None) -> tuple[Diagnosis, ...]:
        """Settle what is pending, close the sinks and say how it went; also after an error, ours or another's.

        Args:
            error: What has ended training, None where it came to its end.

        Returns:
            The faults that were told and that no ``end_batch`` has returned.
        """
        onsets = self._end_batch(wait=True)
        with self._stopwatch:
            picture = self._record.close(*self._ending(error), self._picture)
        share = self.seconds / max(time.perf_counter() - self._began, 1e-9)
        # A reading costs the same however short a step is: a small network looks dear.
        each = (
            f", {1e3 * self.seconds / self._record.num_readings:.2g} ms a reading" if self._record.num_readings else ""
        )
        self._teller.say(
            closing_text(
                self._record.num_readings,
                self.overflowed_steps,
                self.diagnoses,
                picture,
                f"{self.seconds:.1f} s, {share:.1%} of the run{each}",
                self.disabled_reason,
                self.skipped_steps,
                self._record.unheard,
            )
        )
        stepper, self._course.stepper = self._course.stepper, None
        if stepper is not None:
            self._display.describe(stepper.reader.descriptions)
            self._known = tuple(map(KnownLayer.of, stepper.reader.layers))
        self._prober.stop()
        return onsets

    def _ending(self, error: BaseException | None) -> tuple[str, str]:
        if self.disabled_reason is not None:
            return "switched off", self.disabled_reason
        return ("completed", "") if error is None else ("error", f"{type(error).__name__}: {error}".rstrip(": "))

    def disable(self, reason: str, error: BaseException | None = None) -> None:
        """Switch off after a failure of our own: said once here, and again in the closing lines."""
        self.disabled_reason = reason
        # Nothing will settle these any more, and they may refer to gradients.
        self._steps.pending.clear()
        if not self.settings.acts:
            # Else losses are still collected: other processes may ask for the one of this very step.
            self._losses.take()
        self._prober.stop()
        acts = self.settings.acts and self._course.stepper is not None
        still = "; `clipper` and `on_nonfinite` go on" if acts else ""
        self._teller.warn(f"failed and is switched off, training goes on unwatched{still}: {reason}")
        self._teller.logger.debug("GradWatch  where it failed", exc_info=error)
        self._record.sinks.deactivate(self._course.log_step)

    def refuse(self, reason: str, *, tells: bool) -> None:
        """Say that this run cannot be watched, and leave it alone.

        Args:
            reason: Why.
            tells: Whether this process tells anything.
        """
        self.disabled_reason, self._teller.speaks = reason, tells
        self._teller.warn(f"does not watch this run: {reason}")

    def each_diagnosis(self, diagnoses: Sequence[Diagnosis], call: Callable[[Diagnosis], None]) -> None:
        """Call the person's own code for each diagnosis; an error in it is told and does no harm."""
        for diagnosis in diagnoses:
            try:
                call(diagnosis)
            except Exception as error:
                self._teller.warn(f"on_diagnosis failed: {type(error).__name__}: {error}")

    def assert_healthy(self, symptoms: Sequence[str] | None = None, after_step: int = 0) -> None:
        """Raise AssertionError where a warning was given, or nothing was measured; see ``GradWatch``."""
        if self.disabled_reason is not None:
            raise AssertionError(f"GradWatch was switched off, so nothing is known: {self.disabled_reason}")
        assert_healthy(self.diagnoses, self._record.num_readings, len(self.history.layers), symptoms, after_step)

    def recorded(self) -> Run:
        """Return what is remembered, as the page shows it."""
        if self._course.stepper is not None:
            self._display.describe(self._course.stepper.reader.descriptions)
        return self._display.run(self.disabled_reason)

    def page(self) -> str:
        """Return what is remembered as the HTML of a page, of bounded size."""
        return page_of(self.recorded())

    def show(self) -> Path | None:
        """Display the page in a notebook, else write it and say where; see ``GradWatch``."""
        return self._display.show(self.recorded())

    def save(self, path: str | Path) -> Path:
        """Write what is remembered as a page, Markdown or JSON; see ``GradWatch``."""
        return save_run(self.recorded(), path)

    def plot(self, quantity: str = "norms", *, optimizer: int = 0, ax: Axes | None = None) -> Figure:
        """Draw a quantity as a matplotlib figure; see ``GradWatch``."""
        figure: Figure = drawing("plot").plot_run(self.recorded(), quantity, optimizer, ax)
        return figure

    def stops(self, onsets: Sequence[Diagnosis]) -> bool:
        """Tell whether training should end because of what began in the batch."""
        wanted = set(self.settings.stop_on)
        return any(d.symptom.value in wanted and d.severity == "warning" for d in onsets)

    def tell_stop(self, onsets: Sequence[Diagnosis], then: str) -> None:
        """Say that ``stop_on`` ends training.

        Args:
            onsets: The faults that began in the batch; none of them where one began in another process.
            then: What happens next.
        """
        wanted = [d for d in onsets if d.symptom.value in self.settings.stop_on and d.severity == "warning"]
        self._teller.say(stop_text(wanted, then))

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain values and tensors, as a weights-only checkpoint admits them.

        Also after GradWatch had to switch itself off: a clipper may go on, and what it remembers with it.
        """
        self._course.settle_batch(wait=True)
        return self._resumable.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what ``state_dict`` returned until the layers are known."""
        self._resumable.load_state_dict(state)
