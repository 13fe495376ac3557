"""Pruning jobs in Redis: their records, transitions, events and deliveries."""
