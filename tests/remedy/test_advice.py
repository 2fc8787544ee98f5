"""Test ``lightning_gradwatch.remedy.advice``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lightning_gradwatch
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.graph import read_topology
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.advice import Advice, advise
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.remedy.remedy import Remedy

WIDTH = 128


def deep(activation: Callable[[], nn.Module] = nn.ReLU, std: float | None = None, depth: int = 6) -> nn.Sequential:
    """Make a deep net whose weights have a given standard deviation."""
    blocks = [module for _ in range(depth) for module in (nn.Linear(WIDTH, WIDTH), activation())]
    model = nn.Sequential(*blocks, nn.Linear(WIDTH, 2))
    if std is not None:
        for layer in model[:-1:2]:
            nn.init.normal_(layer.weight, std=std)
    return model


def advice_for(model: nn.Module, symptom: Symptom, evidence: dict | None = None, **more: object) -> Advice:
    """Ask for advice as a reading does: the sick layers are all but the last."""
    layers = find_layers(model)
    topology = read_topology(model(torch.randn(4, WIDTH)).sum(), layers)
    descriptions = describe_layers(model, layers, topology)
    names = tuple(layer.name for layer in layers)
    diagnosis = Diagnosis("a.rule", symptom, layers=names[:-1] or names, evidence=evidence or {})
    return advise(diagnosis, model, layers, descriptions, **more)


def run(code: str, model: nn.Module) -> dict[str, object]:
    """Run lines as a person would paste them, with ``model`` in scope."""
    names: dict[str, object] = {"model": model}
    exec(code, names)
    return names


def another_activation(advice: Advice) -> Remedy:
    """Return the first remedy that puts another activation in the place of one."""
    return next(remedy for remedy in advice.remedies if "instead of" in remedy.title)


def stds(model: nn.Module) -> list[float]:
    """Measure the standard deviation of every matrix but the last."""
    return [float(p.detach().std()) for p in model.parameters() if p.ndim > 1][:-1]


@pytest.mark.parametrize(
    ("activation", "name", "std"),
    [
        (nn.ReLU, "He", (2 / WIDTH) ** 0.5),
        (nn.GELU, "He", 1.468 / WIDTH**0.5),
        (nn.Tanh, "Xavier", (1 / WIDTH) ** 0.5),
        (nn.SELU, "LeCun", (1 / WIDTH) ** 0.5),
    ],
)
@pytest.mark.parametrize(("symptom", "sick_std"), [(Symptom.VANISHING, 0.01), (Symptom.EXPLODING, 1.0)])
def test_weights_that_miss_their_scheme_are_initialized_anew(activation, name, std, symptom, sick_std):
    """Code and ``apply_`` both give a fresh model the standard deviation that the remedy names, and zero biases.

    An output layer that somebody has made otherwise than PyTorch does is left alone.
    """
    model = deep(activation, sick_std)
    nn.init.orthogonal_(model[-1].weight)
    remedy = advice_for(model, symptom).remedies[0]
    assert remedy.title == f"{name} initialization of 6 layers, then start again"
    assert f"std {sick_std:.2g}"[:6] in remedy.reason
    assert f"{name} gives {std:.2g}" in remedy.reason
    assert remedy.needs_restart
    pasted, applied, untouched = deep(activation), deep(activation), deep(activation)
    last = [model[-1].weight.detach().clone() for model in (pasted, applied)]
    run(remedy.code, pasted)
    remedy.apply_(applied)
    for model, weight in zip((pasted, applied), last, strict=True):
        assert stds(model) == pytest.approx([std] * 6, rel=0.03)
        assert all(layer.bias.abs().sum() == 0 for layer in model[:-1:2])
        assert torch.equal(model[-1].weight, weight)
        assert [type(m) for m in model] == [type(m) for m in untouched]


def test_code_and_apply_do_the_same_to_the_bit():
    """From the same seed the pasted lines and ``apply_`` give the same weights."""
    remedy = advice_for(deep(nn.ReLU, 0.01), Symptom.VANISHING).remedies[0]
    pasted, applied = deep(), deep()
    applied.load_state_dict(pasted.state_dict())
    torch.manual_seed(1)
    run(remedy.code, pasted)
    torch.manual_seed(1)
    remedy.apply_(applied)
    assert all(torch.equal(a, b) for a, b in zip(pasted.parameters(), applied.parameters(), strict=True))


def test_an_output_layer_at_the_default_is_initialized_with_the_others():
    """Its gain of 1/sqrt(3) weakens what goes back through it; alone it is no reason to start again."""
    remedy = advice_for(deep(nn.ReLU, 0.01), Symptom.VANISHING).remedies[0]
    assert remedy.title == "He initialization of 7 layers, then start again"
    applied = deep()
    remedy.apply_(applied)
    assert float(applied[-1].weight.detach().std()) == pytest.approx((2 / (WIDTH + 2)) ** 0.5, rel=0.15)
    fine = advice_for(deep(nn.ReLU, (2 / WIDTH) ** 0.5), Symptom.VANISHING).remedies
    assert not any("initialization of" in remedy.title for remedy in fine)


def test_what_lets_a_signal_through_besides_follows_the_weights():
    """Norms between the layers, and ways around them; for sigmoids the activations come first and last."""
    starts = [r.title.split(" ")[0] for r in advice_for(deep(nn.ReLU, 0.01), Symptom.VANISHING).remedies]
    assert starts == ["He", "nn.BatchNorm1d", "a"]
    starts = [r.title.split(" ")[0] for r in advice_for(deep(nn.Sigmoid), Symptom.VANISHING).remedies]
    assert starts == ["nn.BatchNorm1d", "ReLU", "a", "SELU"]


def test_weights_that_have_their_scheme_are_left():
    """An initialization that would change nothing is not advised; the words still say how the weights stand."""
    model = deep(nn.ReLU, (2 / WIDTH) ** 0.5)
    nn.init.constant_(model[0].weight, 0.12)
    advice = advice_for(model, Symptom.VANISHING)
    assert not any("initialization" in remedy.title for remedy in advice.remedies)
    assert advice.weights == "weights of 0 have std 0.12, as He gives"


def test_several_activations_get_their_own_scheme():
    """A net of two activations is initialized with both schemes; the more frequent one gives the title."""

    def build():
        return nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh(),
            nn.Linear(WIDTH, 2),
        )  # fmt: skip

    model = build()
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.01)
    remedy = advice_for(model, Symptom.VANISHING).remedies[0]
    assert remedy.title == "He initialization of 3 layers, then start again"
    he, xavier = (2 / WIDTH) ** 0.5, (1 / WIDTH) ** 0.5
    pasted, applied = build(), build()
    run(remedy.code, pasted)
    remedy.apply_(applied)
    assert stds(pasted) == pytest.approx([he, he, xavier], rel=0.03)
    assert stds(applied) == pytest.approx([he, he, xavier], rel=0.03)


class Bare(nn.Module):
    """A model with a weight of its own, without a bias, and a layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(WIDTH, WIDTH))
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 2)
        nn.init.normal_(self.hidden.weight, std=0.01)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(torch.relu(x @ self.weight.T))))


