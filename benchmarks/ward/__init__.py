"""A ward of sick and healthy networks: how well GradWatch tells them apart, beside every published rule."""
