"""The benchmark of dense against pruned, in turns beside each other."""
