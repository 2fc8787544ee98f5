"""Second floor: pure functions from numbers to diagnoses; no torch."""
