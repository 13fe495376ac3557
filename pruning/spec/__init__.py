"""The settings of a pruning job, as plain data."""
