"""The doctor: what keeps this machine from serving or pruning."""
