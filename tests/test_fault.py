"""Test ``lightning_gradwatch.fault``."""

from __future__ import annotations

import pickle

from lightning_gradwatch import Diagnosis, GradientFault, Remedy, Symptom


def test_it_travels_between_processes():
    """An error of a worker process arrives with its words and diagnoses; remedies stay with the model."""
    sick = Diagnosis("non_finite", Symptom.NON_FINITE, layers=("net.0",), step=3, message="gradients are NaN")
    model = lambda: None  # noqa: E731 - what cannot be pickled
    told = Diagnosis(**{**sick.__dict__, "remedies": (Remedy("title", "reason", sick, change=model),)})
    arrived = pickle.loads(pickle.dumps(GradientFault("step 3: gradients are NaN", [told])))
    assert isinstance(arrived, GradientFault)
    assert str(arrived) == "step 3: gradients are NaN"
    assert arrived.diagnoses == (sick,)
