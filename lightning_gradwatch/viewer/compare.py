"""Two runs side by side: both verdicts, and by what factor the norms of each layer differ."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.viewer.finding import counted, findings
from lightning_gradwatch.viewer.markdown import code_span, escaped, to_markdown
from lightning_gradwatch.viewer.metadata import QUANTITIES
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.terminal import Paper, table, wrapped
from lightning_gradwatch.viewer.verdict import newest_norms, norms_in_words, number, power, verdict

Logs = npt.NDArray[np.floating]

# log10. Ours: of 16 small networks (ReLU, tanh, sigmoid, GELU; 3 and 8 layers; Adam and SGD), each with five seeds, the
# median of a layer's norm differed by 2.7x at most. Ten is well above that.
FAR_APART = 1.0
# More rows are not read; the page and --json have all of them.
_MAX_ROWS, _NAMED = 40, 5
_NOTHING_SHARED = "The two runs have no layer in common that was measured in both."


@dataclass(frozen=True, eq=False)
class Compared:
    """One quantity of the layers that two runs share.

    Attributes:
        about: The first run's series.
        layers: Names, in the first run's forward order, ``[num_layers]``.
        first: log10 of each layer's median over the shared steps, ``[num_layers]``; ``-inf`` for zero, NaN for none.
        second: The second run's.
        steps: First and last of the steps that both have; None where they share none, and all of each are taken.
        only_first: Layers that the second run does not have.
        only_second: Layers that the first run does not have.
        by_position: Whether layers were paired by their place, since no name is in both.
    """

    about: Series
    layers: tuple[str, ...]
    first: Logs
    second: Logs
    steps: tuple[int, int] | None
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    by_position: bool

    @property
    def factors(self) -> Logs:
        """log10 of second by first, ``[num_layers]``; 0 where both are zero, infinite where one is."""
        with np.errstate(invalid="ignore"):
            difference = self.second - self.first
        both_zero = np.isneginf(self.first) & np.isneginf(self.second)
        return np.where(both_zero, 0.0, difference)

    @property
    def far_apart(self) -> list[int]:
        """Indices of the layers that differ by more than a factor of ten, those that differ most first."""
        distance = np.nan_to_num(np.abs(self.factors), nan=0.0)
        return [int(layer) for layer in np.argsort(-distance, kind="stable") if distance[layer] > FAR_APART]


def compared(first: Run, second: Run) -> list[Compared]:
    """Compare what two runs both have: each quantity of each optimizer, but time steps, which are no layers.

    Args:
        first: A run.
        second: Another one.

    Returns:
        The gradient norms first; empty where they have nothing in common.
    """
    others = {series.name: series for series in second.series if len(series.windows)}
    shared = [series for series in first.series if series.name in others and len(series.windows)]
    pairs = (_compared(series, others[series.name]) for series in shared if series.about.quantity != "time")
    return [pair for pair in pairs if pair.layers]


def _compared(first: Series, second: Series) -> Compared:
    places = {name: place for place, name in enumerate(second.layers)}
    mine = [place for place, name in enumerate(first.layers) if name in places]
    by_position = not mine and len(first.layers) == len(second.layers)
    mine = list(range(len(first.layers))) if by_position else mine
    theirs = mine if by_position else [places[first.layers[place]] for place in mine]
    steps = _shared_steps(first, second)
    return Compared(
        about=first,
        layers=tuple(first.layers[place] for place in mine),
        first=_medians(first, steps)[mine],
        second=_medians(second, steps)[theirs],
        steps=steps,
        only_first=() if by_position else tuple(name for name in first.layers if name not in places),
        only_second=() if by_position else tuple(name for name in second.layers if name not in set(first.layers)),
        by_position=by_position,
    )


def _shared_steps(first: Series, second: Series) -> tuple[int, int] | None:
    """Return the steps that both have: norms change as training goes on, so unlike ends would differ by themselves."""
    begin = max(int(series.windows.steps[0]) for series in (first, second))
    end = min(int(series.windows.steps[-1]) for series in (first, second))
    both = all(_within(series, (begin, end)).any() for series in (first, second))
    return (begin, end) if both else None


def _within(series: Series, steps: tuple[int, int]) -> npt.NDArray[np.bool_]:
    return (series.windows.steps >= steps[0]) & (series.windows.steps <= steps[1])


def _medians(series: Series, steps: tuple[int, int] | None) -> Logs:
    rows = series.windows.median if steps is None else series.windows.median[_within(series, steps)]
    with warnings.catch_warnings():
        # A layer without a single value has no median: NaN, which is what is wanted.
        warnings.simplefilter("ignore", RuntimeWarning)
        medians: Logs = np.nanmedian(rows, axis=0)
    return medians


def comparison_lines(first: Run, second: Run, paper: Paper) -> list[str]:
    """Write a comparison: both verdicts side by side, then the layers.

    Args:
        first: A run.
        second: Another one.
        paper: What it is written on.

    Returns:
        Lines.
    """
    rows = [
        ["", f"first: {first.name}", f"second: {second.name}"],
        *(list(row) for row in _verdicts(first, second) if any(row[1:])),
    ]
    lines = table(rows, paper, wide={1: 1, 2: 1})
    pairs = compared(first, second)
    if not pairs:
        lines += ["", *wrapped(_NOTHING_SHARED, paper.width)]
    for pair in pairs:
        # The other quantities are told in a line each; their layers are on the page.
        lines += ["", *wrapped(_sentence(pair), paper.width)]
        lines += _layers(pair, paper) if pair.about.about.quantity == "norms" else []
    return lines


def _verdicts(first: Run, second: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the upper table: of each run the verdict, the worst diagnosis, and the newest norms."""
    runs = (first, second)
    yield ("verdict", verdict(first), verdict(second))
    worst = [next(iter(findings(run)), None) for run in runs]
    for key, name in (("what", "message"), ("measured", "measured"), ("why", "cause")):
        left, right = ("" if finding is None else str(getattr(finding, name)) for finding in worst)
        yield (key, left, right)
    left, right = (finding.ways_out[0].title if finding and finding.ways_out else "" for finding in worst)
    yield ("do", left, right)
    left, right = ("; ".join(norms_in_words(newest) for newest in newest_norms(run)) for run in runs)
    yield ("norms", left, right)


