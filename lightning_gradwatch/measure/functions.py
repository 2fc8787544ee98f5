"""Activations as the forward pass calls them: as functions, as methods and inside modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lightning_gradwatch.measure.cuts import node_of

_NAMES = {
    "relu": "relu", "relu6": "relu", "leaky_relu": "leaky_relu", "prelu": "leaky_relu", "rrelu": "leaky_relu",
    "threshold": "relu", "sigmoid": "sigmoid", "hardsigmoid": "sigmoid", "special_expit": "sigmoid",
    # Its output has no bounds, and a slope wherever it is far from zero.
    "log_sigmoid": "log_sigmoid", "logsigmoid": "log_sigmoid",
    "tanh": "tanh", "gelu": "gelu", "silu": "silu", "mish": "silu", "hardswish": "silu",
    "elu": "elu", "celu": "elu", "selu": "selu", "softplus": "softplus",
}  # fmt: skip
_NOT_THE_USERS = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_gradwatch", "contextlib"}

# What only asks a tensor about itself, or handles its gradient. `zero_grad` does so twice for each parameter, and comes
# by here where a closure runs it during a probe.
_ASKED = ("device", "dtype", "grad_fn", "is_leaf", "layout", "ndim", "requires_grad", "shape")
_GRAD: Any = Tensor.grad
_QUESTIONS: frozenset[Any] = frozenset(
    [*(getattr(Tensor, name).__get__ for name in _ASKED), _GRAD.__get__, _GRAD.__set__, _GRAD.__delete__]
)

# In eval mode they have a fast path whose numbers differ in the last digits; they leave it while any mode is active.
_FAST_PATHS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)

# Takes the activation's name, the node that made its input, its output, and the line that called it.
Seen = Callable[[str, Any, Tensor, str], None]
# Takes the arguments of a function, the named ones, and its result.
Made = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
# Takes what went wrong; nothing more is told after it.
Failed = Callable[[Exception], None]


class ActivationCalls(TorchFunctionMode):
    """Tells of every activation that the forward pass calls, and changes none of them.

    torch asks an active mode before it runs any of its functions; modules such as ``nn.ReLU`` call the same
    functions. Modes are a stack: one that a person has entered meanwhile has to be left before ours can be.

    Args:
        seen: Is told of each activation.
        made: Is told of each result that does not ask for a gradient, with the arguments that it was made of.
        failed: Is told of an error of our own; the person's forward pass never is.
    """

    def __init__(self, seen: Seen, made: Made, failed: Failed) -> None:
        super().__init__()
        self._failed = failed
        self._made = made
        self.listening = False
        self._seen = seen
        # The module during whose forward pass torch is left alone.
        self._aside: nn.Module | None = None

    def listen(self) -> None:
        """Begin to listen."""
        self.listening, self._aside = True, None
        if self not in _modes():
            self.__enter__()  # type: ignore[no-untyped-call]

    def rest(self) -> None:
        """Stop listening, and leave torch alone as soon as no other mode lies above."""
        self.listening, self._aside = False, None
        stack = _modes()
        if stack and stack[-1] is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def at_rest(self) -> AbstractContextManager[None]:
        """Leave torch alone for a while: of what GradWatch itself calls, each function would come by here."""
        return self._resting() if self.listening else nullcontext()

    @contextmanager
    def _resting(self) -> Iterator[None]:
        self.rest()
        try:
            yield
        finally:
            self.listen()

    def stand_aside(self, module: nn.Module) -> None:
        """Leave torch alone while a module runs that would notice, such as a frozen transformer that is a teacher.

        Args:
            module: The module that is about to be called.
        """
        if self.listening and isinstance(module, _FAST_PATHS) and not module.training:
            self.rest()
            self._aside = module

    def come_back(self, module: nn.Module) -> None:
        """Listen again.

        Args:
            module: The module whose call is over.
        """
        if self._aside is module:
            self.listen()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function and tell of it where it is an activation."""
        kwargs = kwargs or {}
        if not self.listening or func in _QUESTIONS or torch.compiler.is_compiling() or _is_traced():
            # torch.compile and torch.jit.trace trace a mode as well: what follows would break their graph.
            return func(*args, **kwargs)
        name = node = None
        with self._guarded():
            name = _name_of(func, args, kwargs)
            # Before the call: an activation in place gives its input another node.
            node = node_of(args[0] if args else kwargs.get("input")) if name else None
        # Outside of every guard: an error of the person's own is theirs.
        result = func(*args, **kwargs)
        if self.listening:
            with self._guarded():
                if name and isinstance(result, Tensor):
                    self._seen(name, node, result, _calling_line())
                self._tell(func, args, kwargs, result)
        return result

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.listening = False
            self._failed(error)

    def _tell(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if isinstance(result, Tensor) and result.requires_grad:
            return
        name = getattr(func, "__name__", "")
        if name.endswith("_like") or name.startswith("new_"):
            # They take the shape of their argument, and none of its numbers.
            return
        if name.endswith("_as") or name == "to":
            args, kwargs = args[:1], {}
        self._made(args, kwargs, result)


def _name_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    name = getattr(func, "__name__", "").strip("_")
    if name == "hardtanh":
        low, high = (*args[1:3], *(kwargs[key] for key in ("min_val", "max_val") if key in kwargs), -1.0, 1.0)[:2]
        # nn.ReLU6 calls it from 0 to 6; of other bounds it is not known where its units are flat.
        return "relu" if low == 0 else "tanh" if (low, high) == (-1, 1) else "hardtanh"
    return _NAMES.get(name)


def _is_traced() -> bool:
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return traced


def _modes() -> list[TorchFunctionMode]:
    """Return the modes that are active, the newest last; no public function tells."""
    modes: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


def _calling_line() -> str:
    """Name the line of the person's code that called an activation as a function; empty where a module did."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Code that was made by exec may have any name, or None; and a file such as "<string>" nobody can open.
        name, file = str(frame.f_globals.get("__name__") or ""), frame.f_code.co_filename
        if name == "torch.nn.modules.activation":
            return ""
        if name.partition(".")[0] not in _NOT_THE_USERS and not file.startswith("<"):
            return f"{_short(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _short(path: str) -> str:
    """Shorten a path to where the person is, or to the file's name."""
    file = Path(path)
    try:
        return str(file.relative_to(Path.cwd()))
    except (OSError, ValueError):
        # Elsewhere, or the folder in which the person was is gone.
        return file.name
