"""From what is sick at each reading to what has begun and what is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_gradwatch.detect.diagnosis import Diagnosis

# What cannot wait: the next step may already train on NaN.
_IMMEDIATE = ("non_finite", "exploding.update")
# A fault that comes and goes is told this often; then only its 10th, 100th, ... onset is.
_TOLD_ONSETS = 3
# So many faults of one symptom in different layers are told one by one; then only the 10th, 100th, ... is.
_TOLD_FAULTS = 5


@dataclass(frozen=True)
class Changes:
    """What a reading changed.

    Attributes:
        onsets: Faults that began or became a warning in this reading, and are to be told.
        recoveries: Faults that are over since this reading, and whose onset was told.
    """

    onsets: tuple[Diagnosis, ...] = ()
    recoveries: tuple[Diagnosis, ...] = ()


class OnsetTracker:
    """Make one diagnosis of findings that repeat from reading to reading.

    A layer counts as sick when a rule has named it in ``patience`` readings in a row in which it was present, after
    ``warmup_steps`` such readings. Findings of one optimizer with one symptom and overlapping layers are one fault.
    It is over after ``patience`` readings without a finding. When the same fault begins again it is counted.

    Args:
        patience: Readings in a row; non-finite gradients and overwriting steps do not wait.
        warmup_steps: Readings that are not judged; non-finite gradients are.
    """

    def __init__(self, patience: int = 3, warmup_steps: int = 0) -> None:
        self.patience = patience
        self.warmup_steps = warmup_steps
        self.diagnoses: list[Diagnosis] = []
        self._streaks: dict[tuple[int, str, str], int] = {}
        self._quiet: dict[int, int] = {}

    def update(
        self, findings: Sequence[Diagnosis], optimizer: int, step: int, present: Mapping[str, int], seen: Sequence[int]
    ) -> Changes:
        """Take in what the rules say of one reading.

        Args:
            findings: What is sick now.
            optimizer: Number of the optimizer whose reading it is.
            step: Its ``global_step``.
            present: The layers that had a gradient, by name, with their column.
            seen: In how many readings of this optimizer each layer was present, ``[num_layers]``.

        Returns:
            What is to be told.
        """
        ripe = [fault for fault in (self._ripe(f, present, seen) for f in findings) if fault.layers]
        self._forget(findings, optimizer, present)
        told = [changed for fault in ripe if (changed := self._merge(fault)) is not None]
        return Changes(tuple(told), self._recover(findings, optimizer, step, present))

    def open(self, optimizer: int | None = None) -> list[Diagnosis]:
        """Return the faults that last, of one optimizer or of all."""
        return [d for d in self.diagnoses if d.recovered_at is None and optimizer in (None, d.optimizer)]

    @property
    def suspicious(self) -> bool:
        """Whether anything is wrong or may be: a fault that lasts, or a finding that patience holds back."""
        return bool(self._streaks) or bool(self.open())

    def _ripe(self, finding: Diagnosis, present: Mapping[str, int], seen: Sequence[int]) -> Diagnosis:
        layers = []
        immediate = finding.rule in _IMMEDIATE
        for name in finding.layers:
            column = present.get(name)
            if column is None or (seen[column] <= self.warmup_steps and finding.rule != "non_finite"):
                continue
            key = (finding.optimizer, finding.rule, name)
            self._streaks[key] = self._streaks.get(key, 0) + 1
            if immediate or self._streaks[key] >= self.patience:
                layers.append(name)
        return replace(finding, layers=tuple(layers))

    def _forget(self, findings: Sequence[Diagnosis], optimizer: int, present: Mapping[str, int]) -> None:
        sick = {(finding.optimizer, finding.rule, name) for finding in findings for name in finding.layers}
        well = [k for k in self._streaks if k[0] == optimizer and k not in sick and k[2] in present]
        for key in well:
            del self._streaks[key]

    def _merge(self, fault: Diagnosis) -> Diagnosis | None:
        place = self._same_fault(fault)
        if place is None:
            self.diagnoses.append(fault)
            alike = sum(d.symptom == fault.symptom and d.optimizer == fault.optimizer for d in self.diagnoses)
            return fault if alike <= _TOLD_FAULTS or _is_power_of_ten(alike) else None
        known = self.diagnoses[place]
        layers = tuple(dict.fromkeys(known.layers + fault.layers))
        escalated = known.severity == "notice" and fault.severity == "warning"
        if known.recovered_at is None:
            self.diagnoses[place] = replace(fault, count=known.count) if escalated else replace(known, layers=layers)
            return self.diagnoses[place] if escalated else None
        again = replace(fault, count=known.count + 1)
        self._quiet.pop(place, None)
        if again.count <= _TOLD_ONSETS or escalated:
            self.diagnoses.append(again)
            # A notice that comes and goes is told once.
            return again if again.severity == "warning" else None
        self.diagnoses[place] = again
        return again if _is_power_of_ten(again.count) else None

    def _same_fault(self, fault: Diagnosis) -> int | None:
        for place in reversed(range(len(self.diagnoses))):
            known = self.diagnoses[place]
            same = known.optimizer == fault.optimizer and known.symptom == fault.symptom
            if same and not set(known.layers).isdisjoint(fault.layers):
                return place
        return None

    def _recover(
        self, findings: Sequence[Diagnosis], optimizer: int, step: int, present: Mapping[str, int]
    ) -> tuple[Diagnosis, ...]:
        sick = {(finding.symptom, name) for finding in findings for name in finding.layers}
        over = []
        for place, known in enumerate(self.diagnoses):
            if known.recovered_at is not None or known.optimizer != optimizer:
                continue
            if any((known.symptom, name) in sick for name in known.layers):
                self._quiet[place] = 0
            elif any(name in present for name in known.layers):
                self._quiet[place] = self._quiet.get(place, 0) + 1
            if self._quiet.get(place, 0) >= self.patience:
                self.diagnoses[place] = replace(known, recovered_at=step)
                del self._quiet[place]
                told = known.count <= _TOLD_ONSETS or _is_power_of_ten(known.count)
                if told and known.severity == "warning":
                    over.append(self.diagnoses[place])
        return tuple(over)

    def exchange(self, old: Diagnosis, new: Diagnosis) -> None:
        """Put an advised diagnosis in the place of the bare one."""
        self.diagnoses = [new if known is old else known for known in self.diagnoses]

    def state_dict(self) -> dict[str, Any]:
        """Return the faults and streaks as plain values, for a checkpoint."""
        return {
            "diagnoses": [diagnosis.to_dict() for diagnosis in self.diagnoses],
            "streaks": [[*key, count] for key, count in self._streaks.items()],
            "quiet": [[place, count] for place, count in self._quiet.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.diagnoses = [Diagnosis.from_dict(values) for values in state["diagnoses"]]
        self._streaks = {(optimizer, rule, name): count for optimizer, rule, name, count in state["streaks"]}
        self._quiet = dict(state["quiet"])


def _is_power_of_ten(count: int) -> bool:
    return count >= 10 and set(str(count)) <= {"1", "0"} and str(count).count("1") == 1
