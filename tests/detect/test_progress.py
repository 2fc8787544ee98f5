"""Test ``lightning_gradwatch.detect.progress``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.progress import loss_has_fallen, loss_rests, relative_updates
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot, LayerDescription

NOISE = np.random.default_rng(0).normal(0, 1, 400)


def flat(n: int, level: float = 2.3, noise: float = 0.02) -> np.ndarray:
    """Return a loss that stays where it is."""
    return level + noise * NOISE[:n]


class TestLoss:
    """Has the loss fallen?"""

    def test_a_falling_loss_has_fallen(self) -> None:
        """A loss that falls clearly is called so as soon as there are thirty readings."""
        falling = np.linspace(2.3, 0.5, 200) + 0.02 * NOISE[:200]
        assert loss_has_fallen(falling, 100) is True
        assert loss_has_fallen(np.linspace(2.3, 1.3, 30), 100) is True

    def test_a_flat_loss_has_not_fallen_after_the_horizon(self) -> None:
        """Before the horizon a flat loss is open, at the horizon it has not fallen."""
        assert loss_has_fallen(flat(99), 100) is None
        assert loss_has_fallen(flat(100), 100) is False

    def test_a_rising_loss_has_not_fallen(self) -> None:
        """A loss that rises has not fallen either."""
        assert loss_has_fallen(np.linspace(1.0, 9.0, 150), 100) is False

    def test_an_initial_jump_alone_is_no_fall(self) -> None:
        """A loss that only drops in the first ten readings has learned the mean of the targets, nothing more."""
        jump = flat(150)
        jump[:8] += np.linspace(5.0, 0.5, 8)
        assert loss_has_fallen(jump, 100) is False

    def test_too_few_readings_leave_it_open(self) -> None:
        """Fewer than thirty known readings decide nothing, however fast the loss falls."""
        assert loss_has_fallen(np.linspace(9.0, 0.1, 29), 10) is None
        assert loss_has_fallen(np.zeros(0), 100) is None

    def test_nan_readings_are_left_out(self) -> None:
        """NaN and infinity count neither for nor against; a loss that is never known stays open."""
        holes = np.repeat(np.linspace(2.3, 0.5, 100), 2)
        holes[::4], holes[1::4] = np.nan, np.inf
        assert loss_has_fallen(holes, 100) is True
        assert loss_has_fallen(np.full(500, np.nan), 100) is None
        # 200 readings, of which 60 are known, are not yet 100.
        sparse = np.full(200, np.nan)
        sparse[:60] = flat(60)
        assert loss_has_fallen(sparse, 100) is None

    def test_a_negative_loss_falls_by_growing(self) -> None:
        """A log-likelihood of -1 that becomes -2 has fallen, one that stays at -1 has not."""
        assert loss_has_fallen(np.linspace(-1.0, -2.0, 150), 100) is True
        assert loss_has_fallen(flat(150, level=-1.0), 100) is False
        assert loss_has_fallen(np.linspace(-2.0, -1.0, 150), 100) is False

    def test_a_small_fall_beyond_the_noise_counts(self) -> None:
        """A fall by 3% counts where it is many standard errors, and not where the noise could have made it."""
        small = np.linspace(1.0, 0.97, 200)
        assert loss_has_fallen(small + 1e-4 * NOISE[:200], 100) is True
        assert loss_has_fallen(small + 3e-2 * NOISE[:200], 100) is False

    @given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
    def test_the_verdict_does_not_depend_on_the_unit(self, scale: float, seed: int) -> None:
        """Multiplying every loss by a number changes no verdict."""
        rng = np.random.default_rng(seed)
        losses = 2.0 - rng.choice([0.0, 0.1, 0.8]) * np.linspace(0, 1, 120) + rng.normal(0, 0.01, 120)
        assert loss_has_fallen(scale * losses, 100) is loss_has_fallen(losses, 100)

    def test_adversarial_losses_are_not_known(self) -> None:
        """Where two optimizers step in turn, each one's loss is NaN throughout, and so stays open."""
        history = GradientHistory(("generator", "discriminator"))
        for step in range(300):
            one = np.ones(2)
            history.append(
                GradientSnapshot(step, step % 2, one, one, one, one, np.ones(2, dtype=np.bool_), one, loss=300.0 - step)
            )
        for number in (0, 1):
            assert np.isnan(history.losses_of(number)).all()
            assert loss_has_fallen(history.losses_of(number), 100) is None


