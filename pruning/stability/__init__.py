"""Stability: how far removal orders from different calibration text agree."""
