"""Intermediate representation of circuits: lowered gates, light cones, connected components."""
