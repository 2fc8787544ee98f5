"""Plain stacks: what depth does to them, under SGD and under Adam."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.ward.case import Case
from benchmarks.ward.networks import Functional
from benchmarks.ward.recipes import Recipe, early, sick, well
from lightning_gradwatch import Symptom

# What cures each stack under its optimizer: a quick grid of ours.
_RATES = {"sgd": 0.02, "adam": 1e-3}


def _functional_sigmoid(inputs: int, outputs: int) -> Functional:
    return Functional([inputs, *[32] * 10, outputs], torch.sigmoid)


def _vanishing() -> list[tuple[str, Recipe, tuple[str, ...], dict[str, object]]]:
    he: dict[str, object] = {"scheme": "he", "gain": 1.0}
    relu: dict[str, object] = {"activation": "relu", "scheme": "he"}
    return [
        ("sigmoid-10-xavier", Recipe(depth=10, activation="sigmoid", scheme="xavier"), early(10), relu),
        ("sigmoid-6-default", Recipe(depth=6, activation="sigmoid"), early(6), relu),
        ("relu-12-default", Recipe(depth=12), early(12), he),
        ("relu-20-default", Recipe(depth=20), early(20), he),
        ("relu-10-uniform", Recipe(depth=10, width=64, scheme="uniform", gain=0.05), early(10), he),
        ("relu-14-no-bias", Recipe(depth=14, more={"bias": False}), early(14), he),
        ("tanh-20-default", Recipe(depth=20, activation="tanh"), early(20), {"scheme": "xavier"}),
        ("gelu-14-default", Recipe(depth=14, activation="gelu"), early(14), {"scheme": "he", "gain": 1.07}),
        (
            "function-sigmoid-10",
            Recipe(network=_functional_sigmoid),
            ("layers.0", "layers.1", "layers.2", "layers.3"),
            {"network": None, "depth": 10, "scheme": "he"},
        ),
    ]


def _exploding() -> list[tuple[str, Recipe, tuple[str, ...], dict[str, object]]]:
    return [
        ("relu-16-2xhe", Recipe(depth=16, scheme="he", gain=2.0), ("*",), {"gain": 1.0}),
        ("relu-24-1.6xhe", Recipe(depth=24, scheme="he", gain=1.6), ("*",), {"gain": 1.0}),
        (
            "tanh-16-normal",
            Recipe(depth=16, width=48, activation="tanh", scheme="normal", gain=1.0),
            ("*",),
            {"scheme": "xavier"},
        ),
    ]


def _depth_cases() -> list[Case]:
    found = []
    for symptom, several in ((Symptom.VANISHING, _vanishing()), (Symptom.EXPLODING, _exploding())):
        for name, recipe, culprits, cure in several:
            for optimizer, rate in _RATES.items():
                under = replace(recipe, optimizer=optimizer, rate=rate)
                under = replace(under, num_steps=600)
                decided = "start" if optimizer == "sgd" else "outcome"
                found.append(sick(f"dense/{name}/{optimizer}", under, symptom, culprits, cure, decided=decided))
    return found


def _healthy_cases() -> list[Case]:
    deep = "a deep tanh or SELU stack that learns"
    stacks = {
        "relu-16-he": (Recipe(depth=16, scheme="he"), ""),
        "tanh-16-xavier": (Recipe(depth=16, activation="tanh", scheme="xavier"), deep),
        "selu-16-lecun": (Recipe(depth=16, activation="selu", scheme="lecun"), deep),
        "relu-3-default": (Recipe(depth=3), ""),
        "relu-12-batchnorm": (Recipe(depth=12, more={"norm": "batch"}), "BatchNorm"),
        "sigmoid-8-batchnorm": (Recipe(depth=8, activation="sigmoid", more={"norm": "batch"}), "BatchNorm"),
        "relu-20-residual": (Recipe(depth=20, more={"residual": True, "norm": "layer"}), ""),
    }
    return [
        well(f"dense/{name}/{optimizer}", replace(recipe, optimizer=optimizer, rate=rate, num_steps=900), negative)
        for name, (recipe, negative) in stacks.items()
        for optimizer, rate in _RATES.items()
    ]


def _hard_tasks() -> list[Case]:
    """Make tasks of whose answer nothing is linear: for some hundred steps the loss all but stays where it is."""
    tanh = Recipe(data="product", depth=3, activation="tanh", rate=5e-4, num_steps=1200)
    relu = Recipe(data="product", depth=2, width=64, optimizer="sgd", rate=0.05, num_steps=1200)
    recipes = {
        "product-tanh-3/adam": tanh,
        "product-tanh-3/momentum": replace(tanh, optimizer="momentum", rate=0.02),
        "product-relu-2/sgd": relu,
        "product-relu-2/momentum": replace(relu, optimizer="momentum", rate=5e-3),
    }
    return [well(f"dense/{name}", recipe, "a hard task whose loss falls slowly") for name, recipe in recipes.items()]


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    odd_size, steady = "a very wide or narrow network", "RMSprop or Adagrad"
    narrow = Recipe(data="circle", depth=6, width=6, activation="tanh", rate=5e-3, num_steps=600)
    adagrad = Recipe(depth=5, activation="elu", optimizer="adagrad", rate=1e-2)
    return (
        *_depth_cases(),
        *_healthy_cases(),
        *_hard_tasks(),
        well("dense/relu-6-default/adam", Recipe(depth=6), "a default ReLU stack that Adam saves"),
        well("dense/tanh-6-narrow/adam", narrow, odd_size),
        well("dense/relu-3-wide/adam", Recipe(depth=3, width=512, num_steps=150), odd_size),
        well("dense/gelu-6-he/adamw", Recipe(depth=6, activation="gelu", scheme="he", optimizer="adamw")),
        well("dense/silu-4/rmsprop", Recipe(depth=4, activation="silu", optimizer="rmsprop"), steady),
        well("dense/elu-5/adagrad", adagrad, steady),
    )
