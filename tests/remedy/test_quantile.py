"""Test ``lightning_gradwatch.remedy.quantile``."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import measure, of_norm, random_gradients, with_gradients

from lightning_gradwatch.remedy.quantile import ClipByQuantile

NORMS = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 35.0, 8.0, 0.9, 7.0, 9.5]
USELESS = [float("nan"), float("inf"), 0.0]


def autoclip(norms: list[float], quantile: float, window: int | None = None) -> list[float]:
    """Return the norms after clipping, as published: append, take the percentile, clip to it."""
    history: list[float] = []
    ends = []
    for norm in norms:
        history.append(norm)
        bound = np.percentile(history[-window:] if window else history, 100 * quantile)
        ends.append(min(norm, bound))
    return ends


def clip_all(clipper: ClipByQuantile, norms: list[float]) -> list[float]:
    """Clip a gradient of each norm, and return what is left."""
    return [float(clipper.clip_(of_norm(norm)).item()) for norm in norms]


@pytest.mark.parametrize("quantile", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_each_step_is_clipped_as_published(quantile):
    """While the window is not full it is AutoClip as in the paper, with its default and others."""
    assert clip_all(ClipByQuantile(quantile), NORMS) == pytest.approx(autoclip(NORMS, quantile), rel=1e-6)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40), st.floats(0.01, 1.0), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_a_full_window_forgets_the_oldest(norms, quantile, window):
    """The quantile is that of the newest norms, this one included, whatever they are."""
    clipper = ClipByQuantile(quantile, window)
    assert clip_all(clipper, norms) == pytest.approx(autoclip(norms, quantile, window), rel=1e-5)


def test_all_gradients_are_multiplied_by_one_number():
    """The direction of the step stays."""
    clipper = ClipByQuantile()
    clipper.clip_(of_norm(1.0))
    gradients = random_gradients(0, torch.float32, torch.float32)
    parameters = with_gradients(*gradients)
    clipper.clip_(measure(parameters))
    ratios = torch.cat([(p.grad / g).reshape(-1) for p, g in zip(parameters, gradients, strict=True)])
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios))
    assert ratios[0] < 1


@given(st.floats(1e-12, 1e12))
@settings(deadline=None, max_examples=20)
def test_gradients_in_another_unit_are_clipped_alike(scale):
    """Multiply every gradient by a number, and what is left is multiplied by it."""
    scaled = clip_all(ClipByQuantile(0.3), [scale * norm for norm in NORMS])
    np.testing.assert_allclose(scaled, scale * np.array(autoclip(NORMS, 0.3)), rtol=1e-5)


@pytest.mark.parametrize("useless", USELESS)
@pytest.mark.parametrize("place", [0, 3])
def test_a_norm_that_says_nothing_never_enters_the_history(useless, place):
    """Gradients that are not finite, or all zero, stay as they are, and what follows is as if they had not been."""
    clipper = ClipByQuantile(0.5)
    norms = NORMS[:place] + [useless] * 20 + NORMS[place:]
    ends = clip_all(clipper, norms)
    np.testing.assert_equal(ends[place : place + 20], [useless] * 20)
    assert ends[:place] + ends[place + 20 :] == pytest.approx(autoclip(NORMS, 0.5), rel=1e-6)


def test_gradients_that_are_not_finite_are_left_as_they_are():
    """NaN is not spread."""
    clipper = ClipByQuantile()
    clipper.clip_(of_norm(1.0))
    sick, well = with_gradients(torch.tensor([float("nan"), 2.0]), torch.tensor([300.0]))
    clipper.clip_(measure([sick, well]))
    torch.testing.assert_close(sick.grad, torch.tensor([float("nan"), 2.0]), equal_nan=True)
    assert well.grad.tolist() == [300.0]


def test_each_optimizer_has_a_history_of_its_own():
    """A discriminator's norms are not held against a generator's."""
    clipper = ClipByQuantile(0.5)
    ends: dict[int, list[float]] = {0: [], 1: []}
    for norm in NORMS:
        for number, scale in ((0, 1.0), (1, 1000.0)):
            norms = measure(with_gradients(torch.tensor([scale * norm])), optimizer=number)
            ends[number].append(clipper.clip_(norms).item())
    assert ends[0] == pytest.approx(autoclip(NORMS, 0.5), rel=1e-6)
    assert ends[1] == pytest.approx([1000 * end for end in autoclip(NORMS, 0.5)], rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(100, 100), (4, 4), (100, 4), (3, 50)])
def test_a_checkpoint_keeps_the_history(before, after):
    """Loaded weights-only, into a window of the same or another size, the newest norms go on to count."""
    saved, file = ClipByQuantile(0.4, before), io.BytesIO()
    clip_all(saved, NORMS[:7])
    torch.save(saved.state_dict(), file)
    file.seek(0)
    resumed = ClipByQuantile(0.4, after)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    history = NORMS[:7][-min(before, after) :]
    expected = autoclip([*history, *NORMS[7:]], 0.4, after)[len(history) :]
    assert clip_all(resumed, NORMS[7:]) == pytest.approx(expected, rel=1e-6)


def test_a_new_run_begins_with_nothing():
    """After a reset it is as new."""
    clipper = ClipByQuantile()
    clip_all(clipper, NORMS)
    clipper.reset()
    assert clip_all(clipper, NORMS) == clip_all(ClipByQuantile(), NORMS)


@pytest.mark.parametrize("state", [{}, {"norms": {0: [1.0]}}, {"norms": {"a": torch.ones(3)}}, {"norms": None}])
def test_a_state_of_another_kind_is_refused_and_costs_nothing(state):
    """What was remembered stays."""
    clipper = ClipByQuantile()
    clip_all(clipper, NORMS)
    known = clipper.state_dict()["norms"][0]
    with pytest.raises((AttributeError, KeyError, TypeError)):
        clipper.load_state_dict(state)
    assert clipper.state_dict()["norms"][0] is known


def test_no_gradient_is_no_error():
    """With nothing to clip, nothing comes back and nothing is remembered."""
    clipper = ClipByQuantile()
    assert clipper.clip_(measure([torch.nn.Parameter(torch.ones(2))])).shape == (0,)
    assert clipper.state_dict() == {"norms": {}}


@pytest.mark.parametrize("quantile", [0, -0.1, 1.1, float("nan"), True, "0.1", None])
def test_a_quantile_that_is_none_is_refused(quantile):
    """The error names the setting and what came."""
    with pytest.raises(ValueError, match=f"`quantile` must be a number above 0 and at most 1. Got {quantile!r}"):
        ClipByQuantile(quantile)


@pytest.mark.parametrize("window", [0, -1, 2.5, True, "3", None])
def test_a_window_that_is_none_is_refused(window):
    """The error names the setting and what came."""
    with pytest.raises(ValueError, match=f"`window` must be a positive integer. Got {window!r}"):
        ClipByQuantile(window=window)
