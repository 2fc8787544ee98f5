"""What a recurrent layer keeps from step to step: the spectral radius of its weights, the bias of its forget gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import Layer

# So much work takes about a second on one core; a larger matrix is not measured while a person waits.
_MAX_SIZE = 1024
# In torch's order of gates (LSTM: input, forget, ...; GRU: reset, update, ...) the one that keeps the old state is
# the second, and both are kept where it is open.
GATES = {"LSTM": "forget", "GRU": "update"}


@dataclass(frozen=True)
class Memory:
    """How a recurrent layer stands.

    Attributes:
        layer: The layer's name.
        kind: ``"LSTM"`` or ``"GRU"`` for one with gates, ``"RNN"`` for torch's plain one, ``"cell"`` for a square
            weight that one forward pass uses step after step.
        radius: Largest absolute eigenvalue of the weights between two steps; None where it is not known, or where
            gates decide.
        gate_bias: Mean of the bias of the gate that keeps the old state; None without gates, or where it is not known.
        biased: Whether it has biases.
    """

    layer: str
    kind: str
    radius: float | None = None
    gate_bias: float | None = None
    biased: bool = True


def measure_memory(layer: Layer) -> Memory | None:
    """Measure what a layer keeps from step to step.

    ``radius = max |eigenvalues(weight_hh)|`` over its layers and directions; ``gate_bias`` is the mean of the forget
    gate's (LSTM) or update gate's (GRU) part of ``bias_ih + bias_hh``.

    Args:
        layer: A layer that is used step after step.

    Returns:
        What was measured, None for a layer that leads from no state to the next: neither one of torch's recurrent
        modules nor a square weight.

    Example:
        >>> memory = measure_memory(Layer("rnn", module := nn.LSTM(2, 3), dict(module.named_parameters())))
        >>> memory.kind, abs(memory.gate_bias) < 2
        ('LSTM', True)
    """
    kind = _kind(layer.module)
    if kind in GATES:
        biases = [name for name in layer.parameters if name.startswith("bias_")]
        return Memory(layer.name, kind, gate_bias=_gate_bias(layer, biases), biased=bool(biases))
    if kind == "RNN":
        weights = [p for name, p in layer.parameters.items() if name.startswith("weight_hh")]
        return Memory(layer.name, kind, radius=spectral_radius(weights))
    weight = layer.parameters.get("weight")
    if weight is not None and weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
        return Memory(layer.name, "cell", radius=spectral_radius([weight]))
    return None


def _kind(module: nn.Module | None) -> str:
    kinds = {"LSTM": (nn.LSTM, nn.LSTMCell), "GRU": (nn.GRU, nn.GRUCell), "RNN": (nn.RNN, nn.RNNCell)}
    return next((name for name, classes in kinds.items() if isinstance(module, classes)), "")


def _gate_bias(layer: Layer, biases: Sequence[str]) -> float | None:
    if not biases:
        # A gate without a bias is one with a bias of zero.
        return 0.0
    hidden = getattr(layer.module, "hidden_size", 0)
    gates = [_on_cpu(layer.parameters[name]) for name in biases]
    known = [gate[hidden : 2 * hidden].mean() for gate in gates if gate is not None and gate.ndim == 1]
    if len(known) < len(gates) or not known:
        return None
    # torch adds two biases, bias_ih and bias_hh.
    mean = 2 * float(torch.stack(known).mean())
    return mean if math.isfinite(mean) else None


def spectral_radius(weights: Sequence[Tensor]) -> float | None:
    """Return the largest absolute eigenvalue of square matrices.

    Args:
        weights: The matrices.

    Returns:
        The radius; None where one is not square, sharded, too large, or not finite.

    Example:
        >>> spectral_radius([torch.diag(torch.tensor([0.5, -2.0]))])
        2.0
    """
    if not weights or any(w.ndim != 2 or w.shape[0] != w.shape[1] for w in weights):
        return None
    if sum(w.shape[0] ** 3 for w in weights) > _MAX_SIZE**3:
        return None
    matrices = [_on_cpu(weight) for weight in weights]
    known = [matrix for matrix in matrices if matrix is not None and bool(torch.isfinite(matrix).all())]
    if len(known) < len(matrices):
        return None
    return max(float(torch.linalg.eigvals(matrix).abs().max()) for matrix in known)


def _on_cpu(parameter: Tensor) -> Tensor | None:
    """Return the numbers of a parameter on the host; None of one that is sharded, quantized or without numbers."""
    if hasattr(parameter, "full_tensor") or parameter.is_meta or not parameter.is_floating_point():
        return None
    return parameter.detach().cpu().to(torch.promote_types(parameter.dtype, torch.float32))


def memory_in_words(memory: Memory, num_steps: int | None) -> str:
    """Say what a recurrent layer keeps.

    Args:
        memory: How it stands.
        num_steps: Over how many steps; None where that is not known.

    Returns:
        A sentence, empty where nothing is known.

    Example:
        >>> memory_in_words(Memory("rnn", "RNN", radius=2.0), 100)
        'recurrent weights of rnn have spectral radius 2 over 100 steps (2^100 = 1e+30)'
        >>> memory_in_words(Memory("rnn", "LSTM", gate_bias=0.0), 100)
        'the forget-gate bias of rnn is 0 on average: such a gate keeps 0.5 a step, 0.5^100 = 8e-31'
    """
    if memory.gate_bias is not None:
        kept = 1 / (1 + math.exp(-max(min(memory.gate_bias, 700.0), -700.0)))
        bias = f"{round(memory.gate_bias, 2) + 0.0:g}"
        text = (
            f"the {GATES[memory.kind]}-gate bias of {memory.layer} is {bias} on average: such a gate keeps {kept:.2g}"
        )
        return f"{text} a step" + (f", {kept:.2g}^{num_steps} = {_power(kept, num_steps)}" if num_steps else "")
    if memory.radius is None:
        return ""
    text = f"recurrent weights of {memory.layer} have spectral radius {memory.radius:.2g}"
    if not num_steps:
        return text
    return f"{text} over {num_steps} steps ({memory.radius:.2g}^{num_steps} = {_power(memory.radius, num_steps)})"


def _power(number: float, exponent: int) -> str:
    """Write a power, also one that float64 cannot hold."""
    if number == 0:
        return "0"
    logarithm = exponent * math.log10(number)
    if abs(logarithm) < 300:
        return f"{10.0**logarithm:.0e}"
    return f"1e{logarithm:+.0f}"
