"""Replicas of the API on a Ray cluster."""
