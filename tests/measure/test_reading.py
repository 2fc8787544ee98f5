"""Test ``lightning_gradwatch.measure.reading``."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import norm
from torch import Tensor, nn

from lightning_gradwatch.measure import reading as module
from lightning_gradwatch.measure.layers import find_layers, index_parameters
from lightning_gradwatch.measure.norms import GradientNorms, measure_gradients
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByValue

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
# What overflows, vanishes or loses digits when float32 squares it.
EXTREMES = [0.0, 1.0, -3.0, 1e30, -1e30, 1e-30, 1e-41, 6e4, float("inf"), float("nan")]


def measured(*gradients: Tensor) -> GradientNorms:
    """Measure given gradients as those of a model's parameters."""
    parameters = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    index = index_parameters(find_layers(nn.ParameterList(parameters)), [parameters])
    assert index is not None
    return measure_gradients(index)


def reading_of(*gradients: Tensor, zeros: Sequence[bool] | None = None, **extras: Tensor) -> Reading:
    """Begin a reading whose snapshot is the dictionary of its numbers."""
    known = np.array([False] * len(gradients) if zeros is None else zeros, dtype=np.bool_)
    return Reading(measured(*gradients), extras, known, dict)


def numbers(reading: Reading) -> Mapping[str, np.ndarray]:
    """Ask a reading for its numbers."""
    return reading.snapshot()


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Sum norms in float64 from the start, as on CUDA, and let the numbers come late."""
    with (
        mock.patch("lightning_gradwatch.measure.norms.sums_in_double", return_value=True),
        mock.patch("lightning_gradwatch.measure.reading.sums_in_double", return_value=True),
    ):
        yield


@pytest.fixture(params=[nullcontext, as_on_cuda], ids=["as on a CPU", "as on CUDA"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test both ways."""
    with request.param():
        yield


@pytest.fixture
def late() -> Iterator[None]:
    """Run a test as on CUDA."""
    with as_on_cuda():
        yield


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each transfer that is started, and each for whose numbers somebody asks."""
    events: list[str] = []

    class Noted(module.Transfer):
        def __init__(self, parts):
            events.append("sent")
            super().__init__(parts)

        def numbers(self):
            events.append("asked")
            return super().numbers()

    monkeypatch.setattr(module, "Transfer", Noted)
    return events


@pytest.fixture
def second_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many tensors each second look takes."""
    looks: list[int] = []
    original = module.measure_exactly
    monkeypatch.setattr(module, "measure_exactly", lambda tensors: looks.append(len(tensors)) or original(tensors))
    return looks


tensors = st.builds(
    lambda values, dtype: torch.tensor(values, dtype=torch.float64).to(dtype),
    st.lists(st.sampled_from(EXTREMES) | st.floats(-100, 100, width=32), max_size=6),
    st.sampled_from(DTYPES),
)


