"""Background steps, which are interrupted between two blocks as soon as other work arrives.

On a CPU, a whole step would delay the first token of a live request by a quarter. Until then they
run what live steps run.
"""

from app.engine.engine import Engine
from app.engine.scheduling.sequence import TokenEvent
from app.engine.step import Interruption, StepInterrupted


def background_step(engine: Engine, interruption: Interruption) -> list[TokenEvent]:
    """Step an engine without live work. Preempts its request once it is interrupted."""
    if not engine.has_work:
        return []
    try:
        return engine.step(interruption)
    except StepInterrupted:
        engine.preempt()
        return []
