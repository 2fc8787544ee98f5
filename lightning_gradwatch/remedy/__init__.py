"""Third floor: what to do about a diagnosis."""
