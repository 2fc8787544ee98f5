"""From a reading to what is told of it: the rules are asked, onsets tracked, ways out added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations
from lightning_gradwatch.detect.onset import Changes, OnsetTracker
from lightning_gradwatch.detect.profile import depth_profile
from lightning_gradwatch.detect.rules import heard, muted
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.snapshot import GradientSnapshot, IntArray, OptimizerDescription, SignalSnapshot
from lightning_gradwatch.remedy.advice import Advice, advise
from lightning_gradwatch.settings import Settings

# Patience (3 by default) has then let every fault speak that is there from the start.
_VERDICT_AFTER = 5
# A profile this steep is on its way to a diagnosis: too early to call it healthy (ours; see DepthRule.suspect).
_STEEP = 2.0


@dataclass(frozen=True)
class Verdict:
    """That the first readings are healthy.

    Attributes:
        factor: What the gradient is multiplied by when it goes one layer back; None where no probe tells.
        update_ratio: How far a step moves the middle one of the layers; None where no probe tells.
    """

    factor: float | None = None
    update_ratio: float | None = None


class Judge:
    """Asks the rules at each reading and remembers what is open.

    Args:
        settings: What the person has set.
        warn: Takes the sentence that names a rule that fails.
    """

    def __init__(self, settings: Settings, warn: Callable[[str], None]) -> None:
        self.tracker = OnsetTracker(settings.patience, settings.warmup_steps)
        # What the person does not want to hear of is drawn all the same, so that its onsets have to be known.
        self._muted = OnsetTracker(settings.patience, settings.warmup_steps)
        self._settings = settings
        self._warn = warn
        self._rules = list(settings.all_rules)
        self._failed: list[str] = []
        self._seen: dict[int, IntArray] = {}
        self._cleared: set[int] = set()
        self._order: tuple[tuple[int, ...], IntArray] = ((), np.zeros(0, dtype=np.int64))
        # Whether faults that last came from a checkpoint, which keeps no ways out of them.
        self._restored = False
        # Whether someone else clips, so that no clipper is advised.
        self.clipped = False

    def judge(
        self,
        snapshot: GradientSnapshot,
        history: GradientHistory,
        probes: Sequence[SignalSnapshot],
        reader: Reader,
        optimizer: OptimizerDescription,
    ) -> Changes:
        """Judge the newest reading of an optimizer.

        Args:
            snapshot: The reading, already in the history.
            history: All readings.
            probes: What the signal probe saw in steps of this optimizer, the newest last.
            reader: Knows the layers.
            optimizer: What is known of the optimizer.

        Returns:
            What is to be told, with remedies.
        """
        if self._restored:
            self._advise_again(reader, snapshot, history)
        seen = self._count(snapshot)
        observations = self._observe(snapshot, history, probes, reader, optimizer)
        findings = self._ask(observations)
        if not findings and not self.tracker.suspicious and not self._muted.suspicious:
            return Changes()
        present = {history.layers[column]: int(column) for column in np.flatnonzero(snapshot.present)}
        at, ignore = (snapshot.optimizer, snapshot.step, present, seen.tolist()), self._settings.ignore
        changes = self.tracker.update(heard(findings, ignore), *at)
        unheard = self._muted.update(muted(findings, ignore), *at) if ignore else Changes()
        advised = tuple(self._advised(diagnosis, reader, snapshot, history) for diagnosis in changes.onsets)
        return replace(changes, onsets=advised, muted=unheard.onsets)

    def healthy(
        self,
        snapshot: GradientSnapshot,
        history: GradientHistory,
        probes: Sequence[SignalSnapshot],
        reader: Reader,
        optimizer: OptimizerDescription,
    ) -> Verdict | None:
        """Tell, once for each optimizer, that its first readings are healthy.

        Returns:
            What is to be told now; None where nothing is.
        """
        number = snapshot.optimizer
        if number in self._cleared or int(self._count_of(snapshot).max(initial=0)) < _VERDICT_AFTER:
            return None
        norms = snapshot.norms[snapshot.present]
        fine = norms.size > 0 and bool((np.isfinite(norms) & (norms > 0)).all())
        if self.tracker.suspicious or not fine or any(d.optimizer == number for d in self.tracker.diagnoses):
            return None
        if not probes:
            self._cleared.add(number)
            return Verdict()
        profile = depth_profile(self._observe(snapshot, history, probes, reader, optimizer), probes[-1])
        if profile is not None and abs(profile.attenuation) > _STEEP:
            return None
        self._cleared.add(number)
        # A layer without a gradient is not moved, and says nothing of the learning rate.
        moved = probes[-1].update_ratio[np.isfinite(probes[-1].update_ratio) & snapshot.present]
        return Verdict(profile.factor if profile else None, float(np.median(moved)) if moved.size else None)

    @property
    def unheard(self) -> list[str]:
        """What the closing lines have to admit: faults that are muted, and rules that failed."""
        muted = dict.fromkeys(d.rule for d in self._muted.diagnoses if d.severity == "warning")
        return [f"muted: {rule}" for rule in muted] + [f"rule {name} failed, see above" for name in self._failed]

    def _observe(
        self,
        snapshot: GradientSnapshot,
        history: GradientHistory,
        probes: Sequence[SignalSnapshot],
        reader: Reader,
        optimizer: OptimizerDescription,
    ) -> Observations:
        return Observations(
            step=snapshot.step,
            optimizer=snapshot.optimizer,
            optimizer_description=optimizer,
            layers=reader.descriptions,
            order=self._order_of(history),
            gradients=history.readings(snapshot.optimizer),
            loss=history.losses_of(snapshot.optimizer),
            signals=probes,
            num_present=self._count_of(snapshot),
            num_elsewhere=max(
                (int(n.max(initial=0)) for number, n in self._seen.items() if number != snapshot.optimizer), default=0
            ),
        )

    def _order_of(self, history: GradientHistory) -> IntArray:
        """Return the forward order as an array, made anew only where it has changed."""
        if self._order[0] is not history.order:
            order = np.array(history.order, dtype=np.int64)
            # All readings share it: a person's rule that sorted it in place would spoil those to come.
            order.flags.writeable = False
            self._order = history.order, order
        return self._order[1]

    def _ask(self, observations: Observations) -> list[Diagnosis]:
        findings: list[Diagnosis] = []
        # NaN and zero are what is looked for, not a mistake.
        with np.errstate(all="ignore"):
            for rule in list(self._rules):
                try:
                    findings += [self._placed(finding, observations) for finding in rule(observations)]
                except Exception as error:
                    self._rules.remove(rule)
                    name = getattr(rule, "__name__", type(rule).__name__)
                    self._failed.append(name)
                    self._warn(
                        f"rule {name} failed at step {observations.step} and is switched off, the others go on: "
                        f"{type(error).__name__}: {error}"
                    )
        return findings

    def _placed(self, finding: Diagnosis, observations: Observations) -> Diagnosis:
        """Fill in what a short rule of a person may leave out: whose reading it is, and that all layers are meant."""
        present = np.flatnonzero(observations.gradients.present[-1])
        layers = finding.layers or observations.names(present)
        return replace(finding, optimizer=observations.optimizer, step=observations.step, layers=layers)

    def _advised(
        self, diagnosis: Diagnosis, reader: Reader, snapshot: GradientSnapshot, history: GradientHistory
    ) -> Diagnosis:
        advice = self._advice(diagnosis, reader, snapshot, history)
        if advice is None:
            return diagnosis
        cause = "; ".join(part for part in (diagnosis.cause, advice.weights) if part)
        evidence = {**diagnosis.evidence, "weights": advice.standings}
        advised = replace(diagnosis, cause=cause, evidence=evidence, remedies=advice.remedies)
        self.tracker.exchange(diagnosis, advised)
        return advised

    def _advise_again(self, reader: Reader, snapshot: GradientSnapshot, history: GradientHistory) -> None:
        """Find the ways out of what lasts since before a checkpoint: they belong to a living model."""
        self._restored = False
        for diagnosis in self.tracker.open():
            advice = self._advice(diagnosis, reader, snapshot, history)
            if advice is not None:
                self.tracker.exchange(diagnosis, replace(diagnosis, remedies=advice.remedies))

    def _advice(
        self, diagnosis: Diagnosis, reader: Reader, snapshot: GradientSnapshot, history: GradientHistory
    ) -> Advice | None:
        roots = np.sqrt([max(about.num_parameters, 1) for about in reader.descriptions])
        names = [about.name for about in reader.descriptions]
        before = dict(zip(names, (snapshot.weight_norms / roots).tolist(), strict=True))
        first = int(np.argmax(history.optimizers == snapshot.optimizer))
        at_first = dict(zip(names, (history.weight_norms[first] / roots).tolist(), strict=True))
        try:
            return advise(
                diagnosis,
                reader.model,
                reader.layers,
                reader.descriptions,
                weights_before=before,
                weights_at_first=at_first,
                clips=self._settings.clipper is not None or self.clipped,
                skips=self._settings.on_nonfinite != "warn",
            )
        except Exception as error:
            # A diagnosis without a way out is better than none.
            self._warn(f"found no advice: {type(error).__name__}: {error}")
            return None

    def _count_of(self, snapshot: GradientSnapshot) -> IntArray:
        known = self._seen.get(snapshot.optimizer, np.zeros(0, dtype=np.int64))
        missing = len(snapshot.present) - len(known)
        return np.concatenate([known, np.zeros(missing, dtype=np.int64)]) if missing else known

    def _count(self, snapshot: GradientSnapshot) -> IntArray:
        self._seen[snapshot.optimizer] = self._count_of(snapshot) + snapshot.present
        return self._seen[snapshot.optimizer]

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain values, for a checkpoint."""
        seen = [[number, counts.tolist()] for number, counts in self._seen.items()]
        return {
            "tracker": self.tracker.state_dict(),
            "muted": self._muted.state_dict(),
            "seen": seen,
            "cleared": sorted(self._cleared),
        }

    def load_state_dict(self, state: Mapping[str, Any], old: Sequence[str], new: Sequence[str]) -> None:
        """Take back what ``state_dict`` returned, matching layers by name.

        Args:
            state: What was saved.
            old: Names of the layers then.
            new: Names of the layers now.
        """
        self.tracker.load_state_dict(state["tracker"])
        if "muted" in state:
            self._muted.load_state_dict(state["muted"])
        self._restored = True
        self._cleared = set(state["cleared"])
        for number, counts in state["seen"]:
            by_name = dict(zip(old, counts, strict=False))
            self._seen[number] = np.array([by_name.get(name, 0) for name in new], dtype=np.int64)