def _sentence(pair: Compared) -> str:
    """Say what is compared and which layers are far apart."""
    about, far = pair.about.about, pair.far_apart
    title = QUANTITIES[about.quantity].title + (
        f" [{about.optimizer_label} {about.optimizer}]" if about.optimizer else ""
    )
    over = "all steps of each" if pair.steps is None else f"steps {pair.steps[0]} to {pair.steps[1]}"
    told = ", ".join(f"{pair.layers[layer]} ({factor(pair.factors[layer])})" for layer in far[:_NAMED])
    rest = f" and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
    found = f"{len(far)} of {counted(len(pair.layers), 'layer')} differ by more than 10x: {told}{rest}"
    parts = [found if far else f"none of {counted(len(pair.layers), 'layer')} differs by more than 10x"]
    parts += ["paired by their place, since no name is in both"] if pair.by_position else []
    lone = ((pair.only_first, "first"), (pair.only_second, "second"))
    parts += [f"{counted(len(names), 'layer')} in the {which} run only" for names, which in lone if names]
    return f"{title}, median over {over}: {'; '.join(parts)}"


def _layers(pair: Compared, paper: Paper) -> list[str]:
    distance = np.nan_to_num(np.abs(pair.factors), nan=0.0)
    shown = sorted(np.argsort(-distance, kind="stable")[:_MAX_ROWS].tolist())
    rows = [
        [pair.layers[layer], number(pair.first[layer]), number(pair.second[layer]), factor(pair.factors[layer])]
        for layer in shown
    ]
    colors = ["yellow" if distance[layer] > FAR_APART else "" for layer in shown]
    lines = table([["layer", "first", "second", "factor"], *rows], paper, colors, wide={0: 1})
    rest = len(pair.layers) - len(shown)
    return lines + ([f"  and {counted(rest, 'layer')} that differ less"] if rest else [])


def factor(log: float) -> str:
    """Write by what the second is larger than the first.

    Example:
        >>> factor(1.0), factor(-0.3), factor(float("inf")), factor(float("nan"))
        ('x10', 'x0.5', 'x inf', '-')
    """
    return "-" if np.isnan(log) else "x inf" if np.isposinf(log) else f"x{number(log)}"


def comparison_markdown(first: Run, second: Run) -> str:
    """Write a comparison as Markdown: what is far apart, then each run by itself.

    Args:
        first: A run.
        second: Another one.
    """
    head = f"### GradWatch: {code_span(first.name)} beside {code_span(second.name)}"
    lines = [f"- {escaped(_sentence(pair))}" for pair in compared(first, second)] or [f"- {_NOTHING_SHARED}"]
    return "\n".join([head, "", *lines, "", to_markdown(first), to_markdown(second)])


def comparison_values(first: Run, second: Run) -> list[dict[str, Any]]:
    """Return a comparison as plain values, every layer in it.

    Args:
        first: A run.
        second: Another one.
    """
    return [
        {
            "series": pair.about.name,
            "steps": pair.steps,
            "by_position": pair.by_position,
            "layers": [_values(pair, layer) for layer in range(len(pair.layers))],
            "far_apart": [pair.layers[layer] for layer in pair.far_apart],
            "only_first": pair.only_first,
            "only_second": pair.only_second,
        }
        for pair in compared(first, second)
    ]


def _values(pair: Compared, layer: int) -> dict[str, Any]:
    numbers: Sequence[tuple[str, Logs]] = (("first", pair.first), ("second", pair.second), ("factor", pair.factors))
    return {"layer": pair.layers[layer], **{name: power(float(logs[layer])) for name, logs in numbers}}
