"""Text: calibration windows and held-out text."""
