"""Background steps, which are interrupted between two blocks as soon as other work arrives.

On a CPU, a whole step would delay the first token of a live request by a quarter. The engine itself
does not know of the interruption.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.sequence import TokenEvent
from pruning.models.blocks import block_list


class StepInterrupted(BaseException):
    """A forward was interrupted. No ``Exception``: the engine would handle it as a failure."""


def background_step(engine: Engine, is_interrupted: Callable[[], bool]) -> list[TokenEvent]:
    """Step an engine without live work. Preempts its request once ``is_interrupted`` is true."""
    variant = engine.background_variant
    if variant is None:
        return []
    try:
        with _interruptible(variant.model, is_interrupted):
            return engine.step()
    except StepInterrupted:
        engine.preempt()
        return []


@contextmanager
def _interruptible(model: PreTrainedModel, is_interrupted: Callable[[], bool]) -> Iterator[None]:
    """Make forwards of this model raise ``StepInterrupted`` between blocks."""

    def check(_module: nn.Module, _args: object) -> None:
        if is_interrupted():
            raise StepInterrupted

    hooks = [_first_module(block).register_forward_pre_hook(check) for block in block_list(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_module(block: nn.Module) -> nn.Module:
    """The first norm, which every forward calls once.

    The flat forward calls neither the block itself nor the linear layers that it has merged.
    """
    own = ((module, list(module.parameters(recurse=False))) for module in block.modules())
    return next(module for module, found in own if found and all(each.ndim == 1 for each in found))
