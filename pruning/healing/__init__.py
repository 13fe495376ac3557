"""Healing: an adapter of the blocks that stay, trained to predict what the dense model predicts."""
