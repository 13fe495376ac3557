"""Dense against pruned: agreement, paired timings, shadow traffic."""
