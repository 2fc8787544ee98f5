"""Test ``lightning_gradwatch.remedy.residual``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from treated import Calls, accuracy_after, case_of, names_of, stack, task, treated

from lightning_gradwatch.remedy.residual import ReZero, is_square, with_residuals

X = task()[0]


def remedy_for(build, x=X, **more):
    """Advise for all layers of a model."""
    model = build()
    (remedy,) = with_residuals(case_of(model, x, **more), names_of(model))
    return remedy


def test_square_blocks_get_a_way_around_and_begin_as_nothing():
    """At the start the stack does what it does without its square blocks; an optimizer finds every alpha."""
    build = partial(stack, nn.Sigmoid, 4)
    remedy = remedy_for(build)
    assert remedy.title.startswith("a residual connection around 3 layers, ")
    model = treated(remedy, build, X)
    assert [type(m).__name__ for m in model] == [
        "Linear", "Sigmoid", "ReZero", "Identity", "ReZero", "Identity", "ReZero", "Identity", "Linear",
    ]  # fmt: skip
    assert torch.equal(model(X), model[8](model[1](model[0](X))))
    names = [name for name, _ in model.named_parameters() if name.endswith("alpha")]
    assert names == ["2.alpha", "4.alpha", "6.alpha"]


def test_the_sum_is_what_the_paper_writes():
    """``y = x + alpha * f(x)`` for any alpha, and the gradient of alpha is the inner product with ``f(x)``."""
    block = ReZero(nn.Linear(8, 8), nn.Tanh())
    with torch.no_grad():
        block.alpha.fill_(0.25)
    assert torch.allclose(block(X), X + 0.25 * torch.tanh(block[0](X)))
    block(X).sum().backward()
    assert block.alpha.grad == pytest.approx(float(torch.tanh(block[0](X)).detach().sum()), rel=1e-4)


def test_the_gradient_passes_undiminished():
    """Before the first step the gradient behind ten sigmoid blocks is the one before them."""
    model = stack(nn.Sigmoid, 11)
    remedy_for(partial(stack, nn.Sigmoid, 11)).apply_(model)
    hidden = model[:2](X).detach().requires_grad_()
    model[2:](hidden).sum().backward()
    assert torch.allclose(hidden.grad, model[-1].weight.sum(0).expand_as(hidden))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(4, 4), (2, 4)),
        (nn.Linear(4, 5), (2, 4)),
        (nn.Conv1d(4, 4, 3, padding=1), (2, 4, 9)),
        (nn.Conv1d(4, 4, 3), (2, 4, 9)),
        (nn.Conv1d(4, 4, 3, padding="same", dilation=2), (2, 4, 9)),
        (nn.Conv1d(4, 4, 3, padding="valid"), (2, 4, 9)),
        (nn.Conv1d(4, 4, 1, padding="valid"), (2, 4, 9)),
        (nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 9, 9)),
        (nn.Conv2d(4, 4, 2, padding=1), (2, 4, 9, 9)),
        (nn.Conv3d(4, 4, 1), (2, 4, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 4, 3, padding=1), (2, 4, 9, 9)),
        (nn.ConvTranspose2d(4, 4, 3), (2, 4, 9, 9)),
        (nn.ConvTranspose2d(4, 4, 2, stride=2), (2, 4, 9, 9)),
        (nn.ConvTranspose2d(4, 4, 3, padding=1, dilation=2, output_padding=1), (2, 4, 9, 9)),
    ],
)
def test_square_is_what_keeps_the_shape(layer, size):
    """Whether a layer is square agrees with running it."""
    x = torch.randn(size)
    assert is_square(layer) == (layer(x).shape == x.shape)


def test_other_modules_are_not_square():
    """A recurrent layer, whatever its sizes, and an embedding are not touched."""
    assert not is_square(nn.GRU(4, 4))
    assert not is_square(nn.Embedding(4, 4))


def test_convolutions_take_their_norm_along_and_pooling_stays_outside():
    """The block is the layer, its norm and its activation; where a pooling comes between there is none."""

    def build():
        conv = partial(nn.Conv2d, 4, 4, 3, padding=1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), conv(bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            conv(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2),
        )  # fmt: skip

    x = torch.randn(3, 2, 4, 4)
    remedy = remedy_for(build, x)
    assert remedy.code.split("\n")[0].startswith("# left out: 5, ")
    model = treated(remedy, build, x)
    assert [type(m).__name__ for m in model[2]] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert [type(m).__name__ for m in model[3:5]] == ["Identity"] * 2
    assert type(model[5]) is nn.Conv2d


def test_what_a_persons_own_forward_calls_is_refused_in_words():
    """``apply_`` says what to write, and where; nothing has been changed."""
    build = partial(Calls, depth=3)
    remedy = remedy_for(build, called_at={"layers.1": "net.py:7"})
    assert remedy.where == "net.py:7"
    model = build()
    with pytest.raises(ValueError, match=r"layers.1: the model's own forward calls it \(net.py:7\). Write there"):
        remedy.apply_(model)
    assert remedy.code.startswith("# left out: layers.1, the model's own forward")
    assert [type(m) for m in model.modules()] == [type(m) for m in build().modules()]


def test_a_sequential_with_a_forward_of_its_own_is_not_trusted():
    """It may call its children in any order."""

    class Backwards(nn.Sequential):
        def forward(self, x):
            for module in [*self][::-1]:
                x = module(x)
            return x

    build = lambda: Backwards(nn.Linear(8, 1), nn.ReLU(), nn.Linear(8, 8))  # noqa: E731
    with pytest.raises(ValueError, match="the model's own forward calls it"):
        remedy_for(build).apply_(build())


def test_a_layer_in_two_places_is_left_out():
    """What is used twice is not taken out of one place."""

    def build():
        shared = nn.Linear(8, 8)
        return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    remedy = remedy_for(build)
    assert "# left out: 0, it is used at several places" in remedy.code
    model = treated(remedy, build, X)
    assert type(model[4]) is ReZero
    assert model[0] is model[2]


def test_nothing_square_is_nothing_advised():
    """Layers that change the shape, and models without one, get no advice."""
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    assert with_residuals(case_of(net, X), ["0", "2"]) == []


def test_half_precision_stays_half():
    """Alpha has the layer's dtype, so a sum in bfloat16 is in bfloat16."""
    block = ReZero(nn.Linear(8, 8, dtype=torch.bfloat16), nn.ReLU())
    assert block(X.bfloat16()).dtype is block.alpha.dtype is torch.bfloat16


def test_a_deep_sigmoid_stack_learns_afterwards():
    """Twelve sigmoid layers that stay at chance learn with a way around them."""
    torch.manual_seed(0)
    model = stack()
    remedy_for(stack).apply_(model)
    assert accuracy_after(model) > 0.9


def test_a_chain_that_ends_before_its_activation_has_no_block():
    """What follows is called by a forward that is not known."""

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.first(x)))

    with pytest.raises(ValueError, match=r"first.0: the model's own forward calls it"):
        remedy_for(Outside).apply_(Outside())
