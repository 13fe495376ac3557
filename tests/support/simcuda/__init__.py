"""A simulated CUDA device: ``cuda:0`` and ``cuda:1`` for a CPU build of torch.

Tensors are real tensors of the device and kernels are the CPU's, in the memory of the host. What a
GPU does differently is kept: tensors of two devices do not mix, copies and waits of the host are
logged, a graph repeats what it captured on the same memory, and a card has as much memory as it is
given. Not simulated: time, streams that run beside each other, and the kernels of a GPU themselves.
"""
