"""Decode steps of a few sequences on a CPU, compiled for the processor that runs them."""