def test_the_code_reaches_the_model_itself():
    """The model's own weight, which has no bias beside it, is initialized as any layer's."""
    remedy = advice_for(Bare(), Symptom.VANISHING).remedies[0]
    pasted, applied = Bare(), Bare()
    run(remedy.code, pasted)
    remedy.apply_(applied)
    for model in (pasted, applied):
        assert stds(model) == pytest.approx([(2 / WIDTH) ** 0.5] * 2, rel=0.03)


def test_sigmoids_are_replaced():
    """A deep sigmoid net gets ReLU and He initialization; its output's sigmoid, which makes probabilities, stays."""

    def build():
        model = deep(nn.Sigmoid)
        model.append(nn.Sigmoid())
        return model

    remedy = another_activation(advice_for(build(), Symptom.VANISHING))
    assert remedy.title == "ReLU instead of sigmoid after 6 layers, with He initialization, then start again"
    applied, pasted = build(), build()
    remedy.apply_(applied)
    assert [type(m) for m in applied[1::2]] == [*[nn.ReLU] * 6, nn.Sigmoid]
    run(remedy.code, pasted)
    for model in (applied, pasted):
        assert stds(model) == pytest.approx([(2 / WIDTH) ** 0.5] * 6, rel=0.03)


def test_a_sigmoid_that_is_used_twice_is_replaced_twice():
    """One module in several places of a net is replaced in each."""

    def build():
        shared = nn.Sigmoid()
        blocks = [module for _ in range(4) for module in (nn.Linear(WIDTH, WIDTH), shared)]
        return nn.Sequential(*blocks, nn.Linear(WIDTH, 2))

    remedy = another_activation(advice_for(build(), Symptom.DEAD))
    model = build()
    remedy.apply_(model)
    assert [type(m) for m in model[1::2]] == [nn.ReLU] * 4


class Late(nn.Module):
    """A net whose one sigmoid is registered behind all layers, in a block of its own or called as a function."""

    def __init__(self, function=None):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(4)])
        self.head = nn.Linear(WIDTH, 2)
        self.activation = None if function else nn.Sigmoid()
        self.function = function

    def forward(self, x):
        for layer in self.layers:
            x = (self.function or self.activation)(layer(x))
        return self.head(x)


