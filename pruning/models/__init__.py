"""Models: their architectures, blocks, files, memory and forward passes."""
