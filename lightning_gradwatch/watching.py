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

from lightning_gradwatch.agreement import Agreement, Exchange
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.fault import GradientFault
from lightning_gradwatch.harmless import Guard, Stopwatch, harmless
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.losses import LossWindow
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.layers import KnownLayer
from lightning_gradwatch.measure.left_out import find_left_out
from lightning_gradwatch.measure.probing import ProbeReading
from lightning_gradwatch.measure.reader import Reader, describe_optimizer
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.measure.signal_history import SignalHistory
from lightning_gradwatch.poisoned import Poison, PoisonedSteps
from lightning_gradwatch.prober import Prober
from lightning_gradwatch.record import Record
from lightning_gradwatch.rehearsing import MakeStage
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.health import assert_healthy
from lightning_gradwatch.report.heatmap import HeatmapSink
from lightning_gradwatch.report.log import closing_text, start_text, stop_text
from lightning_gradwatch.report.optional import drawing
from lightning_gradwatch.report.picture import PictureSink
from lightning_gradwatch.report.recorded import Told, recorded_run
from lightning_gradwatch.report.show import page_of, save_run, show_run
from lightning_gradwatch.report.sink import Sink, SinkRow
from lightning_gradwatch.report.start import left_out_lines
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.stepper import Stepper
from lightning_gradwatch.steps import LossScaler, OptimizerStep, PendingStep, Steps
from lightning_gradwatch.surroundings import Surroundings
from lightning_gradwatch.testimony import PoisonedStep
from lightning_gradwatch.viewer.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Raised when what a checkpoint remembers changes its form.
_STATE_VERSION = 2
_WITHOUT_PROBE = (
    "parameter gradients (not finite, zero, spikes, your thresholds) and, under SGD, steps that overwrite weights; "
    "nothing is said about depth and time"
)


