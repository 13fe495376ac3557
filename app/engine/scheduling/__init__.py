"""Requests, the sequences they become, and which of them the next forward has."""
