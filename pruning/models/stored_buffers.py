"""Buffers that a checkpoint stores: parameters to all that reads, streams, writes or compares one.

Buffers that are computed from the config stay buffers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def as_parameters(model: "nn.Module") -> None:
    """Make parameters of the stored buffers of a model, under the same names."""
    from torch import nn  # noqa: PLC0415 - takes seconds

    for module in model.modules():
        for name, buffer in tuple(module._buffers.items()):
            if buffer is not None and name not in module._non_persistent_buffers_set:
                del module._buffers[name]
                module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
