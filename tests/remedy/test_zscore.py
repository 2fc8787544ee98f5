"""Test ``lightning_gradwatch.remedy.zscore``."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import measure, of_norm, random_gradients, with_gradients

from lightning_gradwatch.remedy.zscore import ClipByZScore


def zclip(norms, max_z_score=2.5, alpha=0.97, warmup_steps=25, max_norm=None) -> list[float]:
    """Return the norms after clipping, as published: z against the old mean, then the moving averages."""
    first: list[float] = []
    mean = variance = 0.0
    ends = []
    for norm in norms:
        bound = norm
        if len(first) >= warmup_steps:
            spread = math.sqrt(variance)
            z = (norm - mean) / spread if spread else math.copysign(math.inf, norm - mean)
            if z > max_z_score:
                bound = mean + max_z_score * spread / (z / max_z_score)
        bound = min(bound, max_norm or math.inf)
        ends.append(bound)
        if len(first) < warmup_steps:
            first.append(norm)
            mean, variance = float(np.mean(first)), float(np.var(first))
        else:
            mean = alpha * mean + (1 - alpha) * bound
            variance = alpha * variance + (1 - alpha) * (bound - mean) ** 2
    return ends


def noisy(steps: int = 80, seed: int = 0) -> list[float]:
    """Return norms around 1 that fall slowly, with spikes."""
    generator = np.random.default_rng(seed)
    norms = np.exp(-np.arange(steps) / 100) * (1 + 0.1 * generator.standard_normal(steps))
    norms[steps // 2 :: 11] *= generator.uniform(2, 100, len(norms[steps // 2 :: 11]))
    return [float(norm) for norm in norms]


def clip_all(clipper: ClipByZScore, norms: list[float]) -> list[float]:
    """Clip a gradient of each norm, and return what is left."""
    return [float(clipper.clip_(of_norm(norm)).item()) for norm in norms]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "chosen",
    [{}, {"max_z_score": 1.5}, {"alpha": 0.8}, {"warmup_steps": 2}, {"max_norm": 0.9}, {"alpha": 0.0}],
    ids=str,
)
def test_each_step_is_clipped_as_published(seed, chosen):
    """With the paper's settings and others; norms in the warm-up stay."""
    norms = noisy(seed=seed)
    expected = zclip(norms, **chosen)
    assert clip_all(ClipByZScore(**chosen), norms) == pytest.approx(expected, rel=1e-4)
    assert sum(end < norm for end, norm in zip(expected, norms, strict=True)) > 2


def test_the_defaults_are_those_of_the_paper():
    """Kumar et al. use 2.5, 0.97 and 25, and no fixed bound."""
    clipper = ClipByZScore()
    assert (clipper.max_z_score, clipper.alpha, clipper.warmup_steps, clipper.max_norm) == (2.5, 0.97, 25, None)


def test_a_larger_spike_ends_closer_to_the_mean():
    """That is what the reciprocal of the paper does."""
    ends = [clip_all(ClipByZScore(), [*noisy()[:30], spike])[-1] for spike in (5.0, 50.0, 5000.0)]
    assert ends[0] > ends[1] > ends[2]


def test_all_gradients_are_multiplied_by_one_number():
    """The direction of the step stays."""
    clipper = ClipByZScore()
    clip_all(clipper, noisy()[:30])
    gradients = random_gradients(0, torch.float32, torch.float32, scale=100)
    parameters = with_gradients(*gradients)
    clipper.clip_(measure(parameters))
    ratios = torch.cat([(p.grad / g).reshape(-1) for p, g in zip(parameters, gradients, strict=True)])
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios))
    assert ratios[0] < 0.1


@given(st.floats(1e-12, 1e12))
@settings(deadline=None, max_examples=10)
def test_gradients_in_another_unit_are_clipped_alike(scale):
    """Multiply every gradient by a number, and what is left is multiplied by it."""
    scaled = clip_all(ClipByZScore(), [scale * norm for norm in noisy()])
    np.testing.assert_allclose(scaled, scale * np.array(zclip(noisy())), rtol=1e-4)