@pytest.mark.parametrize("place", [nullcontext, as_on_cuda], ids=["as on a CPU", "as on CUDA"])
@given(gradients=st.lists(tensors, min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_norms_on_the_host_are_those_of_float64(place, gradients):
    """Whatever dtypes are mixed, and however large or small, each norm is that of the float64 oracle."""
    with place():
        norms = numbers(reading_of(*gradients))["norms"]
    assert norms.dtype == np.float64
    np.testing.assert_allclose(norms, [norm(g) for g in gradients], rtol=1e-5)


@pytest.mark.parametrize("place", [nullcontext, as_on_cuda], ids=["as on a CPU", "as on CUDA"])
@given(
    gradients=st.lists(tensors, min_size=1, max_size=4),
    bound=st.sampled_from([1e-3, 1.0, 1e20]),
    clipper=st.sampled_from([ClipByGlobalNorm, ClipByValue]),
)
@settings(deadline=None, max_examples=60)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_norms_before_and_after_clipping_are_those_of_float64(place, gradients, bound, clipper):
    """What a clipper does to extreme gradients changes neither the norms before it nor spoils those after it."""
    gradients = [gradient.clone() for gradient in gradients]
    before = [norm(gradient) for gradient in gradients]
    with place():
        reading = reading_of(*gradients)
        reading.clip_(clipper(bound).clip_)
        read = numbers(reading)
    np.testing.assert_allclose(read["norms"], before, rtol=1e-5)
    # Half precision rounds each clipped number to three digits, and tiny ones to none.
    fine = [i for i, gradient in enumerate(gradients) if gradient.dtype not in {torch.float16, torch.bfloat16}]
    after = np.array([norm(gradient) for gradient in gradients])
    finite = [i for i in fine if np.isfinite(after[i])]
    np.testing.assert_allclose(read["clipped_norms"][finite], after[finite], rtol=1e-5, atol=1e-37)
    np.testing.assert_array_equal(np.isfinite(read["clipped_norms"]), np.isfinite(after))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stays_zero(dtype):
    """The norm of zeros, and of a tensor without elements, is exactly 0."""
    reading = reading_of(torch.zeros(3, dtype=dtype), torch.zeros(0, 4, dtype=dtype))
    assert numbers(reading)["norms"].tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("anywhere")
def test_no_gradient_at_all_has_no_norms(second_looks):
    """Without gradients the norms are empty; what goes along arrives, a clipper has nothing to do, nobody waits."""
    reading = reading_of(loss=torch.tensor([2.0]))
    reading.clip_(ClipByGlobalNorm(1.0).clip_)
    reading.send()
    assert not reading.under_way
    read = numbers(reading)
    assert (read["norms"].size, read["clipped_norms"].size) == (0, 0)
    assert read["loss"].tolist() == [2.0]
    assert second_looks == []


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30])
def test_a_sparse_gradient_is_measured_by_its_sums(factor):
    """Rows that came twice are added up before they are squared, however extreme."""
    embedding = nn.Embedding(6, 3, sparse=True)
    (embedding(torch.tensor([1, 1, 4])) * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    gradient = embedding.weight.grad * factor
    read = numbers(reading_of(gradient, torch.ones(4)))
    np.testing.assert_allclose(read["norms"], [norm(gradient), 2.0], rtol=1e-6)


@pytest.mark.usefixtures("anywhere")
def test_the_numbers_need_no_graph():
    """Gradients that are part of a graph (``create_graph=True``) are read without extending it."""
    gradient = (torch.ones(4, requires_grad=True) * 2e-30).detach().requires_grad_()
    np.testing.assert_allclose(numbers(reading_of(gradient))["norms"], [4e-30], rtol=1e-6)


@pytest.mark.usefixtures("anywhere")
def test_what_goes_along_comes_back_apart():
    """Vectors of any length and dtype arrive under their names, as float64."""
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    extras = {
        "weight_norms": torch.tensor([7.0, 8.0, 9.0]),
        "loss": torch.tensor([2.5], dtype=torch.float64, requires_grad=True).detach(),
        "scale": torch.tensor([0.5], dtype=torch.bfloat16),
        "learning_rates": torch.empty(0),
    }
    read = numbers(reading_of(*gradients, **extras))
    assert {name: part.tolist() for name, part in read.items()} == {
        "norms": [5.0, 1.0],
        "weight_norms": [7.0, 8.0, 9.0],
        "loss": [2.5],
        "scale": [0.5],
        "learning_rates": [],
    }
    assert {part.dtype for part in read.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("gradient", "looks"),
    [(1e30, [1]), (1e-30, [1]), (0.0, [1]), (float("inf"), [1]), (float("nan"), [1]), (1.0, [])],
)
def test_only_what_float32_cannot_hold_gets_a_second_look(second_looks, gradient, looks):
    """A second look takes the suspicious gradients alone."""
    numbers(reading_of(torch.ones(4), torch.full((4,), gradient), torch.ones(2)))
    assert second_looks == looks


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("gradient", [1e30, 1e-30, 0.0, float("inf"), float("nan")])
def test_norms_summed_in_float64_get_no_second_look(second_looks, gradient):
    """As on CUDA nothing is looked at twice, before clipping and after it."""
    reading = reading_of(torch.ones(4), torch.full((4,), gradient))
    reading.clip_(ClipByValue(0.5).clip_)
    numbers(reading)
    assert second_looks == []


def test_known_zeros_get_no_second_look(second_looks):
    """What is known to be zero is not looked at again as long as it reads zero, neither before nor after a clipper."""
    zeros = np.array([True, False])
    reading = Reading(measured(torch.zeros(4), torch.ones(4)), {}, zeros, dict)
    reading.clip_(ClipByGlobalNorm(1.0).clip_)
    assert numbers(reading)["norms"].tolist() == [0.0, 2.0]
    assert second_looks == []
    assert zeros.tolist() == [True, False]


def test_a_second_look_notes_what_is_zero():
    """Exact zeros become known; what is no longer zero, or was only too small, is not known."""
    zeros = np.array([False, True, False, True])
    gradients = [torch.zeros(4), torch.ones(4), torch.full((4,), 1e-30), torch.zeros(4)]
    read = numbers(Reading(measured(*gradients), {}, zeros, dict))
    np.testing.assert_allclose(read["norms"], [0.0, 2.0, 2e-30, 0.0], rtol=1e-6)
    assert zeros.tolist() == [True, False, False, True]


def test_what_a_clipper_makes_zero_is_not_known_to_be_zero():
    """The next reading finds a tiny gradient again, though a clipper wiped it out."""

    def wipes_out(norms: GradientNorms) -> Tensor:
        for gradient in norms.gradients:
            gradient.zero_()
        return torch.zeros_like(norms.norms)

    zeros = np.array([False])
    for _ in range(3):
        reading = Reading(measured(torch.full((4,), 1e-30)), {}, zeros, dict)
        reading.clip_(wipes_out)
        read = numbers(reading)
        np.testing.assert_allclose(read["norms"], [2e-30], rtol=1e-6)
        assert read["clipped_norms"].tolist() == [0.0]


def test_only_gradients_that_are_there_are_known_zeros():
    """What is known of a parameter whose gradient is None stays as it was."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(3)])
    model[1].grad = torch.zeros(2)
    index = index_parameters(find_layers(model), [model.parameters()])
    zeros = np.array([True, False, False])
    numbers(Reading(measure_gradients(index), {}, zeros, dict))
    assert zeros.tolist() == [True, True, False]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("gradient", [1.0, 1e30])
def test_a_clipper_sees_true_norms_once(gradient):
    """Norms that overflowed in float32 are replaced before the clipper sees them; it is called once."""
    calls = []
    reading = reading_of(torch.full((4,), gradient), torch.ones(4))
    reading.clip_(lambda norms: calls.append(norms.norms.tolist()) or norms.norms)
    numbers(reading)
    assert calls == [[pytest.approx(2 * gradient), 2.0]]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("gradient", [float("inf"), float("nan")])
def test_a_clipper_sees_what_is_not_finite(gradient):
    """Infinity and NaN are not taken for overflows."""
    calls = []
    reading = reading_of(torch.full((4,), gradient))
    reading.clip_(lambda norms: calls.append(norms.norms.tolist()) or norms.norms)
    numbers(reading)
    assert calls == [[pytest.approx(gradient, nan_ok=True)]]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_clipper_may_return_norms_of_any_precision(dtype):
    """A person's clipper that returns norms in the gradients' own half precision is heard as well."""
    reading = reading_of(torch.full((4,), 2.0), torch.ones(4))
    reading.clip_(lambda norms: norms.norms.to(dtype))
    assert numbers(reading)["clipped_norms"].tolist() == [4.0, 2.0]


@pytest.mark.usefixtures("late")
def test_as_on_cuda_one_transfer_and_nothing_asked_before_the_snapshot(transfers):
    """Everything goes in one transfer, and nobody waits for it before the numbers are asked for."""
    reading = reading_of(torch.ones(4), loss=torch.ones(1))
    assert transfers == []
    reading.send()
    assert transfers == ["sent"]
    assert reading.under_way
    numbers(reading)
    assert transfers == ["sent", "asked"]
    assert not reading.under_way
    numbers(reading)
    reading.send()
    assert transfers == ["sent", "asked"]


@pytest.mark.usefixtures("late")
def test_as_on_cuda_a_clipper_costs_no_second_transfer(transfers):
    """Norms before and after clipping go together, also those that someone else's clipping leaves."""
    gradient = torch.ones(4)
    reading = reading_of(gradient)
    reading.clip_(ClipByGlobalNorm(1.0).clip_)
    gradient.mul_(0.5)
    reading.measure_again()
    assert transfers == ["sent"]
    assert reading.under_way
    read = numbers(reading)
    assert read["norms"].tolist() == [2.0]
    assert read["clipped_norms"].tolist() == pytest.approx([0.5], rel=1e-5)
    assert transfers == ["sent", "asked"]


@pytest.mark.usefixtures("late")
def test_as_on_cuda_numbers_that_were_asked_for_early_are_completed():
    """A look between reading and someone else's clipping costs a transfer more and tells what was known then."""
    gradient = torch.ones(4)
    reading = reading_of(gradient, loss=torch.ones(1))
    assert "clipped_norms" not in numbers(reading)
    assert not reading.under_way
    gradient.mul_(0.5)
    reading.measure_again()
    assert reading.under_way
    read = numbers(reading)
    assert {name: part.tolist() for name, part in read.items()} == {
        "norms": [2.0],
        "clipped_norms": [1.0],
        "loss": [1.0],
    }
    assert not reading.under_way


def test_on_a_cpu_the_host_looks_at_once(transfers):
    """Nothing is ever under way; one transfer without a clipper, and one more for the norms after each clipping."""
    gradient = torch.ones(4)
    reading = reading_of(gradient, loss=torch.ones(1))
    assert transfers == ["sent", "asked"]
    assert not reading.under_way
    reading.clip_(ClipByGlobalNorm(1.0).clip_)
    assert transfers == ["sent", "asked"] * 2
    gradient.mul_(0.5)
    reading.measure_again()
    assert transfers == ["sent", "asked"] * 3
    assert not reading.under_way
    assert numbers(reading)["clipped_norms"].tolist() == pytest.approx([0.5], rel=1e-5)
    assert transfers == ["sent", "asked"] * 3


@pytest.mark.usefixtures("anywhere")
def test_the_snapshot_is_made_once_and_anew_after_clipping():
    """Who asks twice gets the same snapshot; after clipping there is another."""
    made = []

    def arrange(numbers: Mapping[str, np.ndarray]) -> object:
        made.append(sorted(numbers))
        return object()

    reading = Reading(measured(torch.ones(4)), {}, np.array([False]), arrange)
    assert reading.snapshot() is reading.snapshot()
    reading.measure_again()
    assert reading.snapshot() is reading.snapshot()
    assert made == [["norms"], ["clipped_norms", "norms"]]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("ask_first", [False, True])
def test_gradients_are_let_go_when_they_are_released(ask_first):
    """Asking for numbers keeps the gradients for someone else's clipping; the release frees them."""
    measurement = measured(torch.ones(4), torch.zeros(2))
    gradient = weakref.ref(measurement.gradients[0])
    measurement.index.parameters[0].grad = None
    reading = Reading(measurement, {}, np.array([False, False]), dict)
    del measurement
    if ask_first:
        numbers(reading)
    assert gradient() is not None
    reading.release()
    assert gradient() is None
    assert numbers(reading)["norms"].tolist() == [2.0, 0.0]


@pytest.mark.usefixtures("anywhere")
def test_measuring_again_lets_the_gradients_go():
    """After someone else's clipping was read nothing refers to the gradients."""
    measurement = measured(torch.ones(4))
    gradient = weakref.ref(measurement.gradients[0])
    measurement.index.parameters[0].grad = None
    reading = Reading(measurement, {}, np.array([False]), dict)
    del measurement
    reading.measure_again()
    assert gradient() is None


@pytest.mark.usefixtures("anywhere")
def test_after_the_release_nothing_is_measured_again(transfers):
    """Who calls too late gets the numbers that were known."""
    gradient = torch.ones(4)
    reading = reading_of(gradient)
    reading.release()
    gradient.mul_(0.5)
    reading.measure_again()
    assert list(numbers(reading)) == ["norms"]
    assert transfers.count("sent") == 1


@pytest.mark.usefixtures("anywhere")
def test_nobody_clips_after_the_step():
    """A clipper that comes after the gradients were let go is a mistake of ours."""
    reading = reading_of(torch.ones(4))
    reading.release()
    with pytest.raises(AssertionError, match="nobody clips after the step"):
        reading.clip_(ClipByGlobalNorm(1.0).clip_)


@pytest.mark.gpu
@pytest.mark.supports("several devices in one model")
@pytest.mark.parametrize("first", ["cpu", "cuda"])
@pytest.mark.parametrize("value", [1e30, 1e-30])
def test_extreme_gradients_on_a_cpu_beside_a_gpu_get_their_second_look(first, value):
    """Where only some gradients are on CUDA, those on the CPU are exact as well, whichever comes first."""
    places = [first, {"cpu": "cuda", "cuda": "cpu"}[first]]
    parameters = [nn.Parameter(torch.zeros(4, device=place)) for place in places]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    index = index_parameters(find_layers(nn.ParameterList(parameters)), [parameters])
    reading = Reading(measure_gradients(index), {}, np.array([False, False]), dict)
    reading.clip_(ClipByGlobalNorm(1.0).clip_)
    read = numbers(reading)
    np.testing.assert_allclose(read["norms"], [2 * value] * 2, rtol=1e-6)
    np.testing.assert_allclose(read["clipped_norms"], [norm(p.grad) for p in parameters], rtol=1e-5)
