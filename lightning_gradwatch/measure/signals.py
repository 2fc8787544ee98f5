"""The signal probe: what goes forward through each layer and what comes back, in a step now and then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.measure.cuts import NOWHERE, Columns, CutTensors
from lightning_gradwatch.measure.functions import ActivationCalls
from lightning_gradwatch.measure.layers import ROOT, Layer
from lightning_gradwatch.measure.magnitude import alive_units, has_slopes, measurable, norm_in_pieces, steep_units
from lightning_gradwatch.measure.outputs import output_of, unit_dim
from lightning_gradwatch.measure.recurrence import NormsOfSteps, Tap, tap_input


@dataclass(eq=False)
class Call:
    """One call of a layer.

    Attributes:
        column: Index of the layer.
        norm: L2 norm of its output, ``[]``.
        size: How many numbers the output has.
        unit_dim: Dimension of its units.
        training: Whether the layer was in training mode.
        fed_by_cut: Where its output asks for a gradient: the layers that its input stems from without a graph between.
        deltas: Norm of the gradient with respect to the output, and whether it came in the step's own backward pass.
    """

    column: int
    norm: Tensor
    size: int
    unit_dim: int
    training: bool
    fed_by_cut: Columns
    deltas: list[tuple[Tensor, bool]] = field(default_factory=list)


@dataclass(eq=False)
class Units:
    """Which units of a layer were alive, and which had a slope, in all calls so far; None where that is not asked.

    Attributes:
        alive: ``[num_units]``.
        steep: ``[num_units]``.
    """

    alive: Tensor | None = None
    steep: Tensor | None = None


@dataclass(eq=False)
class Signals:
    """What was recorded for one optimizer step, still on the device.

    Attributes:
        calls: Calls of layers in the order in which they ended.
        units: What their activations did, by layer.
        times: Layer, norm of each time step's gradient, and the numbers that each is made of.
        both_ways: Recurrent layers that read their sequence in both directions.
        float16: Whether a layer has put out float16, in which gradients below 6e-8 are zero.
        open: Whether gradients still belong to this step.
    """

    calls: list[Call] = field(default_factory=list)
    units: dict[int, Units] = field(default_factory=dict)
    times: list[tuple[int, Tensor, list[int]]] = field(default_factory=list)
    both_ways: set[int] = field(default_factory=set)
    float16: bool = False
    open: bool = True


class SignalProbe:
    """Reads, during one batch, each layer's output and the gradient with respect to it.

    Hooks are there only between ``begin`` and ``end``. Nothing that they see is kept or changed, except that a
    recurrent module's input is made to ask for its gradient. Calls during the backward pass are activation
    checkpointing's recomputation and are not recorded.

    Attributes:
        places: The line that calls each layer's activation, where it is called as a function.
        shapes: Shape of each layer's output in its first call.
        failure: Why the probe has given up; empty while it works.
    """

    def __init__(self) -> None:
        self.places: dict[int, str] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.failure = ""
        self._signals = Signals()
        self._columns: dict[int, int] = {}
        self._layers: Sequence[Layer] = ()
        self._handles: list[RemovableHandle] = []
        self._tensor_handles: list[RemovableHandle] = []
        self._listens = False
        self._waits = False
        self._in_backward = False
        self._starts: dict[int, list[int]] = {}
        self._cuts = CutTensors()
        self._mode = ActivationCalls(self._activation, self._made, self._fail)

    @property
    def running(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    @property
    def holds(self) -> bool:
        """Whether something was recorded, a gradient with it, that no step has taken."""
        return any(call.deltas for call in self._signals.calls)

    def begin(self, layers: Sequence[Layer]) -> None:
        """Put the hooks in place; called before the forward pass.

        Args:
            layers: The model's layers.
        """
        self.end()
        self._signals, self._layers = Signals(), layers
        modules = {column: layer.module for column, layer in enumerate(layers) if layer.name != ROOT}
        with self._guarded():
            self._hook({c: m for c, m in modules.items() if m and not isinstance(m, torch.jit.ScriptModule)})
        if not self.failure:
            self.go_on()

    def _hook(self, modules: dict[int, nn.Module]) -> None:
        if not modules:
            return
        self._columns = {id(module): column for column, module in modules.items()}
        # torch's hooks for all modules: a module with one of its own leaves the fast path of attention in eval mode,
        # and whoever copies or pickles the module would copy the hook.
        self._handles.append(register_module_forward_pre_hook(partial(self._enter, self._starts)))
        self._handles.append(register_module_forward_hook(self._output))
        for column, module in modules.items():
            if isinstance(module, nn.RNNBase):
                tap = Tap(partial(self._tap, column))
                self._handles.append(module.register_forward_pre_hook(tap, with_kwargs=True))

    def entered(self, module: nn.Module, args: Any) -> Any:
        """Do what the hooks would have done for a call under way: it began before they were in place.

        Args:
            module: What is being called.
            args: With what.

        Returns:
            Other arguments to call it with, None for the same.
        """
        if not self.running:
            return None
        self._enter(self._starts, module, args)
        column = self._columns.get(id(module))
        if column is None or not isinstance(module, nn.RNNBase):
            return None
        tapped = self._tap(column, module, args, {})
        return None if tapped is None else tapped[0]

    def pause(self) -> None:
        """The backward pass begins."""
        self._in_backward, self._listens = True, False
        self._mode.rest()

    def resume(self) -> None:
        """The backward pass is over; another forward pass may follow."""
        self._in_backward = False
        if not self._waits:
            self.go_on()

    def at_rest(self) -> AbstractContextManager[None]:
        """Hear of no function while gradients are read."""
        return self._mode.at_rest()

    def take(self) -> Signals | None:
        """Hand over what was recorded for the optimizer step that is about to be made.

        Until ``go_on`` nothing more is recorded: LBFGS evaluates its closure again and again inside the step.

        Returns:
            The signals, None where no gradient was seen.
        """
        self._waits, self._listens = True, False
        self._mode.rest()
        if not self.holds:
            return None
        signals, self._signals = self._signals, Signals()
        signals.open = False
        return signals

    def go_on(self) -> None:
        """The optimizer has stepped; in the same batch another forward pass may follow."""
        self._waits = False
        if self.running and not self.failure:
            self._listens = True
            self._mode.listen()

    def forget(self) -> None:
        """Drop what was recorded: its gradients were zeroed, and no step will use them."""
        self._signals.open, self._signals = False, Signals()

    def end(self) -> None:
        """Remove every hook; what was recorded stays for a step that is yet to come (accumulation)."""
        for handle in (*self._handles, *self._tensor_handles):
            handle.remove()
        self._handles.clear()
        self._tensor_handles.clear()
        self._columns.clear()
        self._layers = ()
        self._starts = {}
        self._cuts = CutTensors()
        self._listens = self._waits = self._in_backward = False
        self._mode.rest()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Give up, without harm, where something fails that nobody thought of."""
        listening, self._mode.listening = self._mode.listening, False
        try:
            # Each function of ours would come by the mode, which has nothing to do with it.
            with torch.no_grad(), torch._C.DisableTorchFunction():
                yield
        except Exception as error:
            self._fail(error)
        finally:
            self._mode.listening = listening

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or f"{type(error).__name__}: {error}"
        self._listens = False

    def _hears(self) -> bool:
        # Without Lightning's hooks around it, autograd itself tells that this is a recomputation.
        return self._listens and not self.failure and torch._C._current_graph_task_id() == -1

    def _enter(self, starts: dict[int, list[int]], module: nn.Module, args: Any) -> None:
        # A call that is under way when hooks are removed calls the removed ones, too.
        if starts is not self._starts:
            return
        self._mode.stand_aside(module)
        column = self._columns.get(id(module))
        if column is not None and self._hears():
            self._starts.setdefault(column, []).append(len(self._signals.calls))

    def _tap(self, column: int, module: nn.RNNBase, args: Any, kwargs: Any) -> Any:
        if not self._hears() or not torch.is_grad_enabled():
            return None
        with self._guarded():
            if module.bidirectional:
                self._signals.both_ways.add(column)
            tapped = tap_input(module, args, kwargs, partial(self._times, self._signals, column))
            if tapped is not None:
                self._tensor_handles.append(tapped.handle)
                return tapped.arguments
        return None

    def _times(self, signals: Signals, column: int, norms_of: NormsOfSteps, gradient: Tensor) -> None:
        if signals.open and not self.failure:
            with self._guarded():
                signals.times.append((column, *norms_of(gradient)))

    def _output(self, module: nn.Module, args: Any, output: Any) -> None:
        self._mode.come_back(module)
        column = self._columns.get(id(module))
        if column is None or not self._hears():
            return
        with self._guarded():
            starts = self._starts.get(column)
            if starts and starts.pop() < len(self._signals.calls):
                # What contains other layers is no layer of its own: they have spoken for it.
                return
            value = output_of(output)
            if value is not None:
                # Without a graph (a target network that is asked, a checkpointed block) nothing would come back anyway.
                self._record(column, module, value, self._cuts.origins(args) if value.requires_grad else NOWHERE)
                # Asked only now: a GAN freezes its generator after the batch has begun.
                if self._layers[column].trainable:
                    self._cuts.mark(args, (value, output), column)

    def _record(self, column: int, module: nn.Module, value: Tensor, fed_by_cut: Columns) -> None:
        signals, dim = self._signals, unit_dim(module, value)
        call = Call(column, norm_in_pieces(value), value.numel(), dim, module.training, fed_by_cut)
        signals.calls.append(call)
        signals.float16 |= value.dtype == torch.float16
        self.shapes.setdefault(column, tuple(value.shape))
        node: Any = value.grad_fn
        if node is not None:
            # So that an activation finds its layer; a reference to the node would keep what it has saved.
            node.metadata[signals] = call
        if value.requires_grad:
            # A value may outlive the batch: a parameter, or a tensor that somebody keeps.
            self._tensor_handles.append(value.register_hook(partial(self._delta, signals, call)))  # type: ignore[no-untyped-call]

    def _delta(self, signals: Signals, call: Call, gradient: Tensor) -> None:
        if signals.open and not self.failure:
            with self._guarded():
                call.deltas.append((norm_in_pieces(gradient), self._in_backward))

    def _made(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._hears():
            with self._guarded():
                self._cuts.note(args, kwargs, result)

    def _activation(self, name: str, node: Any, output: Tensor, place: str) -> None:
        if not self._hears() or not self._signals.calls or not measurable(output):
            return
        with self._guarded():
            call = None if node is None else node.metadata.get(self._signals)
            call = self._signals.calls[-1] if call is None else call
            if place:
                self.places.setdefault(call.column, place)
            if output.ndim > 1:
                self._note_units(name, output, call)

    def _note_units(self, name: str, output: Tensor, call: Call) -> None:
        units = self._signals.units.setdefault(call.column, Units())
        dim = call.unit_dim if call.unit_dim < output.ndim else output.ndim - 1
        if name == "relu":
            units.alive = _joined(units.alive, alive_units(output, dim))
        elif has_slopes(name):
            units.steep = _joined(units.steep, steep_units(output, dim, name))


def _joined(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None or old.shape != new.shape else old | new
