"""The picture of each script of the gallery, from what it trained or with what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch, Report, default_rules, examine
from pages.gallery import Ran
from pages.panels import heatmaps, profiles, runs_in
from pages.pictures import Note

_BOTH = {"sigmoid": "sigmoid", "relu-he": "ReLU with he_init_"}


def linear_factor(ran: Ran) -> Figure:
    """Signal and gradient of the linear network, for both factors."""

    def examined(factor: float) -> Report:
        net = ran.names["network"](factor, 20)
        return examine(net, lambda net: net(torch.ones(1, 1)).sum(), rehearse=False)

    notes = {
        "weights of 0.5": [Note("what came back,\nhalved by each layer", (0.25, 0.78), (0.36, 0.9))],
        "weights of 1.5": [Note("what came back,\n1.5 times as much from each layer", (0.25, 0.12), (0.2, 0.5))],
    }
    return profiles({f"weights of {factor}": examined(factor) for factor in (0.5, 1.5)}, notes)


def activations(ran: Ran) -> Figure:
    """Four stacks: the slope alone tells nothing."""
    names = ran.names

    def examined(activation: type[nn.Module], change: Callable[[Any], object] | None) -> Report:
        net, (points, labels) = names["network"](activation, 20), names["batch"]()
        if change is not None:
            change(net)
        return examine(net, lambda net: nn.functional.cross_entropy(net(points), labels), rehearse=False)

    return profiles(
        {
            "sigmoid, slope at most 0.25": examined(nn.Sigmoid, None),
            "ReLU, slope 1, PyTorch's default": examined(nn.ReLU, None),
            "sigmoid, weights ten times as large": examined(nn.Sigmoid, names["large"]),
            "SELU, slope up to 1.76, he_init_": examined(nn.SELU, names["he_init_"]),
        }
    )


def initializations(ran: Ran) -> Figure:
    """Fifty ReLU layers under three initializations."""
    names = ran.names
    titles = {"default": "PyTorch's default", "he_init_": "he_init_", "2 x he_init_": "weights twice as large"}
    reports = {title: names["examined"](nn.ReLU, 50, names["INITIALIZERS"][scheme]) for scheme, title in titles.items()}
    return profiles(reports, columns=3)


def deep_sigmoid(ran: Ran) -> Figure:
    """What reaches each layer before training, plain and with three ways out."""
    names = ran.names
    images, labels = names["digits"]()

    def examined(name: str) -> Report:
        return examine(
            names["network"](name),
            lambda net: nn.functional.cross_entropy(net(images[:64]), labels[:64]),
            rehearse=False,
        )

    return profiles(
        {name: examined(name) for name in ("sigmoid", "with LayerNorm", "with BatchNorm", "with residuals")}
    )


def recurrent(ran: Ran) -> Figure:
    """What reaches each of 50 time steps."""
    networks = ran.names["NETWORKS"]
    names = ("RNN", "LSTM", "LSTM, orthogonal, forget bias 1")
    notes = {
        "RNN": [Note("of the first 30\nsteps of a sequence\nnothing is heard", (0.3, 0.2), (0.12, 0.5))],
        "LSTM, orthogonal, forget bias 1": [Note("a little is left", (0.4, 0.05), (0.3, 0.3))],
    }
    return heatmaps({name: ran.names["watched"](networks[name](), 50, 5) for name in names}, "time", notes, columns=3)


def optimizers(ran: Ran) -> Figure:
    """How far each optimizer moves each layer of the same network."""
    watches = {name: ran.names["watched"](make, 7, 61) for name, make in ran.names["OPTIMIZERS"].items()}
    notes = {
        "SGD": [Note("the first layers\nstay where they are", (0.5, 0.15), (0.25, 0.45))],
        "Adam": [Note("all move\nby the same", (0.6, 0.2), (0.3, 0.5))],
    }
    return heatmaps(watches, "updates", notes, columns=3)


def clipping(ran: Ran) -> Figure:
    """Norms in the first steps, without and with a clipper."""
    watches = {"without a clipper": GradWatch(), "with ClipByGlobalNorm(1.0)": GradWatch(clipper=ClipByGlobalNorm(1.0))}
    for name, watch in watches.items():
        ran.names["train"](watch, name, 20, ran.folder / "first")
    notes = {
        "without a clipper": [Note("this step overwrites\nthe weights", (0.075, 0.35), (0.25, 0.2))],
        "with ClipByGlobalNorm(1.0)": [Note("as large at first,\nand then smaller", (0.03, 0.35), (0.25, 0.2))],
    }
    return heatmaps(watches, notes=notes)


def clipping_compared(ran: Ran) -> Figure:
    """How far each clipper lets the optimizer move the weights."""
    clippers = ran.names["CLIPPERS"]
    names = {name: f"clipped: {name}" for name in clippers if name in {"by global norm 1", "adaptive (AGC)"}}
    names = {"none": "not clipped", **names, "quantile (AutoClip)": "clipped: quantile (AutoClip)"}
    notes = {"clipped: adaptive (AGC)": [Note("a step larger than\nthe weights themselves", (0.15, 0.7), (0.4, 0.4))]}
    return heatmaps({names[name]: ran.names["train"](clippers[name], 200)[0] for name in names}, "updates", notes)


def sigmoid_vs_relu(ran: Ran) -> Figure:
    """The three networks."""
    return heatmaps(runs_in(ran.folder, {name: name for name in ran.names["NETWORKS"]}), "delta", columns=3)


def examine_sick_model(ran: Ran) -> Figure:
    """Before and after the first remedy."""
    sick, look = ran.names["SickNet"], ran.names["look"]
    before, cured = look(sick(16)), sick(16)
    before.remedies[0].apply_(cured)
    return profiles({"as it was": before, "after the first remedy": look(cured)})


def own_rule_and_sink(ran: Ran) -> Figure:
    """The layer that the rule names."""
    watch = GradWatch(rules=[*default_rules(), ran.names["one_layer_dominates"]])
    ran.names["train"](watch, 8)
    notes = {"one_layer_dominates": [Note("the layer that the rule names", (0.6, 0.45), (0.5, 0.12))]}
    return heatmaps({"one_layer_dominates": watch}, notes=notes)


def cli_yaml(ran: Ran) -> Figure:
    """What the run of the YAML file has written."""
    notes = {"clipped": [Note("large at first, before clipping", (0.01, 0.3), (0.15, 0.12))]}
    return heatmaps(runs_in(ran.folder, {"version_0": "clipped"}), notes=notes)


def several_processes(ran: Ran) -> Figure:
    """What rank zero has written for both."""
    return heatmaps(runs_in(ran.folder, {"version_0": "both"}), "delta")


def fabric_loop(ran: Ran) -> Figure:
    """Both networks."""
    return heatmaps(runs_in(ran.folder, _BOTH), "delta")


def accelerate_loop(ran: Ran) -> Figure:
    """Norms as they are read after their clipping and before ours."""
    names = {"clip_grad_norm_": "with accelerator.clip_grad_norm_", "clipper": "with GradWatch(clipper=...)"}
    notes = {
        names["clip_grad_norm_"]: [Note("clipped before it is read", (0.03, 0.25), (0.2, 0.4))],
        names["clipper"]: [
            Note("read, and then clipped", (0.01, 0.25), (0.2, 0.4)),
            Note("learned: little left to change", (0.9, 0.6), (0.3, 0.8)),
        ],
    }
    return heatmaps(runs_in(ran.folder, names), notes=notes)


def hugging_face_trainer(ran: Ran) -> Figure:
    """The step that was one too many, and the run with the learning rate that was meant."""
    return heatmaps(runs_in(ran.folder, {"slip": "learning rate 1", "meant": "learning rate 1e-3"}), "updates")


def two_optimizers(ran: Ran) -> Figure:
    """Both generators."""
    return heatmaps(runs_in(ran.folder, _BOTH), "delta")


def mixed_precision(ran: Ran) -> Figure:
    """Zeros without a scaler."""
    names = {"unscaled": "without a scaler", "scaled": "with a GradScaler"}
    notes = {
        names["unscaled"]: [Note("exactly zero: the gradients are\ntoo small for float16", (0.3, 0.2), (0.3, 0.6))]
    }
    return heatmaps(runs_in(ran.folder, names), "updates", notes)


def sigmoid_and_relu(ran: Ran) -> Figure:
    """Both networks of the notebook."""
    return heatmaps({"sigmoid": ran.names["sigmoid"], "ReLU with he_init_": ran.names["relu"]}, "delta")


def powers_of_the_weight(ran: Ran) -> Figure:
    """The two reports that the notebook draws."""
    reports = ran.names["reports"]
    return profiles({f"w = {weight}": reports[weight] for weight in (0.5, 1.5)})


def examined_and_cured(ran: Ran) -> Figure:
    """Before and after."""
    return heatmaps({"as it was": ran.names["before"], "cured": ran.names["after"]}, "delta")


FIGURES: dict[str, Callable[[Ran], Figure]] = {
    draw.__name__: draw
    for draw in (
        linear_factor,
        activations,
        initializations,
        deep_sigmoid,
        recurrent,
        optimizers,
        clipping,
        clipping_compared,
        sigmoid_vs_relu,
        examine_sick_model,
        own_rule_and_sink,
        cli_yaml,
        several_processes,
        fabric_loop,
        accelerate_loop,
        hugging_face_trainer,
        two_optimizers,
        mixed_precision,
        sigmoid_and_relu,
        powers_of_the_weight,
        examined_and_cured,
    )
}
