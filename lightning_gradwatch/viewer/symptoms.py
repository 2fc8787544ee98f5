"""The words for what is wrong with a gradient; the viewer imports no rule, so a test holds them against ``Symptom``."""

SYMPTOMS = ("vanishing", "exploding", "non_finite", "spike", "dead", "disconnected")
