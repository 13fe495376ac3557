"""Benchmarks of the search and of serving. Their reports include the machine and the command."""
