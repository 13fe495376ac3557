"""Background steps: they stop between two blocks as soon as the engine is wanted for anything else.

A step on a CPU takes a quarter of the time to a live request's first token, which would have to
wait for its end. Nothing in the engine itself knows of this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.sequence import TokenEvent
from pruning.models.blocks import block_list


class StepInterrupted(BaseException):
    """A forward was stopped between two blocks. No error: the engine must not handle it as one."""


def background_step(engine: Engine, is_interrupted: Callable[[], bool]) -> list[TokenEvent]:
    """A step of an engine without live work; preempts it as soon as ``is_interrupted`` is true."""
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

    hooks = [_first_module(its).register_forward_pre_hook(check) for its in block_list(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_module(block: nn.Module) -> nn.Module:
    """One that every forward calls once, also the flat one, which does not call the block."""
    return next(
        its for its in block.modules() if next(its.parameters(recurse=False), None) is not None
    )
