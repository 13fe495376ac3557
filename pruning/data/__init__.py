"""Text: corpora, calibration windows and held-out windows."""
