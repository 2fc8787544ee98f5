"""Test ``lightning_gradwatch.remedy.fresh_weights``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from treated import paste

from lightning_gradwatch.remedy.fresh_weights import FreshWeights
from lightning_gradwatch.remedy.initialization import HE, LECUN, XAVIER


def test_lines_and_deed_draw_the_same_numbers_in_the_same_order():
    """With several schemes, in an order that is not the model's, the same seed still gives the same weights."""
    pasted = nn.Sequential(*(nn.Linear(8, 8, bias=bool(number)) for number in range(5)))
    applied = nn.Sequential(*(nn.Linear(8, 8, bias=bool(number)) for number in range(5)))
    applied.load_state_dict(pasted.state_dict())
    fresh = FreshWeights({"3": LECUN, "0": HE, "1": LECUN, "2": XAVIER}, {"4": "it is frozen"})
    kept = pasted[4].weight.clone()
    torch.manual_seed(3)
    paste(fresh.code, pasted)
    torch.manual_seed(3)
    fresh.apply_(applied)
    assert all(torch.equal(a, b) for a, b in zip(pasted.parameters(), applied.parameters(), strict=True))
    assert torch.equal(applied[4].weight, kept)
    assert not any(applied[number].bias.any() for number in (1, 2, 3))
    torch.manual_seed(3)
    by_hand = nn.init.kaiming_normal_(torch.empty(8, 8), nonlinearity="linear")
    assert torch.equal(applied[3].weight, by_hand)
    assert fresh.code.startswith("# left out: 4, it is frozen\n")


def test_the_model_itself_may_be_the_layer():
    """Its own weight goes by the name of the root."""
    model = nn.Linear(64, 64)
    fresh = FreshWeights({"(root)": HE})
    for treat in (fresh.apply_, lambda model: paste(fresh.code, model)):
        nn.init.ones_(model.weight)
        treat(model)
        assert float(model.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_names_that_are_gone_are_passed_over():
    """A layer that the fresh model does not have is not missed by ``apply_``."""
    model = nn.Sequential(nn.Linear(2, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    FreshWeights({"9": HE, "0": HE}).apply_(model)
    assert not torch.equal(model[0].weight, before[0])
    model[0].weight.data.copy_(before[0])
    FreshWeights({"9": HE}).apply_(model)
    assert torch.equal(model[0].weight, before[0])
