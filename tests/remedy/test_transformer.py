"""Test ``lightning_gradwatch.remedy.transformer``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.transformer import for_transformers

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING)


def stack(depth: int = 3, *, first: bool = False) -> nn.Sequential:
    """Make a stack of torch's transformer layers."""
    layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=first) for _ in range(depth)]
    return nn.Sequential(*layers, nn.Linear(16, 2))


def test_norms_come_before_the_branches() -> None:
    """Then the layers compute what layers that were made so compute, from the same weights."""
    model, other = stack(), stack(first=True)
    other.load_state_dict(model.state_dict())
    for_transformers(Case(SICK, model=model))[0].apply_(model)
    x = torch.randn(2, 5, 16)
    assert torch.equal(model(x), other(x))
    titles = [remedy.title for remedy in for_transformers(Case(SICK, model=other))]
    assert not any("norm_first" in title for title in titles)


def test_projections_shrink_with_the_number_of_layers() -> None:
    """By sqrt(2 L), those of the attention and of the feed-forward part alone."""
    model = stack()
    before = copy.deepcopy(model.state_dict())
    for_transformers(Case(SICK, model=model))[1].apply_(model)
    for name, tensor in model.state_dict().items():
        shrinks = name.endswith(("self_attn.out_proj.weight", "linear2.weight"))
        assert torch.allclose(tensor, before[name] / 6**0.5 if shrinks else before[name])


@pytest.mark.parametrize("place", [0, 1])
def test_the_lines_do_the_same(place: int) -> None:
    """To the last bit."""
    model = stack()
    remedy = for_transformers(Case(SICK, model=model))[place]
    pasted, applied = copy.deepcopy(model), copy.deepcopy(model)
    exec(remedy.code, {"model": pasted})
    remedy.apply_(applied)
    x = torch.randn(2, 5, 16)
    assert torch.equal(pasted(x), applied(x))
    assert remedy.needs_restart


def test_a_warm_up_is_words_and_other_models_get_nothing() -> None:
    """It is the schedule that changes, not the model."""
    *_, warm_up = for_transformers(Case(SICK, model=stack()))
    assert (warm_up.title[:7], warm_up.change, warm_up.needs_restart) == ("warm up", None, False)
    assert for_transformers(Case(SICK, model=nn.Linear(2, 2))) == for_transformers(Case(SICK)) == []