@pytest.mark.parametrize("useless", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("place", [0, 10, 25, 60])
def test_a_norm_that_says_nothing_never_enters_the_averages(useless, place):
    """In the warm-up and after it such gradients stay as they are, and what follows is as if they had not been."""
    norms = noisy()
    ends = clip_all(ClipByZScore(), norms[:place] + [useless] * 3 + norms[place:])
    np.testing.assert_equal(ends[place : place + 3], [useless] * 3)
    assert ends[:place] + ends[place + 3 :] == pytest.approx(zclip(norms), rel=1e-4)


def test_equal_norms_are_no_spikes():
    """Without any variance nothing that is not above the mean is clipped, and nothing is divided by zero."""
    assert clip_all(ClipByZScore(warmup_steps=2), [2.0] * 10 + [1.0, 2.0]) == pytest.approx([2.0] * 10 + [1.0, 2.0])


def test_each_optimizer_has_averages_of_its_own():
    """A discriminator's norms are not held against a generator's."""
    clipper, norms = ClipByZScore(), noisy()
    ends: dict[int, list[float]] = {0: [], 1: []}
    for norm in norms:
        for number, scale in ((0, 1.0), (1, 1000.0)):
            measured = measure(with_gradients(torch.tensor([scale * norm])), optimizer=number)
            ends[number].append(clipper.clip_(measured).item())
    assert ends[0] == pytest.approx(zclip(norms), rel=1e-4)
    assert ends[1] == pytest.approx([1000 * end for end in zclip(norms)], rel=1e-4)


@pytest.mark.parametrize("stop", [10, 25, 60])
def test_a_checkpoint_keeps_the_averages(stop):
    """Loaded weights-only, in the warm-up or after it, what follows is clipped as without a stop, bit for bit."""
    norms, saved, file = noisy(), ClipByZScore(), io.BytesIO()
    clip_all(saved, norms[:stop])
    torch.save(saved.state_dict(), file)
    file.seek(0)
    resumed = ClipByZScore()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert clip_all(resumed, norms[stop:]) == clip_all(ClipByZScore(), norms)[stop:]


def test_a_new_run_begins_with_nothing():
    """After a reset it is as new."""
    clipper = ClipByZScore()
    clip_all(clipper, noisy())
    clipper.reset()
    assert clip_all(clipper, noisy()) == clip_all(ClipByZScore(), noisy())


def test_a_state_of_another_kind_is_refused_and_costs_nothing():
    """What was remembered stays."""
    clipper = ClipByZScore()
    clip_all(clipper, noisy())
    known = clipper.state_dict()["moments"][0]
    with pytest.raises(TypeError, match=r"a vector for each optimizer\. Got 3\.0 for 0"):
        clipper.load_state_dict({"moments": {0: 3.0}})
    assert clipper.state_dict()["moments"][0] is known


def test_no_gradient_is_no_error():
    """With nothing to clip, nothing comes back and nothing is remembered."""
    clipper = ClipByZScore()
    assert clipper.clip_(measure([torch.nn.Parameter(torch.ones(2))])).shape == (0,)
    assert clipper.state_dict() == {"moments": {}}


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("max_z_score", 0, "a positive finite number"),
        ("max_z_score", float("inf"), "a positive finite number"),
        ("alpha", 1.0, "a number of at least 0 and below 1"),
        ("alpha", -0.1, "a number of at least 0 and below 1"),
        ("alpha", True, "a number of at least 0 and below 1"),
        ("warmup_steps", 1, "an integer of at least 2"),
        ("warmup_steps", 2.5, "an integer of at least 2"),
        ("warmup_steps", True, "an integer of at least 2"),
        ("max_norm", 0.0, "a positive finite number"),
        ("max_norm", "1", "a positive finite number"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, value, expected):
    """The error names the setting, what is expected and what came."""
    with pytest.raises(ValueError, match=re.escape(f"`{setting}` must be {expected}. Got {value!r}")):
        ClipByZScore(**{setting: value})
