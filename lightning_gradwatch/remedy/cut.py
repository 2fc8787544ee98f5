"""Ways out where no gradient comes through: it is exactly zero, or there is none at all."""

from __future__ import annotations

import math

from lightning_gradwatch.remedy.activation import TO_LEAKY_RELU, with_activation
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.initialization import scheme_for
from lightning_gradwatch.remedy.narrow import may_die
from lightning_gradwatch.remedy.normalization import with_normalization
from lightning_gradwatch.remedy.reinitialize import reinitialize, start_afresh
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.softmax import to_sigmoid
from lightning_gradwatch.remedy.vanishing import against_small_weights, rate_in_code

# float32 holds nothing below 1e-45; with so many orders lost in the weights alone a gradient may get there. Ours.
_UNDERFLOW = -20.0


def against_dead(case: Case) -> list[Remedy]:
    """Return the ways out of gradients that are exactly zero, best first."""
    evidence = case.diagnosis.evidence
    if case.diagnosis.severity == "notice":
        # A branch that nothing chose is not cured by other weights.
        return []
    known = _against_what_was_seen(case)
    if known:
        return known
    weights = against_small_weights(case)
    if evidence.get("ever_alive"):
        # Something has put it out: what has slope 0 was there from the start.
        return [*reinitialize(case), _slower(case), *weights]
    flat = evidence.get("everywhere") or (evidence.get("flat_operation") and not _underflows(case))
    return [_flat_operation(case), *weights] if flat else weights


def _against_what_was_seen(case: Case) -> list[Remedy]:
    """Return the ways out where the rule has named the cause; nothing where it has not."""
    evidence = case.diagnosis.evidence
    if evidence.get("one_unit"):
        return _two_classes_in_one_unit(case, str(evidence["one_unit"]))
    if evidence.get("dead_units"):
        return _against_dead_units(case)
    if evidence.get("float16"):
        return [_scale_the_loss(case), _flat_operation(case)]
    return _against_saturation(case, str(evidence["saturated"])) if evidence.get("saturated") else []


def _underflows(case: Case) -> bool:
    """Tell whether weights that are too small may have shrunk the gradient to nothing."""
    shares = []
    for standing in case.standings_at_first:
        scheme = scheme_for(case.activations[standing.layer], standing.slope)
        if scheme is not None and standing.std > 0:
            shares.append(math.log10(standing.std / standing.of(scheme)))
    return sum(shares) < _UNDERFLOW


def _scale_the_loss(case: Case) -> Remedy:
    return Remedy(
        title='Trainer(precision="16-mixed"), or torch.amp.GradScaler in a loop of your own; or bfloat16',
        reason="a loss that is multiplied before the backward pass brings gradients above the least number of float16, "
        "and the scaler divides them again (Micikevicius et al., 2018); bfloat16 reaches as far down as float32",
        diagnosis=case.diagnosis,
        code="scaler = torch.amp.GradScaler()\n"
        "scaler.scale(loss).backward()  # and in place of optimizer.step():\n"
        "scaler.step(optimizer)\n"
        "scaler.update()",
        trainer_kwargs={"precision": "16-mixed"},
    )


def _two_classes_in_one_unit(case: Case, layer: str) -> list[Remedy]:
    logits = Remedy(
        title=f"leave out the softmax behind {layer}: nn.BCEWithLogitsLoss() on its one output, labels as floats",
        reason="a softmax over one number is 1 whatever the number, so its gradient is 0; a sigmoid is not",
        diagnosis=case.diagnosis,
        code="loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), labels.float())",
    )
    return [*to_sigmoid(case, layer), logits]


def _against_saturation(case: Case, layer: str) -> list[Remedy]:
    logits = Remedy(
        title=f"give the loss what {layer} puts out, without the sigmoid or softmax behind it: "
        "nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()",
        reason="together with its logarithm a sigmoid keeps its slope where it is wrong, however far out",
        diagnosis=case.diagnosis,
    )
    rate = case.diagnosis.evidence.get("learning_rate")
    smaller = Remedy(
        title="a tenth of the learning rate, and inputs of mean 0 and size 1: large numbers drive the output far out",
        reason="in float32 the slope of a sigmoid is exactly 0 above 18 and below -104",
        diagnosis=case.diagnosis,
        needs_restart=True,
        optimizer_changes={"lr": rate / 10} if rate else {},
    )
    return [logits, smaller]


def _against_dead_units(case: Case) -> list[Remedy]:
    leaky = with_activation(case, TO_LEAKY_RELU, case.hidden)
    if may_die(case, case.hidden):
        return [*with_normalization(case, case.hidden), *leaky]
    if not case.diagnosis.evidence.get("ever_alive"):
        afresh = start_afresh(case, "half of the samples then reach each unit, at the start (He et al., 2015)")
        return [*afresh, *leaky]
    return [*reinitialize(case), _slower(case), *leaky]


def _slower(case: Case) -> Remedy:
    rate = case.diagnosis.evidence.get("learning_rate")
    tenth = float(f"{rate / 10:.3g}") if rate else 0.0
    return Remedy(
        title="a tenth of the learning rate: the units were alive until a step pushed them off, then start again",
        reason="a large step can push a unit where no sample reaches it any more (Karpathy, CS231n)",
        diagnosis=case.diagnosis,
        code=rate_in_code(tenth) if rate else "",
        needs_restart=True,
        optimizer_changes={"lr": tenth} if rate else {},
    )


def _flat_operation(case: Case) -> Remedy:
    last = case.diagnosis.layers[0] if case.diagnosis.layers else "the last layer"
    following = case.diagnosis.evidence.get("next_layer") or "the loss"
    return Remedy(
        title=f"look between {last} and {following} for what has slope 0 and remove it: round, sign, floor, a "
        "comparison, clamp",
        reason="their derivative is 0 nearly everywhere; train with a smooth stand-in (a sigmoid for a step)",
        diagnosis=case.diagnosis,
    )


def against_disconnected(case: Case) -> list[Remedy]:
    """Return the ways out of layers that get no gradient at all, or whose gradient nothing uses, best first."""
    if case.diagnosis.evidence.get("left_out"):
        return [
            Remedy(
                title="give the optimizer the whole model: self.parameters()",
                reason="an optimizer moves only what it was given; what shall stay as it is says so with "
                "requires_grad_(False), which saves its backward pass as well",
                diagnosis=case.diagnosis,
                code="optimizer = type(optimizer)(model.parameters(), **optimizer.defaults)",
                optimizer_changes={"params": "all"},
            )
        ]
    if not case.diagnosis.evidence.get("cut"):
        return [
            Remedy(
                title="let the loss depend on them (experts: balance the routing), leave them out, or freeze them: "
                "requires_grad_(False)",
                reason="an optimizer passes over what has no gradient; DistributedDataParallel waits for it in vain",
                diagnosis=case.diagnosis,
            )
        ]
    behind = case.diagnosis.layers[0] if case.diagnosis.layers else "them"
    following = case.diagnosis.evidence.get("next_layer")
    between = f"between {behind} and {following}" if following else f"behind {behind}"
    return [
        Remedy(
            title=f"find what cuts the graph {between} and remove it",
            reason="autograd goes back only through what it has recorded; detach(), torch.no_grad(), .data, .item(), "
            "numpy and argmax end the record",
            diagnosis=case.diagnosis,
        )
    ]
