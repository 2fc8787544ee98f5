"""Remedies tried on copies of the model with the person's own batch, and ranked by what they did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lightning_gradwatch.measure.random_state import RandomState, kept_random_state
from lightning_gradwatch.remedy.budget import Budget
from lightning_gradwatch.remedy.copying import NotCopiedError
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.trial import POOR, NotRehearsedError, Stage, Trial, try_on_copy

# A loss that differs by less than this share of what it was has not been changed. Ours.
_SAME = 0.01
# So many are tried: a person reads no more.
_MOST = 6
_LITTLE = "{steps} steps say little about what lies far back"
# From ruined weights no way out can be judged.
_FRESH = "examine() on a fresh model tries them"
_HELPED, _NO_MATTER, _WORSE = range(3)
_SAID = ("", "no better: ", "worse: ")


@dataclass(frozen=True)
class Rehearsal:
    """What came of rehearsing.

    Attributes:
        remedies: All remedies, best first; what was tried has its ``effect``.
        notes: Why something was not tried, in words.
        untreated: The copy that was left as it is; None where nothing was tried.
        order: Where each of ``remedies`` stood among the candidates.
    """

    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...] = ()
    untreated: Trial | None = None
    order: tuple[int, ...] = ()


def rehearse(remedies: Sequence[Remedy], stage: Stage) -> Rehearsal:
    """Try each remedy on a copy of the model and rank them by what they did.

    A copy is changed by ``Remedy.apply_``, run forward and backward with the batch, and trained for a few steps with
    the person's own optimizer, made anew on the copy with the remedy's changes. The first copy is left untreated.
    All start from the same random numbers and make as many steps as the stage's time allows. The model, its gradients,
    its optimizer and every random state stay as they are, bit for bit.

    First come remedies that helped: the first/last ratio of the gradient along depth, where it was poor, is within
    1e-3 and 1e3, or the loss after the steps is lower than without. Then those that were not tried: nothing speaks
    against the expert there. Then those that were tried and changed nothing; last those that made it worse. Of those
    that helped, one that mended the gradient comes before one that did not; then a lower loss is better, and of equal
    ones the expert's order stays. A remedy that starts again is never first where training had made progress.

    Args:
        remedies: The candidates, the likeliest first.
        stage: Where they are tried.

    Returns:
        The ranked remedies, and what was not tried.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
        >>> sick = Diagnosis("vanishing.update", Symptom.VANISHING)
        >>> slow, fast = (Remedy(f"lr {lr}", "", sick, optimizer_changes={"lr": lr}) for lr in (1e-6, 1e-2))
        >>> model, x = nn.Linear(2, 1), torch.ones(1, 2)
        >>> stage = Stage(model, lambda model: model(x).square().sum(), torch.optim.SGD(model.parameters(), lr=1e-8))
        >>> [remedy.title for remedy in rehearse([slow, fast], stage).remedies]
        ['lr 0.01', 'lr 1e-06']
    """
    candidates = [place for place, remedy in enumerate(remedies) if _can_be_tried(remedy)]
    if not candidates:
        return _unrehearsed(remedies)
    seconds = math.inf if stage.seconds is None else stage.seconds
    budget = Budget(seconds, min(len(candidates), _MOST) + 1, stage.say)
    with kept_random_state() as state, _plain_autograd():
        untreated, reason = _untreated(stage, state, budget, remedies[candidates[0]].diagnosis.rule)
        if untreated is None:
            return _unrehearsed(remedies, reason)
        notes, trials = [reason] if reason else [], {}
        for number, place in enumerate(candidates):
            if number >= _MOST or not budget.another_copy():
                why = f"the first {_MOST} are" if number >= _MOST else f"the {seconds:g} s for it do not reach so far"
                notes.append(f"{len(candidates) - number} more not rehearsed: {why}")
                break
            try:
                trials[place] = try_on_copy(replace(stage, num_steps=untreated.steps), state, remedies[place])
            except Exception as error:
                notes.append(f"{remedies[place].title}: not rehearsed, {_in_words(error)}")
    if trials and not any(math.isfinite(trial.loss_after) for trial in (untreated, *trials.values())):
        return _unrehearsed(remedies, "tried without use: on no copy is the loss finite")
    order = _ranked(remedies, trials, untreated)
    ranked = tuple(_with_effect(remedies[place], trials.get(place), untreated) for place in order)
    return Rehearsal(ranked, tuple(notes), untreated, tuple(order))


def _unrehearsed(remedies: Sequence[Remedy], *notes: str) -> Rehearsal:
    return Rehearsal(tuple(remedies), notes, order=tuple(range(len(remedies))))


def _untreated(stage: Stage, state: RandomState, budget: Budget, rule: str) -> tuple[Trial | None, str]:
    """Run the copy that is left as it is; where that fails, or begins from ruins, there is nothing to compare with."""
    try:
        trial = try_on_copy(stage, state, None, budget)
    except Exception as error:
        return None, f"not rehearsed: {_in_words(error)}"
    budget.untreated_done(trial.steps)
    if not math.isfinite(trial.loss) and rule == "exploding.update":
        return None, f"not rehearsed: the step has overwritten the weights; {_FRESH}"
    if not math.isfinite(trial.loss_after) and not _all_finite(stage.model):
        return None, f"not rehearsed: the weights are not finite any more; {_FRESH}"
    return trial, trial.note


def _can_be_tried(remedy: Remedy) -> bool:
    return remedy.change is not None or remedy.clipper is not None or bool(remedy.optimizer_changes)


def _in_words(error: Exception) -> str:
    """A refusal of our own is a sentence; anything else came out of the person's code."""
    known = isinstance(error, (NotCopiedError, NotRehearsedError))
    return str(error) if known else f"it fails on a copy of the model ({type(error).__name__}: {error})"