def test_a_sigmoid_registered_behind_all_layers_is_found():
    """Where no sigmoid stands behind a sick layer, those of the model are meant."""
    model = Late()
    another_activation(advice_for(model, Symptom.VANISHING)).apply_(model)
    assert isinstance(model.activation, nn.ReLU)


def test_a_sigmoid_that_is_a_function_is_refused_in_words():
    """``apply_`` cannot edit the source and says what to edit; the model stays as it was."""
    model = Late(torch.sigmoid)
    remedy = another_activation(advice_for(model, Symptom.VANISHING))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"torch.sigmoid\(...\) -> torch.relu\(...\)"):
        remedy.apply_(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    run(remedy.code, model)
    assert [float(layer.weight.detach().std()) for layer in model.layers] == pytest.approx(
        [(2 / WIDTH) ** 0.5] * 4, rel=0.03
    )


def test_frozen_layers_are_not_initialized():
    """A frozen sigmoid layer keeps its weights; its sigmoid is replaced like the others."""
    model = deep(nn.Sigmoid)
    model[2].requires_grad_(requires_grad=False)
    remedy = advice_for(model, Symptom.VANISHING).remedies[0]
    frozen = model[2].weight.detach().clone()
    remedy.apply_(model)
    run(remedy.code, model)
    assert torch.equal(model[2].weight, frozen)


def test_parametrized_layers_get_another_activation_only():
    """Where no weight may be initialized, the remedy does not speak of initialization, and its code still runs."""

    def build():
        blocks = [m for _ in range(3) for m in (parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Sigmoid())]
        return nn.Sequential(*blocks, nn.Linear(WIDTH, 2))

    advice = advice_for(build(), Symptom.VANISHING)
    assert advice.weights.startswith("weights of 0 cannot be judged or initialized anew: its weight is parametrized")
    remedy = another_activation(advice)
    assert remedy.title == "ReLU instead of sigmoid after 3 layers, then start again"
    model = build()
    before = [p.detach().clone() for p in model.parameters()]
    remedy.apply_(model)
    run(remedy.code, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [type(m) for m in model[1::2]] == [nn.ReLU] * 3


def test_tied_layers_are_told_and_left():
    """A tied weight is named with its reason and is not among the layers to initialize."""
    model = deep(nn.ReLU, 0.01, depth=3)
    model[2].weight = model[0].weight
    advice = advice_for(model, Symptom.VANISHING)
    assert advice.weights.endswith("not to be initialized anew: its weight is tied: another module uses it too")
    assert advice.remedies[0].title == "He initialization of 2 layers, then start again"
    assert "'4'" in advice.remedies[0].code


def test_the_standings_are_numbers_that_a_program_can_read():
    """Of each layer the measured and the usual standard deviations are told, and why it is left where it is."""
    model = deep(nn.ReLU, 0.01, depth=3)
    model[2].weight = model[0].weight
    advice = advice_for(model, Symptom.VANISHING)
    assert list(advice.standings) == ["0", "4"]
    standing = advice.standings["4"]
    assert standing["std"] == pytest.approx(0.01, rel=0.05)
    assert [standing["he"], standing["xavier"]] == pytest.approx([(2 / WIDTH) ** 0.5, (1 / WIDTH) ** 0.5])
    assert standing["refusal"] == ""
    assert advice.standings["0"]["refusal"] == "its weight is tied: another module uses it too"
    assert Advice().standings == {}


def test_the_code_names_what_it_leaves_out():
    """The lines to paste begin with a comment for each refused layer, and they run."""
    model = deep(nn.ReLU, 0.01, depth=4)
    model[2].weight = model[0].weight
    code = advice_for(model, Symptom.VANISHING).remedies[0].code
    reason = "its weight is tied: another module uses it too"
    assert code.splitlines()[:2] == [
        f"# left out: 0, {reason}",
        "from torch import nn",
    ]
    before = model[0].weight.detach().clone()
    run(code, model)
    assert torch.equal(model[0].weight, before)
    assert float(model[4].weight.detach().std()) == pytest.approx((2 / WIDTH) ** 0.5, rel=0.05)
    assert "left out" not in advice_for(deep(nn.ReLU, 0.01), Symptom.VANISHING).remedies[0].code


def test_exploding_gradients_may_be_clipped_or_slowed():
    """Beside the weights, a clipper is offered, and a learning rate where the step is known."""
    remedies = advice_for(deep(), Symptom.EXPLODING, {"update_ratio": 0.5, "learning_rate": 0.1}).remedies
    rate, clip = remedies
    assert clip.clipper == ClipByGlobalNorm(1.0)
    names = {name: getattr(lightning_gradwatch, name) for name in ("GradWatch", "ClipByGlobalNorm")}
    assert isinstance(eval(clip.code, names), lightning_gradwatch.GradWatch)
    assert rate.optimizer_changes == {"lr": 0.002}
    assert "0.002 instead of 0.1" in rate.title
    without = advice_for(deep(), Symptom.EXPLODING).remedies
    assert [remedy.optimizer_changes for remedy in without if remedy.optimizer_changes] == []


def test_what_is_done_already_is_not_advised():
    """Who clips or skips is not told to."""
    assert not any(r.clipper for r in advice_for(deep(), Symptom.EXPLODING, clips=True).remedies)
    skipping = advice_for(deep(), Symptom.NON_FINITE, skips=True).remedies
    assert [r.trainer_kwargs for r in skipping] == [{"detect_anomaly": True}]


def test_non_finite_gradients_may_be_skipped_or_traced():
    """A step can be dropped, and anomaly mode names the operation; both lines run."""
    skip, find = advice_for(deep(), Symptom.NON_FINITE).remedies
    assert isinstance(eval(skip.code, {"GradWatch": lightning_gradwatch.GradWatch}), lightning_gradwatch.GradWatch)
    assert find.trainer_kwargs == {"detect_anomaly": True}


def test_what_exploded_before_it_was_infinite_is_advised_as_exploding():
    """Where the readings before had exploded, clipping is the way out, and skipping beside it."""
    remedies = advice_for(deep(Cosine), Symptom.NON_FINITE, {"exploded_before": True}).remedies
    assert [bool(r.clipper) for r in remedies] == [True, False]


def test_weights_are_judged_by_what_they_were_before_the_step():
    """A step that overwrote the weights is diagnosed afterwards; the weights before it tell the cause."""
    model = deep(nn.ReLU, 100.0)
    names = [layer.name for layer in find_layers(model)]
    remedies = advice_for(model, Symptom.EXPLODING, weights_before=dict.fromkeys(names, 0.1)).remedies
    assert not any("initialization" in r.title for r in remedies)
    assert any(r.clipper for r in remedies)


class Cosine(nn.Module):
    """An activation that no scheme is known for."""

    def forward(self, x):
        return torch.cos(x)


def test_an_unknown_activation_gets_no_scheme():
    """Where it is not known what keeps the signal, no initialization is advised."""
    assert advice_for(deep(Cosine, 0.01), Symptom.VANISHING).remedies == ()


@pytest.mark.parametrize("symptom", list(Symptom))
def test_every_symptom_has_a_way_out_in_one_line(symptom):
    """Whatever is wrong, something can be done; a title is one line and a reason says why."""
    evidence = {"dead_units": "0"} if symptom is Symptom.DEAD else {}
    remedies = advice_for(deep(nn.ReLU, 0.01), symptom, evidence).remedies
    assert remedies
    assert all("\n" not in remedy.title + remedy.reason and remedy.title and remedy.reason for remedy in remedies)


@pytest.mark.parametrize("symptom", [Symptom.SPIKE, Symptom.DISCONNECTED])
def test_weights_do_not_explain_a_spike_or_a_cut(symptom):
    """However small the weights are, they are not named for what they cannot cause."""
    assert advice_for(deep(nn.ReLU, 0.01), symptom).weights == ""


def test_a_model_of_norms_only_has_no_weights_to_speak_of():
    """Without a weight matrix nothing is said."""
    assert advice_for(nn.Sequential(nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)), Symptom.VANISHING) == Advice()


def test_layers_that_are_gone_are_passed_over():
    """A diagnosis of a layer that the model no longer has is answered from the rest."""
    model = deep(nn.ReLU, 0.01)
    layers = find_layers(model)
    described = describe_layers(model, layers, read_topology(model(torch.randn(4, WIDTH)).sum(), layers))
    assert advise(Diagnosis("a.rule", Symptom.VANISHING, layers=("gone",)), model, layers, described) == Advice()


def test_a_notice_asks_for_another_start_only_if_the_loss_stays_flat():
    """What copes with its profile may go on; a warning is told straight."""
    model = deep(nn.ReLU, 0.01)
    layers = find_layers(model)
    descriptions = describe_layers(model, layers, read_topology(model(torch.randn(4, WIDTH)).sum(), layers))
    for severity, start in (("notice", "if the loss stays flat: He initialization"), ("warning", "He initialization")):
        sick = Diagnosis("a.rule", Symptom.VANISHING, severity, layers=tuple(layer.name for layer in layers[:-1]))
        assert advise(sick, model, layers, descriptions).remedies[0].title.startswith(start)


def test_weights_that_training_blew_up_are_told_from_the_first_reading():
    """With the sizes of the first reading no initialization is advised; without them there is no other reason."""
    small = {str(place): 0.05 for place in range(0, 13, 2)}
    large = dict.fromkeys(small, 5.0)
    for first, advised in ((small, False), (large, True), (None, True)):
        given = advice_for(deep(nn.ReLU, 5.0), Symptom.EXPLODING, weights_before=large, weights_at_first=first)
        assert any("initialization" in remedy.title for remedy in given.remedies) == advised
        assert ("training has made" in given.weights) == (not advised)


def test_weights_that_are_nan_are_told_from_the_first_reading():
    """After an overflow only the sizes of the first reading tell that the weights were too large from the start."""
    model = deep(nn.ReLU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    large = {str(place): 1.0 for place in range(0, 13, 2)}
    assert not any("He" in remedy.title for remedy in advice_for(model, Symptom.NON_FINITE).remedies)
    given = advice_for(model, Symptom.NON_FINITE, weights_at_first=large)
    assert given.remedies[0].title.startswith("He initialization of 6 layers")
    assert given.weights == "weights of 0 have std 1, He would give 0.12"


class CallsLeaky(nn.Module):
    """Calls leaky ReLUs of different slopes as functions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.first(x), 0.2)
        return self.head(nn.functional.leaky_relu(self.second(x), 1 / 3))


@pytest.mark.parametrize(
    ("model", "slopes"),
    [(deep(lambda: nn.LeakyReLU(0.5)), [0.5] * 6), (deep(nn.PReLU), [0.25] * 6), (CallsLeaky(), [0.2, 0.333])],
    ids=["module", "learned", "function"],
)
def test_the_leaky_slope_is_counted_and_the_code_does_what_apply_does(model, slopes):
    """He is sqrt(2 / ((1 + a^2) fan_in)) there; lines and ``apply_`` leave the same weights under the same seed."""
    advice = advice_for(model, Symptom.VANISHING)
    remedy = advice.remedies[0]
    assert [round(s["slope"], 3) for s in advice.standings.values()] == slopes
    torch.manual_seed(0)
    run(remedy.code, model)
    pasted = [parameter.detach().clone() for parameter in model.parameters()]
    torch.manual_seed(0)
    remedy.apply_(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pasted, strict=True))
    expected = [(2 / ((1 + slope**2) * WIDTH)) ** 0.5 for slope in slopes]
    assert stds(model) == pytest.approx(expected, rel=0.03)


def test_behind_a_batch_norm_no_weight_is_initialized_anew():
    """It takes the size of the weight away again."""
    blocks = [m for _ in range(6) for m in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())]
    model = nn.Sequential(*blocks, nn.Linear(WIDTH, 2))
    for symptom in (Symptom.VANISHING, Symptom.DEAD):
        titles = [r.title for r in advice_for(model, symptom, {"dead_units": "0"}).remedies]
        assert not any("initialization" in title for title in titles)


def test_weights_at_the_default_explode_nowhere():
    """The default of a layer with one input is large beside Xavier; the learning rate is what is too high."""
    model = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))
    layers = find_layers(model)
    described = describe_layers(model, layers, read_topology(model(torch.randn(4, 1)).sum(), layers))
    sick = Diagnosis(
        "exploding.update", Symptom.EXPLODING, layers=("0",), evidence={"update_ratio": 50.0, "learning_rate": 1.0}
    )
    first, *_ = advise(sick, model, layers, described).remedies
    assert first.optimizer_changes == {"lr": 2e-4}
    names = {"optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}
    exec(first.code, names)
    assert names["optimizer"].param_groups[0]["lr"] == 2e-4


def test_a_network_that_learns_is_not_thrown_away():
    """A notice whose loss falls puts what goes on before what starts again."""
    model = deep(nn.ReLU, 1.0)
    layers = find_layers(model)
    described = describe_layers(model, layers, read_topology(model(torch.randn(4, WIDTH)).sum(), layers))
    names = tuple(layer.name for layer in layers[:-1])
    learns, rests = (
        Diagnosis("exploding.depth", Symptom.EXPLODING, "notice", layers=names, evidence={"loss_has_fallen": fallen})
        for fallen in (True, None)
    )
    assert [r.needs_restart for r in advise(learns, model, layers, described).remedies] == [False, True]
    assert [r.needs_restart for r in advise(rests, model, layers, described).remedies] == [True, False]
