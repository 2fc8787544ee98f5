"""From what is sick at each reading to what has begun and what is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom

# What cannot wait: the next step may already train on NaN.
_IMMEDIATE = ("non_finite", "exploding.update", "spike")
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
        muted: Faults that began in this reading and that the person does not want to hear of.
    """

    onsets: tuple[Diagnosis, ...] = ()
    recoveries: tuple[Diagnosis, ...] = ()
    muted: tuple[Diagnosis, ...] = ()


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
        # Places in the list: whose onset was told, and which belong to a fault of which too many are alike.
        self._told: set[int] = set()
        self._hushed: set[int] = set()
        self._num_alike: dict[tuple[int, str, str], int] = {}

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
        self._count({(f.optimizer, f.rule, name) for f in findings for name in f.layers}, optimizer, present, seen)
        ripe = [fault for fault in (self._ripe(f, present, seen) for f in findings) if fault.layers]
        told = dict.fromkeys(place for fault in ripe if (place := self._merge(fault)) is not None)
        # What a later finding of the same reading has added to a fault belongs to it: it is told as it stands now.
        onsets = tuple(self.diagnoses[place] for place in told)
        return Changes(onsets, self._recover(findings, optimizer, step, present))

    def open(self, optimizer: int | None = None) -> list[Diagnosis]:
        """Return the faults that last, of one optimizer or of all."""
        return [d for d in self.diagnoses if d.recovered_at is None and optimizer in (None, d.optimizer)]

    @property
    def suspicious(self) -> bool:
        """Whether anything is wrong or may be: a fault that lasts, or a finding that patience holds back."""
        return bool(self._streaks) or bool(self.open())

    def _judged(self, rule: str, name: str, present: Mapping[str, int], seen: Sequence[int]) -> bool:
        if rule == "disconnected":
            # A layer without any gradient is what this rule speaks of; the others tell how far training is.
            # An optimizer that never had any gradient has no training that could be at its beginning.
            return max(seen, default=0) > self.warmup_steps or not any(seen)
        column = present.get(name)
        return column is not None and (rule == "non_finite" or seen[column] > self.warmup_steps)

    def _count(
        self, sick: set[tuple[int, str, str]], optimizer: int, present: Mapping[str, int], seen: Sequence[int]
    ) -> None:
        over = [k for k in self._streaks if k[0] == optimizer and k not in sick]
        for key in [k for k in over if k[2] in present or k[1] == "disconnected"]:
            del self._streaks[key]
        for key in sick:
            if self._judged(key[1], key[2], present, seen):
                self._streaks[key] = self._streaks.get(key, 0) + 1

    def _ripe(self, finding: Diagnosis, present: Mapping[str, int], seen: Sequence[int]) -> Diagnosis:
        patience = 1 if finding.rule in _IMMEDIATE else self.patience
        layers = tuple(
            name
            for name in finding.layers
            if self._judged(finding.rule, name, present, seen)
            and self._streaks[finding.optimizer, finding.rule, name] >= patience
        )
        return replace(finding, layers=layers)

    def _merge(self, fault: Diagnosis) -> int | None:
        kin = self._same_fault(fault)
        lasting = [place for place in kin if self.diagnoses[place].recovered_at is None]
        if not lasting:
            return self._begin(fault, kin)
        known = self.diagnoses[lasting[-1]]
        if known.severity == "notice" and fault.severity == "warning":
            self.diagnoses[lasting[-1]] = replace(fault, count=known.count)
            return self._tell(lasting[-1], kin)
        layers = tuple(dict.fromkeys(known.layers + fault.layers))
        self.diagnoses[lasting[-1]] = replace(known, layers=layers)
        return None

    def _begin(self, fault: Diagnosis, kin: Sequence[int]) -> int | None:
        """Put a fault into the list: at its end, or, after many onsets, in the place of the last one."""
        count = 1 + max((self.diagnoses[place].count for place in kin), default=0)
        warnings = [place for place in kin if self.diagnoses[place].severity == "warning"]
        # A notice never takes the place of the only warning, so that the list tells the worst.
        lonely = not warnings if fault.severity == "warning" else warnings == kin[-1:]
        if count <= _TOLD_ONSETS or lonely:
            self.diagnoses.append(fault)
        place = len(self.diagnoses) - 1 if count <= _TOLD_ONSETS or lonely else kin[-1]
        self.diagnoses[place] = replace(fault, count=count)
        return self._tell(place, kin)

    def _tell(self, place: int, kin: Sequence[int]) -> int | None:
        """Return the place of a fault where its onset, or that it became a warning, is to be told."""
        fault = self.diagnoses[place]
        earlier = [self.diagnoses[other].severity for other in kin if other != place]
        if not earlier or (fault.severity == "warning" and "warning" not in earlier):
            alike = (fault.optimizer, fault.symptom.value, fault.severity)
            self._num_alike[alike] = self._num_alike.get(alike, 0) + 1
            hushed = self._num_alike[alike] > _TOLD_FAULTS
            told = not hushed or _is_power_of_ten(self._num_alike[alike])
        else:
            hushed = self._hushed.issuperset(kin)
            # A notice that comes and goes is told once.
            counted = fault.count <= _TOLD_ONSETS or _is_power_of_ten(fault.count)
            told = not hushed and counted and fault.severity == "warning"
        (self._told.add if told else self._told.discard)(place)
        (self._hushed.add if hushed else self._hushed.discard)(place)
        return place if told else None

    def _same_fault(self, fault: Diagnosis) -> list[int]:
        layers = set(fault.layers)
        return [
            place
            for place, known in enumerate(self.diagnoses)
            if known.optimizer == fault.optimizer
            and known.symptom == fault.symptom
            and not layers.isdisjoint(known.layers)
        ]

    def _recover(
        self, findings: Sequence[Diagnosis], optimizer: int, step: int, present: Mapping[str, int]
    ) -> tuple[Diagnosis, ...]:
        sick = {(finding.symptom, name) for finding in findings for name in finding.layers}
        # A warning is over when no more than notices are left of it.
        alarming = {(f.symptom, name) for f in findings for name in f.layers if f.severity == "warning"}
        # A layer whose gradient is NaN is not well: it can show no other symptom.
        unknown = {name for symptom, name in sick if symptom is Symptom.NON_FINITE}
        over = []
        for place, known in enumerate(self.diagnoses):
            if known.recovered_at is not None or known.optimizer != optimizer:
                continue
            lasting = alarming if known.severity == "warning" else sick
            if any((known.symptom, name) in lasting for name in known.layers):
                self._quiet[place] = 0
            elif any(name in present and name not in unknown for name in known.layers):
                self._quiet[place] = self._quiet.get(place, 0) + 1
            if self._quiet.get(place, 0) >= self.patience:
                self.diagnoses[place] = replace(known, recovered_at=step)
                del self._quiet[place]
                if place in self._told and known.severity == "warning":
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
            "told": sorted(self._told),
            "hushed": sorted(self._hushed),
            "alike": [[*key, count] for key, count in self._num_alike.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.diagnoses = [Diagnosis.from_dict(values) for values in state["diagnoses"]]
        self._streaks = {(optimizer, rule, name): count for optimizer, rule, name, count in state["streaks"]}
        self._quiet = dict(state["quiet"])
        self._told, self._hushed = set(state["told"]), set(state["hushed"])
        self._num_alike = {
            (optimizer, symptom, severity): count for optimizer, symptom, severity, count in state["alike"]
        }


def _is_power_of_ten(count: int) -> bool:
    return count >= 10 and set(str(count)) <= {"1", "0"} and str(count).count("1") == 1