class TestUpdates:
    """How far does a step move a layer?"""

    def test_plain_descent_moves_by_its_gradient(self, observe) -> None:
        """For SGD the share is the learning rate times the clipped gradient over the weights."""
        updates = relative_updates(observe([4.0, 8.0], clipped=[2.0, 4.0], weights=[10.0, 5.0], learning_rate=[0.1, 1]))
        assert updates == pytest.approx([0.02, 0.8])

    @pytest.mark.parametrize(("kind", "momentum"), [("SGD", 0.0), ("Adam", None), ("RMSprop", None)])
    @pytest.mark.parametrize("scale", [1e-9, 1.0, 1e3])
    def test_the_first_step_of_torch_is_predicted(self, observe, kind: str, momentum: object, scale: float) -> None:
        """Where all gradients have one size the estimate is what torch's first step does."""
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
        more = {} if kind == "SGD" else {"eps": 1e-8}
        if kind == "RMSprop":
            more["alpha"] = 0.0
        optimizer = getattr(torch.optim, kind)([weight], lr=0.01, **more)
        weight.grad = scale * torch.sign(torch.randn_like(weight))
        before = weight.detach().clone()
        norms, weights = [weight.grad.norm().item()], [before.norm().item()]
        optimizer.step()
        truth = ((weight.detach() - before).norm() / before.norm()).item()
        layers = (LayerDescription("w", "Linear", num_parameters=64),)
        estimate = relative_updates(
            observe(norms, weights=weights, learning_rate=0.01, kind=kind, eps=more.get("eps", 0.0), layers=layers)
        )
        assert estimate == pytest.approx([truth], rel=1e-6)

    def test_adam_moves_far_with_a_small_gradient(self, observe) -> None:
        """Adam's step does not shrink with the gradient until that comes near eps."""
        updates = relative_updates(observe([1.0, 1e-5, 1e-12], kind="AdamW", eps=1e-8, weights=10.0))
        assert updates[1] == pytest.approx(updates[0], rel=0.02)
        assert updates[2] < 1e-3 * updates[0]

    def test_weights_of_zero_do_not_divide_by_zero(self, observe) -> None:
        """A layer that starts at zero is moved by a huge share, not by an error; a zero gradient moves nothing."""
        assert relative_updates(observe([1.0], weights=0.0))[0] > 1e300
        assert relative_updates(observe([0.0], weights=10.0, kind="Adam"))[0] == 0

    def test_an_unknown_optimizer_has_no_estimate(self, observe) -> None:
        """Nothing is claimed of an optimizer whose step is not known."""
        assert relative_updates(observe([1.0], kind="Lion")) is None

    def test_an_absent_layer_has_no_estimate(self, observe) -> None:
        """Where the gradient is NaN so is the estimate, and the other layers keep theirs."""
        updates = relative_updates(observe([np.nan, 1.0]))
        assert np.isnan(updates[0])
        assert updates[1] == pytest.approx(0.01)


class TestRests:
    """A loss that has fallen a little and stays."""

    FLAT = 0.7 + 0.001 * np.random.default_rng(0).normal(size=200)

    def test_a_loss_that_fell_at_first_and_stays_rests(self, observe) -> None:
        """After twice the horizon, where it has fallen by less than the share."""
        jump = np.concatenate([np.linspace(1.0, 0.7, 40), self.FLAT])
        assert loss_rests(observe(np.ones(2), loss=jump), 100, 0.5)
        assert not loss_rests(observe(np.ones(2), loss=jump[:199]), 100, 0.5)

    def test_a_converged_a_falling_and_an_unknown_loss_do_not(self, observe) -> None:
        """What fell far is done, and what still falls is under way."""
        converged = np.concatenate([np.linspace(7.0, 0.7, 40), self.FLAT])
        for loss in (converged, np.linspace(1.0, 0.6, 240), np.full(240, np.nan)):
            assert not loss_rests(observe(np.ones(2), loss=loss), 100, 0.5)
