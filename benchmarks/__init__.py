"""Measurements: both sides in one process, ratios, and the facts of the machine."""
