"""Serve dense models and their pruned variants side by side, and run pruning jobs. The web edge."""
