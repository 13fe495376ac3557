"""Kernels of blocks and products: torch's, compiled, int8. Autotuning chooses between them."""