def _all_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.is_floating_point())


@contextmanager
def _plain_autograd() -> Iterator[None]:
    """A NaN is what is looked for: anomaly detection would make an error of it."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
        yield


def _ranked(remedies: Sequence[Remedy], trials: Mapping[int, Trial], untreated: Trial) -> list[int]:
    """Return the places of the remedies, best first; one that was not tried comes before one that changed nothing."""

    def key(place: int) -> tuple[int, bool, float]:
        trial = trials.get(place)
        if trial is None:
            return _NO_MATTER, False, 0.0
        patient = _is_of_time(remedies[place])
        mended = _mended(trial, untreated, patient=patient)
        loss = trial.loss_after / (_SAME * _scale(untreated)) if trial.steps else 0.0
        return _outcome(trial, untreated, patient=patient), not mended, round(loss) if math.isfinite(loss) else math.inf

    best = sorted(range(len(remedies)), key=key)
    gentle = [place for place in best if not _starts_again(remedies[place]) and key(place)[0] < _WORSE]
    if gentle and _starts_again(remedies[best[0]]):
        best.sort(key=lambda place: place != gentle[0])
    return best


def _starts_again(remedy: Remedy) -> bool:
    """Tell whether a remedy would forget what training has reached."""
    return remedy.needs_restart and remedy.diagnosis.evidence.get("loss_has_fallen") is True


def _scale(untreated: Trial) -> float:
    return abs(untreated.loss) if math.isfinite(untreated.loss) and untreated.loss else 1.0


def _is_of_time(remedy: Remedy) -> bool:
    """Tell whether a remedy is for what a network forgets, which a few steps cannot teach it."""
    return remedy.diagnosis.rule.endswith(".time")


def _mended(trial: Trial, untreated: Trial, *, patient: bool) -> bool:
    """Tell whether a profile that was poor is so no more: along depth, or over time where that was the fault."""
    over_time = patient and untreated.poor_over_time and not trial.poor_over_time
    return over_time or (untreated.poor and not trial.poor)


def _outcome(trial: Trial, untreated: Trial, *, patient: bool = False) -> int:
    if patient:
        mended = _mended(trial, untreated, patient=True)
        return _HELPED if mended else min(_outcome(trial, untreated), _NO_MATTER)
    if not (math.isfinite(trial.loss_after) and math.isfinite(untreated.loss_after)):
        if math.isfinite(trial.loss_after):
            return _HELPED
        return _WORSE if math.isfinite(untreated.loss_after) else _NO_MATTER
    # Without a step a loss tells only where the weights were drawn.
    gain = (untreated.loss_after - trial.loss_after) / _scale(untreated) if trial.steps else 0.0
    if (untreated.poor and not trial.poor) or gain > _SAME:
        return _HELPED
    return _WORSE if gain < -_SAME or trial.orders > untreated.orders + POOR else _NO_MATTER


def _with_effect(remedy: Remedy, trial: Trial | None, untreated: Trial | None) -> Remedy:
    if trial is None or untreated is None:
        return remedy
    effect = {
        "loss_before": untreated.loss,
        "loss_after": trial.loss_after,
        "loss_untreated": untreated.loss_after,
        "first_over_last_before": untreated.first_over_last,
        "first_over_last_after": trial.first_over_last,
        "steps": trial.steps,
    }
    if _is_of_time(remedy):
        effect |= {"over_time_before": untreated.over_time, "over_time_after": trial.over_time}
    return replace(remedy, effect=effect)


def effect_in_words(effect: Mapping[str, float]) -> str:
    """Say what a remedy did when it was rehearsed.

    Args:
        effect: ``Remedy.effect``.

    Returns:
        A line; where the remedy did not help it begins with that. A ratio that stays what it was is left out. Of what
        a network forgets over time it is said that a few steps cannot tell.

    Example:
        >>> did = {"loss_before": 2.3, "loss_after": 1.71, "loss_untreated": 2.3, "steps": 10}
        >>> effect_in_words({**did, "first_over_last_before": 4e-10, "first_over_last_after": 0.6})
        'first/last gradient 4e-10 -> 0.6, loss 2.3 -> 1.71 in 10 steps (2.3 without it)'
        >>> effect_in_words({**did, "loss_after": 2.4, "first_over_last_before": 0.5, "first_over_last_after": 0.5})
        'worse: loss 2.3 -> 2.4 in 10 steps (2.3 without it)'
    """
    loss, steps, parts = effect["loss_before"], int(effect["steps"]), []
    untreated = Trial(loss, effect["loss_untreated"], effect["first_over_last_before"], steps)
    trial = Trial(loss, effect["loss_after"], effect["first_over_last_after"], steps)
    before, after = f"{untreated.first_over_last:.1g}", f"{trial.first_over_last:.1g}"
    if before != after:
        parts.append(f"first/last gradient {before} -> {after}".replace("nan", "unknown"))
    if steps:
        parts.append(
            f"loss {loss:.3g} -> {trial.loss_after:.3g} in {steps} steps ({untreated.loss_after:.3g} without it)"
        )
    if "over_time_before" in effect:
        then, now = f"{effect['over_time_before']:.1g}", f"{effect['over_time_after']:.1g}"
        if then != now:
            parts.insert(0, f"what reaches the first time step, of the last one's, {then} -> {now}")
        return "; ".join(filter(None, [", ".join(parts), _LITTLE.format(steps=steps or "no")]))
    said = _SAID[_outcome(trial, untreated)] + (", ".join(parts) or "the gradient is what it was")
    return said if steps else f"{said} (one backward pass, no step)"
