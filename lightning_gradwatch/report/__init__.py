"""Fourth floor: telling a person what was found."""
