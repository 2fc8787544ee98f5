"""The pictures of the pages: ``watch.plot()``, with a word at what is to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from lightning_gradwatch import GradWatch


class Note(NamedTuple):
    """A word with an arrow.

    Attributes:
        text: What it says.
        at: Where the arrow points, in shares of the plot from its upper left corner.
        where: Where the words stand.
    """

    text: str
    at: tuple[float, float]
    where: tuple[float, float]


# Of each case the quantities that are drawn, and what is to be seen in them.
PICTURES: dict[str, dict[str, list[Note]]] = {
    "healthy": {"norms": [Note("one calm color, top to bottom,\nleft to right", (0.5, 0.3), (0.5, 0.6))]},
    "vanishing": {
        "norms": [
            Note("the layers at the input\nget nothing: dark blue", (0.3, 0.15), (0.45, 0.25)),
            Note("the last layers learn", (0.3, 0.97), (0.45, 0.8)),
        ],
        "delta": [Note("lighter by the same step\nfrom layer to layer: a factor", (0.3, 0.45), (0.45, 0.3))],
    },
    "vanishing-relu": {
        "norms": [Note("nearly the same in all layers:\nweight gradients are blind to this", (0.5, 0.3), (0.4, 0.55))],
        "delta": [Note("what reaches each layer fades\non its way back to the input", (0.4, 0.2), (0.4, 0.5))],
    },
    "vanishing-time": {"time": [Note("the first time steps\nget nothing", (0.5, 0.1), (0.5, 0.35))]},
    "exploding": {
        "norms": [Note("red in every layer", (0.2, 0.4), (0.4, 0.25))],
        "delta": [Note("redder towards the input:\nit grows on its way back", (0.3, 0.1), (0.4, 0.4))],
    },
    "non_finite": {"norms": [Note("from here on every\ngradient is NaN", (0.68, 0.3), (0.2, 0.4))]},
    "non_finite-skip": {"norms": [Note("one step dropped,\nthe run goes on", (0.675, 0.3), (0.15, 0.4))]},
    "spike": {"norms": [Note("one column stands out,\nin all layers at once", (0.67, 0.4), (0.15, 0.55))]},
    "dead": {"norms": [Note("grey: exactly zero,\nnot merely small", (0.4, 0.3), (0.5, 0.5))]},
    "disconnected": {"norms": [Note("paper: no gradient at all\n(None), as if not there", (0.4, 0.25), (0.5, 0.65))]},
}


def draw(name: str, watch: GradWatch, folder: Path) -> list[Path]:
    """Draw the pictures of a case.

    Args:
        name: Which case.
        watch: What watched it.
        folder: Where they go, as ``symptom-CASE-QUANTITY.png``.

    Returns:
        The files.
    """
    paths = []
    for quantity, notes in PICTURES.get(name, {}).items():
        figure = watch.plot(quantity)
        for note in notes:
            annotate(figure.axes[0], note)
        path = folder / f"symptom-{name}-{quantity}.png"
        figure.savefig(path, metadata={"Software": None})
        paths.append(path)
    return paths


def annotate(axes: Axes, note: Note) -> None:
    """Write a word with an arrow into a plot."""
    point, words = ((x, 1 - y) for x, y in (note.at, note.where))
    axes.annotate(
        note.text,
        point,
        words,
        xycoords="axes fraction",
        textcoords="axes fraction",
        fontsize="medium",
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "black", "alpha": 0.95},
        # Seen on dark blue as well as on paper.
        arrowprops={
            "arrowstyle": "-|>",
            "color": "black",
            "linewidth": 1.5,
            "path_effects": [withStroke(linewidth=4, foreground="white")],
        },
    )
