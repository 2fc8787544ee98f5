"""Test ``benchmarks.ward.sequences``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.ward.sequences import Reader, SequenceRecipe, Unrolled, chrono_, draw, radius_, remember_


@pytest.mark.parametrize(("answer", "place"), [("early", 0), ("late", 28)])
def test_the_class_is_marked_in_one_step_alone(answer: str, place: int) -> None:
    """Four of the inputs of that step tell the class; all other steps are noise of a tenth."""
    inputs, classes = draw(30, answer, 200, torch.Generator().manual_seed(0))
    assert inputs.shape == (200, 30, 8)
    assert torch.equal(inputs[:, place, :4].argmax(1), classes)
    others = torch.cat([inputs[:, :place], inputs[:, place + 1 :]], 1)
    assert others.std().item() == pytest.approx(0.1, rel=0.02)
    assert others.abs().max() < 1.0


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_reader_reads_the_last_output(kind: str) -> None:
    """Its logits are the head's of the last step's output, in any number of layers."""
    model = Reader(kind, 6, num_layers=2)
    x = torch.randn(3, 5, 8)
    assert torch.equal(model(x), model.head(model.rnn(x)[0][:, -1]))
    assert model.rnn.num_layers == 2


def test_the_unrolled_network_is_an_rnn_written_by_hand() -> None:
    """With the same weights it computes what ``nn.RNN`` does."""
    by_hand, module = Unrolled(6), Reader("rnn", 6)
    for name, layer in (("ih", by_hand.take), ("hh", by_hand.keep)):
        getattr(module.rnn, f"weight_{name}_l0").data.copy_(layer.weight)
        getattr(module.rnn, f"bias_{name}_l0").data.copy_(layer.bias)
    module.head.load_state_dict(by_hand.head.state_dict())
    x = torch.randn(3, 5, 8)
    assert torch.allclose(by_hand(x), module(x), atol=1e-6)


def test_a_radius_is_that_of_all_singular_values() -> None:
    """The matrix is an orthogonal one times the radius."""
    weight = torch.empty(7, 7)
    radius_(weight, 1.5)
    assert torch.allclose(torch.linalg.svdvals(weight), torch.full((7,), 1.5), atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_open_gates_keep_what_is_there(kind: str) -> None:
    """With input weights of zero the state after an input of nothing is nearly what it was."""
    module = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](8, 4, batch_first=True)
    for name, parameter in module.named_parameters():
        nn.init.zeros_(parameter)
        assert name
    remember_(nn.ModuleList([module]))
    state = torch.full((1, 1, 4), 0.8)
    given = (torch.zeros_like(state), state) if kind == "lstm" else state
    _, after = module(torch.zeros(1, 1, 8), given)
    kept = after[1] if kind == "lstm" else after
    assert torch.allclose(kept, state * torch.sigmoid(torch.tensor(4.0)), atol=1e-6)


def test_chrono_gates_remember_from_one_step_to_the_whole_length() -> None:
    """The forget gate's bias is the logarithm of a span between 1 and the length, and the input gate's minus that."""
    model = Reader("lstm", 400)
    chrono_(model, 100)
    bias = model.rnn.bias_hh_l0
    spans = bias[400:800].exp()
    assert spans.min() >= 1
    assert spans.max() <= 99
    assert spans.mean().item() == pytest.approx(50, abs=5)
    assert torch.equal(bias[:400], -bias[400:800])
    assert not bias[800:].any()
    assert not model.rnn.bias_ih_l0.any()


def test_a_recipe_makes_the_same_task_for_every_seed_and_other_batches() -> None:
    """Two seeds draw different sequences and are scored on the same ones."""
    recipe = SequenceRecipe(partial(Reader, "rnn", 4), length=6, num_steps=2)
    first, second = recipe.lesson(0), recipe.lesson(1)
    assert not torch.equal(first.batches[0][0], second.batches[0][0])
    second.model.load_state_dict(first.model.state_dict())
    assert first.score(first.model) == second.score(second.model)
    assert first.passes == 0.9
