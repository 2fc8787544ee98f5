"""Lightning's hooks, translated into calls of the core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from lightning_gradwatch.attaching import Loop, attached
from lightning_gradwatch.checkpoints import Checkpoints
from lightning_gradwatch.clashes import refuse_clashes, refuse_late_clashes
from lightning_gradwatch.detect.diagnosis import Diagnosis, Rule
from lightning_gradwatch.harmless import harmless
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import SignalSnapshot
from lightning_gradwatch.optimizers import Optimizers
from lightning_gradwatch.remedy.clipping import Clipper
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.loggers import is_a, picture_place, sinks_for
from lightning_gradwatch.report.sink import Sink
from lightning_gradwatch.settings import OnNonFinite, Settings
from lightning_gradwatch.steps import LossScaler
from lightning_gradwatch.trainer_facts import (
    FORKED,
    checkpoint_paths,
    clips,
    in_step,
    log_directory,
    logging_of,
    mean_over_processes,
    scaler_of,
    surroundings_of,
    unscales_itself,
    when_it_stops,
    why_unsupported,
)
from lightning_gradwatch.trainer_metrics import publish_engine_norm, publish_norms
from lightning_gradwatch.understudy import stage_of
from lightning_gradwatch.watching import Watch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    from lightning_gradwatch.callback_class import Callback

_CHECKPOINT_KEY = "lightning_gradwatch"


class GradWatch(Callback):
    """Watch gradients: tell whether they vanish or explode, in which layers, why, and what to do about it.

    Training is not changed by watching: weights, optimizer state and random numbers are the same to the last bit
    without a ``clipper`` and with ``on_nonfinite="warn"``. An error inside GradWatch never ends training: it is told,
    ``disabled_reason`` says it, and ``gradwatch/active`` becomes 0.

    Logged at the Trainer's interval, with ``/optimizer_0`` and so on behind where there are several optimizers:

    | key | what |
    |---|---|
    | ``gradwatch/global_norm`` | norm of all gradients, before clipping; in ``trainer.callback_metrics`` as well |
    | ``gradwatch/clipped_global_norm`` | the same after clipping |
    | ``gradwatch/log10_norm_p05``, ``_median``, ``_p95`` | percentiles of log10 of the layers' norms |
    | ``gradwatch/open_warnings`` | how many faults last |
    | ``gradwatch/skipped_steps`` | how many steps were dropped so far |
    | ``gradwatch/active`` | 1; 0 after GradWatch had to switch itself off |
    | ``gradwatch/clip_coefficient`` | with a ``clipper``: what the most clipped layer has left of its norm |
    | ``gradwatch/clipping_rate`` | with a ``clipper``: share of the steps since the last row that were clipped |

    Args:
        vanishing_threshold: A layer's gradient norm below it, in ``patience`` readings in a row, is vanishing. On top
            of the rules, in the gradient's own unit; held against norms before clipping.
        exploding_threshold: The same for a norm above it.
        patience: Readings in a row before a layer counts as sick; non-finite gradients and steps that overwrite
            weights do not wait.
        warmup_steps: First readings of a layer that are not judged; non-finite gradients are.
        rules: Rules of your own in place of ``default_rules()``.
        ignore: Muted rules: an id (``"vanishing.depth"``), a family (``"vanishing"``), or either with a pattern of
            layers (``"vanishing.depth:encoder.*"``).
        sinks: Further places where reports go: objects with ``write(report)`` and ``close()``.
        clipper: Clips every step, such as ``ClipByGlobalNorm(max_norm=1.0)``.
        on_nonfinite: What a NaN or infinite gradient does: ``"warn"`` only tells, ``"skip"`` drops that step,
            ``"raise"`` ends training with ``GradientFault``. Steps that a loss scaler drops are none of these.
        max_consecutive_skips: So many steps may be dropped in a row; one more raises ``GradientFault``.
        stop_on: Symptoms that end training after the step, such as ``["non_finite", "exploding"]``.
        rehearse: Whether the ways out of a warning are tried, when it begins, on copies of the module with the batch of
            the moment, and ranked by what they did. Training is not changed by it; it waits for some forward and
            backward passes, and for the device in every step. In one process only.
        every_n_steps: Judge and remember every n-th step of each optimizer; clipping and ``on_nonfinite`` act on all.
        probe_every_n_steps: After the first steps, probe the signals of every n-th step; None for no probe at all, and
            then nothing is said about depth and time.
        per_layer_scalars: Whether each layer's norm is logged as ``gradwatch/norm/LAYER``.
        heatmap: Whether the layer x step picture is drawn.

    Raises:
        TypeError: If a clipper, rule or sink lacks the method that it is called by.
        ValueError: If a value is out of range, or clashes with the Trainer's settings (then before training starts).

    Example:
        >>> GradWatch(exploding_threshold=1e3, patience=2).settings.patience
        2
    """

    def __init__(
        self,
        *,
        vanishing_threshold: float | None = None,
        exploding_threshold: float | None = None,
        patience: int = 3,
        warmup_steps: int = 0,
        rules: Sequence[Rule] | None = None,
        ignore: Sequence[str] = (),
        sinks: Sequence[Sink] = (),
        clipper: Clipper | None = None,
        on_nonfinite: OnNonFinite = "warn",
        max_consecutive_skips: int = 10,
        stop_on: Sequence[str] = (),
        rehearse: bool = False,
        every_n_steps: int = 1,
        probe_every_n_steps: int | None = 50,
        per_layer_scalars: bool = False,
        heatmap: bool = True,
    ) -> None:
        super().__init__()
        self.settings = Settings(
            vanishing_threshold=vanishing_threshold,
            exploding_threshold=exploding_threshold,
            patience=patience,
            warmup_steps=warmup_steps,
            rules=rules,
            ignore=ignore,
            sinks=sinks,
            clipper=clipper,
            on_nonfinite=on_nonfinite,
            max_consecutive_skips=max_consecutive_skips,
            stop_on=stop_on,
            rehearse=rehearse,
            every_n_steps=every_n_steps,
            probe_every_n_steps=probe_every_n_steps,
            per_layer_scalars=per_layer_scalars,
            heatmap=heatmap,
        )
        self.core = Watch(self.settings)
        self._optimizers = Optimizers()
        self._fitting = False
        self._checkpoints = Checkpoints()
        # What drives the core outside of the Trainer, while it does.
        self._loop: Loop | None = None
        self._stopping = False

    @property
    def history(self) -> GradientHistory:
        """Everything that was measured: a row a reading, a column a layer."""
        return self.core.history

    @property
    def probes(self) -> list[SignalSnapshot]:
        """What the signal probe has seen, oldest first; of a long run older ones are thinned."""
        return list(self.core.probes)

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """All faults so far, oldest first, one for each onset."""
        return list(self.core.diagnoses)

    @property
    def remedies(self) -> list[Remedy]:
        """Ways out of all faults, best first: those of the fault that is to be cured first."""
        return self.core.remedies

    @property
    def disabled_reason(self) -> str | None:
        """Why GradWatch switched itself off, None while it works."""
        return self.core.disabled_reason

    @property
    def skipped_steps(self) -> int:
        """How many steps ``on_nonfinite="skip"`` has dropped."""
        return self.core.skipped_steps

    @property
    def overflowed_steps(self) -> int:
        """How many steps a loss scaler has dropped, as it does at the start of a 16-mixed run; no fault."""
        return self.core.overflowed_steps

    def assert_healthy(self, symptoms: Sequence[str] | None = None, after_step: int = 0) -> None:
        """Fail where a warning was given, or nothing was measured; for a test suite.

        Args:
            symptoms: Only these, such as ``["vanishing"]``; all by default.
            after_step: Only faults that lasted or began at or after this step.

        Raises:
            AssertionError: With what was found.
        """
        self.core.assert_healthy(symptoms, after_step)

    def show(self) -> Path | None:
        """Show what was measured and found as the interactive page of the Gradients tab, also while training runs.

        A notebook displays it. Elsewhere it becomes ``gradwatch/report.html`` in the log directory, or a file in the
        system's temporary directory where there is none, and the log says where. It shows what this object remembers:
        of a long run older readings are thinned (``watch.history``); ``gradwatch report`` reads the event files.

        Returns:
            The file; None in a notebook.

        Example:
            >>> GradWatch().show().name
            'report.html'
        """
        return self.core.show()

    def save(self, path: str | Path) -> Path:
        """Write the same as a file of its own.

        Args:
            path: Ends in ``.html`` (the page, to be opened from disk or mailed), ``.md`` (the diagnoses, for an issue
                or a chat) or ``.json`` (for a program). Folders are made.

        Returns:
            The path.

        Raises:
            FileExistsError: If there is a file that GradWatch has not written.
            ValueError: If the path ends otherwise.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     GradWatch().save(f"{folder}/report.md").name
            'report.md'
        """
        return self.core.save(path)

    def plot(self, quantity: str = "norms", *, optimizer: int = 0, ax: Axes | None = None) -> Figure:
        """Draw layers (input on top) by training steps as a matplotlib figure; needs ``lightning-gradwatch[plot]``.

        Args:
            quantity: ``"norms"`` (gradient norms), ``"ratios"`` (norms by those of the weights), and what the signal
                probe saw: ``"signal"``, ``"delta"``, ``"updates"``, ``"time"``.
            optimizer: Number of the optimizer.
            ax: Where to draw; by default the axes of a new figure, of which pyplot knows nothing. The title is the left
                one: ``ax.set_title("He", loc="left")`` puts a name of your own in its place.

        Returns:
            The figure: a notebook shows it, ``figure.savefig("gradients.png")`` writes it.

        Raises:
            ImportError: If matplotlib is missing.
            ValueError: If that was not measured.

        Example:
            >>> GradWatch().plot()
            Traceback (most recent call last):
                ...
            ValueError: nothing was measured yet, so there is nothing to plot
        """
        return self.core.plot(quantity, optimizer=optimizer, ax=ax)

    @contextmanager
    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        log_dir: str | Path | None = None,
        scaler: LossScaler | None = None,
    ) -> Iterator[Self]:
        """Watch a loop without a Trainer: plain PyTorch, Fabric, Accelerate, or another library's trainer.

        While the block lasts, hooks of the model and its optimizers see each step; the loss is heard of when
        ``loss.backward()`` is called. Leaving the block, also by an error, removes every hook and writes what is
        pending. What is measured is what the optimizer is about to use: after clipping of your own, if there is any.
        ``stop_on`` sets ``should_stop``, for the loop to look at.

        Args:
            model: The model, wrapped for several processes or not.
            optimizer: Its optimizer, or a list of all of them.
            log_dir: Where picture and diagnoses go; without it they are in the log and in this object alone.
            scaler: The ``GradScaler`` that scales the loss, so that losses are known unscaled; gradients are anyway.

        Raises:
            TypeError: If the model is no module, or an optimizer none.
            ValueError: If they do not belong together, are watched already, or the model has no weights in memory.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> with GradWatch().attach(model, optimizer) as watch:
            ...     for _ in range(3):
            ...         model(torch.ones(4, 2)).mean().backward()
            ...         optimizer.step()
            ...         optimizer.zero_grad()
            >>> watch.history.steps.tolist()
            [0, 1, 2]
        """
        if self._loop is not None:
            raise ValueError(
                "This GradWatch is attached already, and would forget what it has seen there. For a second model make "
                "a GradWatch of its own; several optimizers of one model go in as a list."
            )
        before, self.core = self.core, Watch(self.settings)
        # There is no Trainer, and the model need be no LightningModule.
        tell: Any = partial(self.on_diagnosis, None, model)  # type: ignore[arg-type]
        try:
            with attached(self.core, model, optimizer, log_dir=log_dir, scaler=scaler, tell=tell) as self._loop:
                yield self
        finally:
            if self._loop is None:
                # Refused before it began: what an earlier run has shown stays.
                self.core = before
            self._loop = None

    @property
    def should_stop(self) -> bool:
        """Whether a fault that ``stop_on`` names was told in a loop that is attached; the Trainer stops by itself.

        Where several processes train the model all of them have to ask, each after the same step.
        """
        if self._loop is not None:
            self._loop.settle()
            self._stopping = self._loop.stopping
        return self._stopping

    def on_diagnosis(self, trainer: Trainer, pl_module: LightningModule, diagnosis: Diagnosis) -> None:
        """Called on rank zero for each fault that begins; to be overridden. Errors in it do not end training.

        In a loop that is attached ``trainer`` is None, and ``pl_module`` the model.
        """

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit under way; Lightning pickles callbacks that are hyperparameters."""
        fit = {"_optimizers": Optimizers(), "_fitting": False, "_loop": None}
        # Lightning gives every callback the module's own methods of these names.
        return {name: value for name, value in (self.__dict__ | fit).items() if name not in ("log", "log_dict")}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings that clash with the Trainer's."""
        if stage == "fit":
            refuse_clashes(self.settings, trainer, GradWatch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch: all modules, optimizers and strategies are in place now."""
        refuse_late_clashes(self.settings, trainer)
        if trainer.global_step == 0:
            # A new run; one that goes on, or is resumed from a checkpoint, keeps what is known.
            self.core = Watch(self.settings)
            self._checkpoints = Checkpoints()
        unsupported = why_unsupported(trainer)
        if unsupported:
            self.core.refuse(unsupported, tells=trainer.is_global_zero)
            return
        self._fitting = True
        directory = log_directory(trainer)
        # Also where an earlier fit has switched GradWatch off: other processes may not know of it.
        surroundings = surroundings_of(trainer, directory, self._checkpoints)
        self.core.join(alone=trainer.world_size == 1, surroundings=surroundings)
        with self.core.guarded():
            self._begin(trainer, pl_module, directory)
        if trainer.world_size > 1:
            self.core.agree_on_start(partial(trainer.strategy.reduce_boolean_decision, all=False))

    def _begin(self, trainer: Trainer, pl_module: LightningModule, directory: Path | None) -> None:
        self._optimizers.begin(trainer.optimizers, self.core.after_step)
        self.core.start(
            pl_module,
            num_optimizers=len(trainer.optimizers),
            make_sinks=lambda: self._sinks(trainer, directory),
            picture=picture_place(trainer.loggers, directory, heatmap=self.settings.heatmap),
            tells=trainer.is_global_zero,
            clips_elsewhere=clips(trainer, pl_module),
            clipped=bool(trainer.gradient_clip_val),
            anywhere=None if trainer.world_size == 1 else partial(trainer.strategy.reduce_boolean_decision, all=False),
            in_step=in_step(pl_module),
            note=FORKED if is_a(trainer.strategy.launcher, "_MultiProcessingLauncher") else "",
            optimizers=trainer.optimizers,
        )
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            self._checkpoints.resumed(str(trainer.ckpt_path), trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the core which batch it is, and where the loggers stand."""
        self.core.place = trainer.current_epoch, batch_idx
        self._begin_batch(trainer)

    @harmless
    def _begin_batch(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            # Whatever was saved since the last batch is written by now.
            self._checkpoints.look(checkpoint_paths(trainer))
        step, due = logging_of(trainer)
        self.core.begin_batch(step, due)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Hand over the loss before backward."""
        self.core.before_backward(loss)

    @harmless
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the core that the backward pass is over."""
        self.core.after_backward()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Tell the core that gradients without a step are gone."""
        self.core.before_zero_grad()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Hand over the gradients: unscaled, accumulated, averaged over processes, not yet clipped."""
        if self._fitting:
            self.core.before_step(
                self._optimizers.number(trainer.optimizers, optimizer),
                optimizer,
                trainer.global_step,
                scaler=scaler_of(trainer),
                unscales=unscales_itself(optimizer),
                divided_by=trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1,
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the core judge, and stop where that is asked."""
        if not self._fitting:
            publish_engine_norm(trainer)
            return
        for number in self._optimizers.silent(trainer.optimizers):
            self.core.after_step(number, certain=scaler_of(trainer) is None)
        # Whoever looks at the metric at the end of an epoch shall find it.
        make = partial(stage_of, trainer, pl_module, batch, batch_idx, self.settings.clipper)
        onsets = self.core.end_batch(wait=trainer.is_last_batch, make_stage=make if self.settings.rehearse else None)
        self._publish(trainer)
        self._deliver(trainer, pl_module, onsets)
        # Outside of everything that may be switched off: all processes have to come here.
        if trainer.world_size > 1:
            self.core.agree(lambda values: mean_over_processes(trainer, values))
        if self.settings.stop_on:
            stop = trainer.strategy.reduce_boolean_decision(self.core.stops(onsets), all=False)
            if stop and not trainer.should_stop:
                self.core.tell_stop(onsets, when_it_stops(trainer))
            trainer.should_stop |= stop
            if stop and trainer.world_size > 1:
                # All processes know that they stop.
                self.core.agree(lambda values: mean_over_processes(trainer, values), now=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the core that the epoch is over; a batch at which the module skips the rest of it has no end."""
        self.core.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange what is open with the other processes, all of which end here; whatever has ended training."""
        if self._fitting and trainer.world_size > 1:
            self._deliver(trainer, pl_module, self.core.end_batch(wait=True))
            self.core.agree(lambda values: mean_over_processes(trainer, values), now=True)

    @harmless
    def _publish(self, trainer: Trainer) -> None:
        publish_norms(trainer, self.core.global_norms)

    def _deliver(self, trainer: Trainer, pl_module: LightningModule, onsets: Sequence[Diagnosis]) -> None:
        if trainer.is_global_zero:
            self.core.each_diagnosis(onsets, lambda diagnosis: self.on_diagnosis(trainer, pl_module, diagnosis))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how it went."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how it went so far: Lightning calls nothing after this."""
        self._finish(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._finish(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put what is remembered into the checkpoint.

        Not ``state_dict``: Lightning keeps that under a key that two instances, or the two Lightning packages, do not
        share.
        """
        with self.core.guarded():
            checkpoint[_CHECKPOINT_KEY] = self.core.state_dict()
        if self._fitting:
            # After what that has settled: this one may be poisoned already, and is none of those before it.
            self._checkpoints.saved(trainer.global_step)

    @harmless
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back what was remembered, where training is to go on; ``test`` and ``validate`` load weights only."""
        if trainer.state.fn == "fit" and _CHECKPOINT_KEY in checkpoint:
            self.core.load_state_dict(checkpoint[_CHECKPOINT_KEY])

    def _sinks(self, trainer: Trainer, directory: Path | None) -> list[Sink]:
        settings = self.settings
        ours = sinks_for(
            trainer.loggers,
            directory,
            heatmap=settings.heatmap,
            per_layer_scalars=settings.per_layer_scalars,
            vanishing_threshold=settings.vanishing_threshold,
            exploding_threshold=settings.exploding_threshold,
            page=self.core.page,
        )
        return [*ours, *settings.sinks]

    def _finish(self, trainer: Trainer, pl_module: LightningModule, error: BaseException | None = None) -> None:
        if not self._fitting:
            return
        self._fitting = False
        self._optimizers.end()
        self._deliver(trainer, pl_module, self.core.finish(error))
