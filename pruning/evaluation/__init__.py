"""Evaluation: perplexity, the probe, zero-shot tasks and the quality gate."""
