"""The same watching around a loop that is not Lightning's: hooks of the model and its optimizers drive the core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from lightning_gradwatch.attachable import MARK, check_attachable, inner_optimizer, unwrapped
from lightning_gradwatch.backward import Backward
from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.harmless import harmless
from lightning_gradwatch.measure.compiled import is_compiled
from lightning_gradwatch.processes import Processes
from lightning_gradwatch.report.event_files import TensorBoardLogger
from lightning_gradwatch.report.loggers import picture_place, sinks_for
from lightning_gradwatch.steps import LossScaler
from lightning_gradwatch.watching import Watch

# As often as Lightning's Trainer logs by default (log_every_n_steps).
_LOG_EVERY_N_STEPS = 50
# Spread over the model: a pass may reach one head of several, or some experts of many (ours).
_NUM_WITNESSES = 8
_NO_PLACE = "none (attach(..., log_dir=...) keeps one)"


@contextmanager
def attached(
    core: Watch,
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    *,
    log_dir: str | Path | None = None,
    scaler: LossScaler | None = None,
    tell: Callable[[Diagnosis], None] = lambda _: None,
) -> Iterator[Loop]:
    """Watch a model while the block lasts; afterwards every hook is gone and all that was pending is written.

    Args:
        core: What watches.
        model: The model; wrapped (DistributedDataParallel, Fabric) or not.
        optimizers: What trains it, one or several; wrapped (Fabric, Accelerate) or not.
        log_dir: Where the picture and the diagnoses go; None for the log alone.
        scaler: The ``GradScaler`` that scales the loss, so that losses are shown unscaled; gradients are in any case.
        tell: Called with each fault that begins.

    Raises:
        TypeError: If the model is no module or an optimizer none.
        ValueError: If the two do not belong together, or the model has no memory yet.
    """
    plain = unwrapped(model)
    each = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    bare = list(map(inner_optimizer, each))
    check_attachable(plain, bare, core.settings)
    loop = Loop(core, plain, bare, scaler, Processes.of(model), tell)
    try:
        loop.begin(None if log_dir is None else Path(log_dir))
    except BaseException:
        loop.unhook()
        raise
    try:
        yield loop
    except BaseException as error:
        loop.end(error, together=False)
        raise
    loop.end()


class Loop:
    """A loop of somebody else's: tells from calls of the model and its optimizers where it stands.

    A batch begins with a forward pass that follows a backward pass or a step. Steps are counted over all optimizers,
    as the Trainer's ``global_step`` does.

    Args:
        core: What watches.
        model: The model itself, not what wraps it.
        optimizers: Its optimizers, likewise.
        scaler: What scales the loss.
        processes: The processes that train the model together.
        tell: Called with each fault that begins.
    """

    def __init__(
        self,
        core: Watch,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        scaler: LossScaler | None,
        processes: Processes,
        tell: Callable[[Diagnosis], None],
    ) -> None:
        self.core = core
        self.stopping = False
        self._model = model
        self._optimizers = list(optimizers)
        # One that is switched off scales nothing.
        self._scaler = scaler if getattr(scaler, "is_enabled", lambda: True)() else None
        self._processes = processes
        self._tell = tell
        self._hooks: list[Any] = []
        # The hook that waits for the call with which a batch begins, while there is one.
        self._waiting: list[Any] = []
        self._modules = frozenset(map(id, model.modules()))
        self._loggers: list[TensorBoardLogger] = []
        # Whether torch.compile has a part in it. Then a batch begins with its backward pass: a hook of the forward pass
        # would be compiled together with all that it calls, again and again.
        self._compiled = is_compiled(model)
        # Steps of all optimizers, and batches with a step in them.
        self._step = 0
        self._stepped_batches = 0
        self._open = False
        # Whether the batch has had its backward pass, and a step.
        self._backward = False
        self._stepped = False
        # Whether gradients wait for a step; a loss scaler, or the person, may yet drop them.
        self._waits_for_step = False
        # While an optimizer evaluates its closure, again and again.
        self._in_step = False
        # Whether a gradient has come to one of the witnesses in this backward pass, and in any.
        self._touched = self._ever_touched = False

    def begin(self, directory: Path | None) -> None:
        """Put the hooks in place."""
        settings, processes = self.core.settings, self._processes
        loggers = self._loggers = [] if directory is None else [TensorBoardLogger(directory)]
        self.core.join(alone=processes.alone, surroundings=processes.surroundings(directory))
        self.core.start(
            self._model,
            num_optimizers=len(self._optimizers),
            make_sinks=lambda: [
                *sinks_for(
                    loggers,
                    directory,
                    heatmap=settings.heatmap,
                    per_layer_scalars=settings.per_layer_scalars,
                    vanishing_threshold=settings.vanishing_threshold,
                    exploding_threshold=settings.exploding_threshold,
                ),
                *settings.sinks,
            ],
            picture=picture_place(loggers, directory, heatmap=settings.heatmap) if directory else _NO_PLACE,
            tells=processes.rank == 0,
            anywhere=None if processes.alone else processes.anywhere,
            in_step=not processes.alone,
            optimizers=self._optimizers,
        )
        if not processes.alone:
            self.core.agree_on_start(processes.anywhere)
        self._wait_for_call()
        self._call_witnesses()
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
            optimizer.__dict__[MARK] = True
        Backward.listen(self)

    def end(self, error: BaseException | None = None, *, together: bool = True) -> None:
        """Remove the hooks and write what is pending.

        Args:
            error: What has ended the loop, None where it came to its end.
            together: Whether all processes come here; after an error others may not.
        """
        self.unhook()
        if together and not self._processes.alone:
            self._hear(self.core.end_batch(wait=True))
            self.core.agree(self._processes.mean, now=True)
        self._hear(self.core.finish(error))
        for logger in self._loggers:
            with self.core.guarded():
                logger.close()

    def unhook(self) -> None:
        """Leave the model, its optimizers and torch as they were."""
        Backward.leave(self)
        for hook in (*self._hooks, *self._waiting):
            hook.remove()
        self._hooks.clear()
        self._waiting.clear()
        for optimizer in self._optimizers:
            optimizer.__dict__.pop(MARK, None)

    def settle(self) -> None:
        """Judge now what would be judged when the next batch begins."""
        if self._open and self._stepped:
            self._end_batch(wait=True)

    def _call_witnesses(self) -> None:
        """Have some parameters tell when a gradient comes: of other models' losses none does."""
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in trained[:: -(-len(trained) // _NUM_WITNESSES) or 1]:
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._touch))  # type: ignore[no-untyped-call]

    def _touch(self, parameter: Tensor) -> None:
        self._touched = self._ever_touched = True

    def _wait_for_call(self) -> None:
        """Hear of the next call of any part of the model: a person may call parts of it, and never the whole.

        By torch's hook for all modules, which is gone as soon as the batch has begun: it would slow every call.
        """
        if not self._waiting and not self._compiled:
            self._waiting.append(register_module_forward_pre_hook(self._before_forward))

    # Not `harmless` as a whole: where processes exchange something, all of them have to come.
    def _before_forward(self, module: nn.Module, args: Any) -> Any:
        # Who compiles the model under another name calls it by a wrapper that was not there when watching began.
        inner = getattr(module, "_orig_mod", module)
        # Without gradients it is a validation, or somebody who looks at what the model says.
        if not torch.is_grad_enabled() or id(inner) not in self._modules:
            return None
        self._compiled |= inner is not module
        for hook in self._waiting:
            hook.remove()
        self._waiting.clear()
        return self._begin_batch(module, args)

    def _begin_batch(self, module: nn.Module, args: Any) -> Any:
        if self._open and not self._in_step and (self._backward or self._stepped):
            self._end_batch(wait=False)
        self._forget_what_was_zeroed()
        if self._open:
            return None
        self._open = True
        step = self._stepped_batches
        self.core.begin_batch(step, (step + 1) % _LOG_EVERY_N_STEPS == 0)
        return self.core.entered(module, args)

    def before_backward(self, loss: Tensor) -> None:
        """Take the loss."""
        if self._compiled:
            self._begin_batch(self._model, ())
        self._forget_what_was_zeroed()
        self._touched = False
        self.core.before_backward(loss)

    @harmless
    def after_backward(self) -> None:
        """Note that the backward pass is over; one of another model's loss is none of ours."""
        if self._ever_touched and not self._touched:
            self.core.take_back_loss()
            self.core.after_backward()
            return
        self._backward = self._waits_for_step = True
        self._wait_for_call()
        self.core.after_backward()

    def _forget_what_was_zeroed(self) -> None:
        """Forget passes that no step has followed and whose gradients are gone, as a GradScaler's overflow leaves them.

        No hook tells of ``zero_grad``.
        """
        if not self._waits_for_step or self._in_step:
            return
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        if all(parameter.grad is None for group in groups for parameter in group["params"]):
            self._waits_for_step = False
            self.core.forget_passes()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Read the gradients; where a closure is to compute them, read them when it has."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._read(optimizer)
            return None

        @functools.wraps(closure)
        def watched(*more: Any, **named: Any) -> Any:
            self._in_step = True
            loss = closure(*more, **named)
            # LBFGS evaluates without gradients while it looks along a line.
            if torch.is_grad_enabled():
                self._read(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    def _read(self, optimizer: Optimizer) -> None:
        # A fused optimizer under a GradScaler unscales inside its step, with what the scaler has left it.
        scale = getattr(optimizer, "grad_scale", None)
        self.core.before_step(
            self._number(optimizer),
            optimizer,
            self._step,
            scaler=self._scaler if scale is None else _LeftScale(scale),
            unscales=scale is not None,
        )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A fused optimizer may have dropped the step: it alone knows.
        self.core.after_step(self._number(optimizer), certain=getattr(optimizer, "grad_scale", None) is None)
        self._step += 1
        self._stepped, self._in_step, self._waits_for_step = True, False, False
        self._wait_for_call()

    def _number(self, optimizer: Optimizer) -> int:
        return next(number for number, each in enumerate(self._optimizers) if each is optimizer)

    def _end_batch(self, *, wait: bool) -> None:
        self._stepped_batches += self._stepped
        stepped, self._open, self._backward, self._stepped = self._stepped, False, False, False
        onsets = self.core.end_batch(wait=wait)
        self._hear(onsets)
        stops = self.core.stops(onsets)
        if stepped and not self._processes.alone:
            self.core.agree(self._processes.mean)
            stops = self._processes.anywhere(stops) if self.core.settings.stop_on else False
        if stops and not self.stopping:
            self.core.tell_stop(onsets, "`watch.should_stop` is True from here on, and the loop decides")
        self.stopping |= stops

    def _hear(self, onsets: Sequence[Diagnosis]) -> None:
        if self._processes.rank == 0:
            self.core.each_diagnosis(onsets, self._tell)


class _LeftScale:
    """The loss scale that a GradScaler has left in an optimizer for the time of its step."""

    def __init__(self, factor: Tensor) -> None:
        self._factor = factor

    def scale(self, outputs: Tensor) -> Tensor:
        """Return outputs times the factor."""
        return outputs * self._factor.to(outputs.device)
