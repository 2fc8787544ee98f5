"""He, Xavier, LeCun and orthogonal initialization of a whole module, each layer by what follows it."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lightning_gradwatch.remedy.filling import Way, initialize_, orthogonal_
from lightning_gradwatch.remedy.initialized import InitializedLayer
from lightning_gradwatch.remedy.matrices import Matrix


def he_init_(module: nn.Module, example_input: Any = None) -> tuple[InitializedLayer, ...]:
    """Initialize a module in place by He: the signal keeps its variance on the way forward.

    ``std = gain / sqrt(fan_in)``, normal, biases zero. ``gain`` belongs to the activation that follows the layer:
    ``sqrt(2)`` for ReLU, ``sqrt(2 / (1 + a^2))`` for a leaky one, the root of ``E[phi(gain * z)^2] = 1`` for GELU,
    SiLU, Mish, ELU and softplus, 1 for tanh, sigmoid, SELU, gates, and where another layer or the loss follows. With
    GELU and SiLU no gain holds the signal for good, because what it misses by grows by 1.08 and 1.15 a layer: from 20
    layers without normalization on, ``lsuv_init_`` is better.

    ``fan_in`` is what is summed in one unit, per group of a convolution, per gate of a recurrent layer, per projection
    of attention. Weights of recurrent layers that lead from state to state become orthogonal, per gate, and the forget
    gates of an LSTM open: bias 1, once over torch's two biases. Left alone, with the reason told: norm layers,
    embeddings, what is frozen, lazy, quantized, parametrized or of unknown make, and layers of which is not known what
    follows. A tied weight is initialized once.

    Running the example leaves buffers, modes, attributes, gradients and random states as they were; only the draws of
    the initialization advance torch's.

    Args:
        module: Any module, in the mode in which the example is to run.
        example_input: What its forward pass takes: a tensor, a tuple of arguments, or a dictionary of named ones. A
            plain ``nn.Sequential`` of torch's own layers needs none.

    Returns:
        One value a layer, in registration order.

    Raises:
        TypeError: If it is no module.
        ValueError: Where what follows cannot be known: without an example, compiled, lazy, without a graph.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> for done in he_init_(model):
        ...     print(done.layer, done.activation, done.scheme, round(done.gain, 2))
        0 relu He 1.41
        2 output He 1.0

    References:
        He, Zhang, Ren and Sun, Delving Deep into Rectifiers, ICCV 2015, https://arxiv.org/abs/1502.01852.
        Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks, ICLR 2014, https://arxiv.org/abs/1312.6120.
        Jozefowicz, Zaremba and Sutskever, An Empirical Exploration of Recurrent Network Architectures, ICML 2015.
    """
    return initialize_(module, example_input, Way("He", "he_init_", _forward))


def xavier_init_(module: nn.Module, example_input: Any = None) -> tuple[InitializedLayer, ...]:
    """Initialize a module in place by Xavier: between what the signal and what the gradient asks for.

    ``std = gain * sqrt(2 / (fan_in + fan_out))``, normal, biases zero. Gains, recurrent layers, what is left alone and
    the example: as in ``he_init_``. ``fan_out`` is what is summed in one input on the way back; it differs from that of
    ``torch.nn.init`` for convolutions with groups or a stride.

    Args:
        module: Any module.
        example_input: What its forward pass takes; a plain ``nn.Sequential`` needs none.

    Returns:
        One value a layer, in registration order.

    Raises:
        TypeError: If it is no module.
        ValueError: Where what follows cannot be known.

    Example:
        >>> import torch
        >>> attention = nn.MultiheadAttention(64, 4)
        >>> x = torch.randn(5, 2, 64)
        >>> done = xavier_init_(attention, (x, x, x))[0]
        >>> done.layer, round(done.std_after / (1 / 64) ** 0.5, 1)
        ('(root)', 1.0)

    References:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.
    """
    return initialize_(module, example_input, Way("Xavier", "xavier_init_", _between))


def lecun_init_(module: nn.Module, example_input: Any = None) -> tuple[InitializedLayer, ...]:
    """Initialize a module in place by LeCun: ``std = 1 / sqrt(fan_in)``, normal, biases zero, whatever follows.

    It belongs to SELU (with ``nn.AlphaDropout``, not ``nn.Dropout``) and to tanh. ReLU halves the signal's power in
    each layer: that is what ``he_init_`` makes up for. Everything else as in ``he_init_``.

    Args:
        module: Any module.
        example_input: What its forward pass takes; a plain ``nn.Sequential`` needs none.

    Returns:
        One value a layer, in registration order.

    Raises:
        TypeError: If it is no module.
        ValueError: Where what follows cannot be known.

    Example:
        >>> model = nn.Sequential(nn.Linear(400, 400), nn.SELU(), nn.Linear(400, 2))
        >>> round(lecun_init_(model)[0].std_after, 2)
        0.05

    References:
        LeCun, Bottou, Orr and Mueller, Efficient BackProp, 1998.
        Klambauer et al., Self-Normalizing Neural Networks, NeurIPS 2017, https://arxiv.org/abs/1706.02515.
    """
    return initialize_(module, example_input, Way("LeCun", "lecun_init_", _forward, gained=False))


def orthogonal_init_(module: nn.Module, example_input: Any = None) -> tuple[InitializedLayer, ...]:
    """Initialize a module in place with orthogonal matrices: lengths are kept, times the gain.

    ``weight = gain * Q`` with orthonormal rows or columns, whichever are fewer, over ``[num_units, fan_in]``: per group
    of a convolution, per gate of a recurrent layer, per projection of attention. A transposed convolution is multiplied
    by ``sqrt(prod(stride))``, since so much less meets in each unit. Gains, biases, what is left alone and the example:
    as in ``he_init_``.

    Args:
        module: Any module.
        example_input: What its forward pass takes; a plain ``nn.Sequential`` needs none.

    Returns:
        One value a layer, in registration order.

    Raises:
        TypeError: If it is no module.
        ValueError: Where what follows cannot be known.

    Example:
        >>> import torch
        >>> lstm = nn.LSTM(3, 4)
        >>> _ = orthogonal_init_(lstm, torch.randn(5, 2, 3))
        >>> gate = lstm.weight_hh_l0.detach()[:4]
        >>> bool(torch.allclose(gate @ gate.T, torch.eye(4), atol=1e-5))
        True
        >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0).tolist()[4:8]
        [1.0, 1.0, 1.0, 1.0]

    References:
        Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks, ICLR 2014, https://arxiv.org/abs/1312.6120.
    """
    return initialize_(module, example_input, Way("orthogonal", "orthogonal_init_", orthogonal_))


def _forward(matrix: Matrix, gain: float) -> None:
    matrix.weight.normal_(0, gain / math.sqrt(matrix.fan_in))


def _between(matrix: Matrix, gain: float) -> None:
    matrix.weight.normal_(0, gain * math.sqrt(2.0 / (matrix.fan_in + matrix.fan_out)))