class Watch:
    """Watches the training of one model.

    Args:
        settings: What the person has set.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.disabled_reason: str | None = None
        self._stopwatch = Stopwatch()
        self._guard = Guard(self._stopwatch, self._failed)
        self._began = time.perf_counter()
        self._teller = Teller()
        self._record = Record(settings, self._teller)
        self._poisoned = PoisonedSteps(settings.on_nonfinite, settings.max_consecutive_skips)
        self._steps = Steps(settings.every_n_steps)
        self._losses = LossWindow()
        self._prober = Prober(settings.probe_every_n_steps)
        self._inquests = Inquests(self._teller, settings.on_nonfinite)
        # Epoch and index of the batch, None where nobody tells; also noted after GradWatch had to switch itself off.
        self.place: tuple[int, int] | None = None
        self._stepper: Stepper | None = None
        # The columns of the fit before; they keep no model alive.
        self._known: tuple[KnownLayer, ...] = ()
        self._saved: Mapping[str, Any] | None = None
        # None where no other process trains the same model, or all of them are switched off.
        self._agreement: Agreement | None = None
        self._picture = ""
        # Where the page goes, and what it says beside the numbers.
        self._directory: Path | None = None
        self._optimizer_labels: dict[int, str] = {}
        self._layer_kinds: dict[str, str] = {}
        self._log_step = 0
        # How often the logging interval has asked for values, by now and before this batch.
        self._due = 0
        self._due_before = 0
        self._told_off = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit under way: open steps and the model."""
        return self.__dict__ | {
            "_stepper": None,
            "_steps": self._steps.closed(),
            "_losses": LossWindow(),
            "_prober": self._prober.closed(),
            "_inquests": Inquests(self._teller, self.settings.on_nonfinite),
        }

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
        self._agreement = None if alone else Agreement()
        self._directory = None if surroundings is None else surroundings.directory
        self._inquests.begin(surroundings or Surroundings())

    def agree_on_start(self, anywhere: Callable[[bool], bool]) -> None:
        """Learn whether all processes can decide together which steps are dropped; all have to call it.

        Args:
            anywhere: Tells whether something is true in any of the processes.
        """
        if self.settings.on_nonfinite != "warn" and anywhere(self._stepper is None) and self._stepper is not None:
            self._stepper.decide_alone()

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
            self._record.clipped = clipped
            warn = self._teller.warn
            self._stepper = Stepper(
                self.settings,
                Reader(model, self._known),
                self._poisoned,
                warn,
                clips_elsewhere=clips_elsewhere,
                anywhere=anywhere,
                in_step=in_step,
            )
            self._picture, self._began, self._stopwatch.seconds = picture, time.perf_counter(), 0.0
            self._begin(self._stepper.reader, make_sinks if tells else tuple, several=num_optimizers > 1)
            if self.disabled_reason is None:
                self._note_left_out(self._stepper.reader, optimizers)
        if note:
            self._teller.say(f"GradWatch  {note}")

    @harmless
    def _begin(self, reader: Reader, make_sinks: Callable[[], Sequence[Sink]], *, several: bool) -> None:
        self._steps.restart()
        self._losses.take()
        self._prober.start(reader)
        names = [layer.name for layer in reader.layers]
        if self._record.begin(names, make_sinks(), several=several):
            self._steps = Steps(self.settings.every_n_steps)
            self._reset_clipper()
        if self._saved is not None:
            self._restore_or_start_afresh(self._saved, names)
            self._saved = None
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
        self._log_step = log_step
        self._due_before, self._due = self._due, self._due + due
        if self._stepper is not None:
            known = self._prober.schedule.known
            probes = not known or any(self._prober.schedule.wants(n) and self._steps.next_wanted(n) for n in known)
            self._prober.begin_batch(self._stepper.reader.layers, due=probes)

    @harmless
    def entered(self, module: nn.Module, args: Any) -> Any:
        """Take note of a call with which the batch has begun; returns other arguments for it, or None."""
        return self._prober.entered(module, args)

    def before_backward(self, loss: Tensor) -> None:
        """Take the loss before its gradients are computed: its value, and once its graph."""
        if self._stepper is not None and (self.disabled_reason is None or self.settings.acts):
            # Also where GradWatch had to switch itself off: a step that is dropped then is asked for its loss.
            with self.guarded():
                if loss.numel() == 1:
                    self._losses.add(loss, None if self.place is None else self.place[1])
        self._before_backward(loss)

    @harmless
    def _before_backward(self, loss: Tensor) -> None:
        if self._stepper is None:
            return
        if loss.numel() == 1:
            self._stepper.reader.read_graph(loss)
        self._prober.before_backward(opaque=self._stepper.reader.topology.opaque)

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
        self._steps.announce(number)
        if self._stepper is None:
            return
        new = self._steps.is_new(number, step)
        if new:
            self._settle_open(number)
            self._steps.begin(number, step)
        about = OptimizerStep(number, optimizer, step, scaler, unscales)
        # Of a step that nobody wants to see there is still to know whether a loss scaler drops it.
        seen = self._steps.wanted(number) or self.settings.acts or (about.scaled and unscales)
        reading = self._read(self._stepper, about, loss) if seen else None
        if reading is not None or (about.scaled and not seen):
            with self.guarded():
                self._open(self._stepper, about, reading)
        elif new:
            self._prober.schedule.stepped(number, probed=False)
        if self.settings.on_nonfinite != "warn":
            # By itself: other processes may wait here, whatever failed in this one.
            with self.guarded():
                self._drop(self._stepper, about, reading)

    def _read(self, stepper: Stepper, about: OptimizerStep, loss: Tensor | None) -> Reading | None:
        on = self.disabled_reason is None
        if on:
            with self.guarded(), self._prober.at_rest():
                return stepper.read(about, loss)
        return stepper.read_unwatched(about, loss, together=self._agreement is not None, failed_now=on)

    def _open(self, stepper: Stepper, about: OptimizerStep, reading: Reading | None) -> None:
        self._record.expects(about.number, self._due_before)
        described = describe_optimizer(about.optimizer)
        self._optimizer_labels[about.number] = described.kind
        again = self._steps.pending.get(about.number)
        self._steps.pending[about.number] = PendingStep(
            about.step,
            reading,
            described,
            scaled=about.scaled,
            unscales=about.unscales,
            wanted=self._steps.wanted(about.number),
            log_step=self._log_step,
            due=self._due,
            # Of several evaluations of a closure (LBFGS) the first one is probed.
            probe=again.probe if again is not None else self._probe(stepper.reader, about),
            losses=self._losses.taken,
        )

    def _probe(self, reader: Reader, about: OptimizerStep) -> ProbeReading | None:
        if self.disabled_reason is not None:
            return None
        reading = self._prober.take(about, reader, wanted=self._steps.wanted(about.number))
        if reading is not None:
            # Only a probe learns of calls; in other steps there is nothing to compare.
            reader.note_calls(self._prober.places, self._prober.shapes)
        return reading

    def _drop(self, stepper: Stepper, about: OptimizerStep, reading: Reading | None) -> None:
        number = about.number
        excused = about.scaled and self._steps.excuses(number)
        poison = stepper.drop_(about, reading, excused=excused)
        if poison is None:
            self._inquests.finite(number)
            return
        with self.guarded():
            self._look_into(stepper, about, reading, poison)
        if poison.reason:
            # Whatever failed before it: the other processes end here as well.
            faults, origin = self._faults(about, poison), self._inquests.origin(number)
            first = f"; nearest the loss: {faults[-1].layers[0]}" if faults[-1].layers else ""
            began = f". Where it began: {origin}" if origin else ""
            raise GradientFault(poison.reason + first + began, faults)

    def _look_into(self, stepper: Stepper, about: OptimizerStep, reading: Reading | None, poison: Poison) -> None:
        """Open an inquest where a row of poisoned steps begins, and close it where nobody else will."""
        number = about.number
        if self._inquests.begins(number):
            found = PoisonedStep(
                step=about.step,
                optimizer=number,
                optimizer_kind=describe_optimizer(about.optimizer).kind,
                snapshot=None if reading is None else stepper.numbers(reading),
                sick=poison.sick,
                losses=self._losses.taken,
                place=self.place,
                before_step=True,
            )
            self._inquests.open(found, stepper.reader.layers, at_once=poison.agreed)
        if poison.reason:
            self._settle_open(number)
        if self.disabled_reason is not None:
            # Nobody settles the step then.
            self._close_inquest(stepper, number)

    def _faults(self, about: OptimizerStep, poison: Poison) -> list[Diagnosis]:
        faults = [d for d in self.diagnoses if d.symptom is Symptom.NON_FINITE and d.recovered_at is None]
        message = "gradients are not finite"
        # Where the rule was muted, or GradWatch is switched off, the error still says what it is about.
        bare = Diagnosis("non_finite", Symptom.NON_FINITE, "warning", about.number, poison.sick, about.step, message)
        return faults or [bare]

    def _close_inquest(self, stepper: Stepper, number: int) -> None:
        if not self._inquests.is_open(number):
            return
        lasting = [d for d in self.diagnoses if d.symptom is Symptom.NON_FINITE and d.optimizer == number]
        diagnosis = next((d for d in reversed(lasting) if d.recovered_at is None), None)
        names = [layer.name for layer in stepper.reader.layers]
        label = f"optimizer_{number}" if self._record.several else ""
        self._inquests.close(number, names, self.history, diagnosis, label)

    @harmless
    def _settle_open(self, number: int) -> None:
        """Settle an optimizer's open step, and before it those of other optimizers that are older."""
        if number in self._steps.pending:
            for each in self._steps.in_order(self._steps.pending[number].step):
                self._settle(each)

    def after_step(self, number: int, *, certain: bool = True) -> None:
        """Note that an optimizer has really stepped, and what its gradients were after someone else's clipping.

        Args:
            number: Number of the optimizer.
            certain: False for one that tells nothing: a loss scaler may have dropped the step.
        """
        if number not in self._steps.pending and self._steps.surprises(number):
            self._teller.warn(
                f"optimizer {number} has stepped without a word to GradWatch (as with "
                "optimizers(use_pl_optimizer=False)): such steps are not measured, clipped or dropped"
            )
        pending = self._steps.pending.get(number)
        if pending is None:
            return
        pending.stepped = True
        pending.unscales |= not certain
        if pending.reading is not None and self._stepper is not None:
            with self.guarded():
                self._stepper.look_again(pending.reading)
                if pending.probe is not None:
                    pending.probe.measure_updates()
                self._prober.after_step()

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
        self._settle_batch(wait=wait)
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
        self._tell_probe()

    def _tell_probe(self) -> None:
        """Say, once, that there are no probes, and what is left without them."""
        if self._prober.off and not self._told_off:
            self._told_off = True
            self._teller.say(f"GradWatch  no signal probe ({self._prober.off}); what is still judged: {_WITHOUT_PROBE}")

    @harmless
    def _settle_batch(self, *, wait: bool) -> None:
        if self._steps.pending:
            self._losses.take()
        for number in self._steps.in_order():
            reading = self._steps.pending[number].reading
            if wait or reading is None or not reading.under_way:
                self._settle(number)
            else:
                # Where no step came after the reading, its gradients are still held.
                reading.release()
        self._record.sinks.flush()

    def agree(self, mean: Callable[[Sequence[float]], Sequence[float]], *, now: bool = False) -> None:
        """Exchange with the other processes what only each of them knows; to be called by all after every batch.

        Args:
            mean: Takes this process's numbers and returns their mean over all processes.
            now: Whether training ends with this batch, in all processes: what is open is exchanged now.
        """
        with self._stopwatch:
            # The end of it is the same in all processes: each of them knows whether any has asked.
            while self._agreement is not None and self._exchange(self._agreement, mean, now=now) and now:
                pass

    def _exchange(self, agreement: Agreement, mean: Callable[[Sequence[float]], Sequence[float]], *, now: bool) -> bool:
        """Exchange where it is time, and tell whether a process has asked where a step came from."""
        off, failure = self.disabled_reason is not None, self._stepper.clipper_failure if self._stepper else ""
        known = agreement.end_batch(
            mean,
            off=off,
            unclipped=bool(failure),
            tells=self._teller.speaks,
            poisoned=self._inquests.has_question,
            now=now,
        )
        if known is None:
            return False
        if known.off.anywhere:
            self._agreement = None
        # All of them know that one has a question, so all of them are here.
        witnesses = self._inquests.ask() if known.poisoned else ()
        # Nobody waits for what follows.
        with self.guarded():
            self._take_in(known, failure, off=off)
        with self.guarded():
            if known.poisoned:
                self._inquests.answer(witnesses)
            if self._agreement is None:
                self._inquests.end_exchanges()
        return known.poisoned

    def _take_in(self, known: Exchange, failure: str, *, off: bool) -> None:
        """Take in what all processes know, and say what only this one can say."""
        if known.unclipped.anywhere and self._stepper:
            self._stepper.stop_clipping()
            if failure and not known.unclipped.told:
                self._teller.warn_from_here(f"failed in one of several processes: clipper {failure}")
        if known.off.anywhere:
            if not off:
                self.disable("it failed in another process, which says why")
            elif not known.off.told:
                self._teller.warn_from_here(f"failed in one of several processes: {self.disabled_reason}")
        for optimizer, step, loss in known.losses:
            self.history.set_loss(optimizer, step, loss)

    def finish(self, error: BaseException | None = None) -> tuple[Diagnosis, ...]:
        """Settle what is pending, close the sinks and say how it went; also after an error, ours or another's.

        Args:
            error: What has ended training, None where it came to its end.

        Returns:
            The faults that were told and that no ``end_batch`` has returned.
        """
        onsets, sinks = self._end_batch(wait=True), self._record.sinks
        with self._stopwatch:
            sinks.end(*self._ending(error))
            sinks.close()
        failed = sum(any(isinstance(sink, kind) for sink in sinks.failed) for kind in (PictureSink, HeatmapSink))
        drawn = self._picture, f"{self._picture} (not all of it, see above)", "could not be written, see above"
        self._record.sinks = SinkRow((), self._teller.logger)
        share = self.seconds / max(time.perf_counter() - self._began, 1e-9)
        self._teller.say(
            closing_text(
                self._record.num_readings,
                self.overflowed_steps,
                self.diagnoses,
                drawn[failed],
                f"{self.seconds:.1f} s, {share:.1%} of the run",
                self.disabled_reason,
                self.skipped_steps,
            )
        )
        if self._stepper is not None:
            self._layer_kinds = self._kinds()
            self._known = tuple(map(KnownLayer.of, self._stepper.reader.layers))
        self._stepper = None
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
        still = "; `clipper` and `on_nonfinite` go on" if self.settings.acts and self._stepper is not None else ""
        self._teller.warn(f"failed and is switched off, training goes on unwatched{still}: {reason}")
        self._teller.logger.debug("GradWatch  where it failed", exc_info=error)
        self._record.sinks.deactivate(self._log_step)

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
        told = Told(
            self._optimizer_labels,
            self._kinds(),
            self.settings.vanishing_threshold,
            self.settings.exploding_threshold,
            self.disabled_reason,
        )
        name = "this run" if self._directory is None else self._directory.name
        return recorded_run(name, self.history, self.probes, self.diagnoses, told)

    def _kinds(self) -> dict[str, str]:
        if self._stepper is None:
            return self._layer_kinds
        return {about.name: about.kind for about in self._stepper.reader.descriptions}

    def page(self) -> str:
        """Return what is remembered as the HTML of a page, of bounded size."""
        return page_of(self.recorded())

    def show(self) -> Path | None:
        """Display the page in a notebook, else write it and say where; see ``GradWatch``."""
        path = show_run(self.recorded(), self._directory)
        if path is not None:
            self._teller.say(f"GradWatch  page       {path}")
        return path

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

    def _settle(self, number: int) -> None:
        """Note whether a pending step was dropped, and have it recorded."""
        pending = self._steps.pending.pop(number)
        assert self._stepper is not None, "a step is pending only while watching"
        if pending.reading is None:
            self._steps.overflows(number, pending, finite=True)
            return
        overflow = self._steps.overflows(number, pending, finite=pending.reading.snapshot().finite)
        if overflow and pending.probe is not None:
            self._prober.schedule.again(number)
        self._record.settle(
            pending,
            self._stepper.reader,
            overflow=overflow,
            agreement=self._agreement,
            skipped_steps=self.skipped_steps,
        )
        if not overflow:
            self._inquire(self._stepper, pending, pending.reading)

    def _inquire(self, stepper: Stepper, pending: PendingStep, reading: Reading) -> None:
        """Look into a step that is not finite; where steps may be dropped that has begun before this one was."""
        snapshot = reading.snapshot()
        number = snapshot.optimizer
        if self.settings.on_nonfinite == "warn":
            if snapshot.finite:
                self._inquests.finite(number)
            elif self._inquests.begins(number):
                found = PoisonedStep(
                    step=pending.step,
                    optimizer=number,
                    optimizer_kind=pending.optimizer.kind,
                    snapshot=snapshot,
                    sick=stepper.sick(snapshot),
                    losses=pending.losses,
                    place=self.place,
                )
                self._inquests.open(found, stepper.reader.layers, at_once=False)
        self._close_inquest(stepper, number)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain values and tensors, as a weights-only checkpoint admits them.

        Also after GradWatch had to switch itself off: a clipper may go on, and what it remembers with it.
        """
        self._settle_batch(wait=True)
        if self._saved is not None:
            # Loaded, and not yet taken back.
            return dict(self._saved)
        clipper = getattr(self.settings.clipper, "state_dict", None)
        return {
            "version": _STATE_VERSION,
            "record": self._record.state_dict(),
            "steps": self._steps.state_dict(),
            "poisoned": self._poisoned.state_dict(),
            "prober": self._prober.schedule.state_dict(),
            "clipper": clipper() if clipper else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what ``state_dict`` returned until the layers are known."""
        self._saved = state

    def _restore_or_start_afresh(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        self._restore_clipper(state)
        try:
            self._restore(state, names)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            self._teller.warn(f"starts afresh, what this checkpoint remembers is of another kind: {error!r}")

    def _reset_clipper(self) -> None:
        """Have the clipper forget an earlier run, perhaps one that it shares with another GradWatch."""
        try:
            getattr(self.settings.clipper, "reset", tuple)()
        except Exception as error:
            self._teller.warn(f"clipper does not start afresh: {type(error).__name__}: {error}")

    def _restore_clipper(self, state: Mapping[str, Any]) -> None:
        """Give the clipper back what it remembers, whatever else of the checkpoint is of another kind."""
        load = getattr(self.settings.clipper, "load_state_dict", None)
        try:
            if load and state["clipper"] is not None:
                load(state["clipper"])
        except KeyError as error:
            kind = type(self.settings.clipper).__name__
            self._teller.warn(f"clipper starts afresh: the checkpoint is of another one than {kind}, it has no {error}")
        except Exception as error:
            self._teller.warn(f"clipper starts afresh: {type(error).__name__}: {error}")

    def _restore(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        if state["version"] != _STATE_VERSION:
            raise ValueError(f"version {state['version']}, expected {_STATE_VERSION}")
        self._record.load_state_dict(state["record"], names)
        self._steps.load_state_dict(**state["steps"])
        self._poisoned.load_state_dict(**state["poisoned"])
        self._prober.schedule.load_state_dict(state["prober"])
