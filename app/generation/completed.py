"""Finished outputs of live requests, for those that look at them afterwards."""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass

from app.engine.grammar import Grammar
from app.generation.output import Output
from app.generation.request import GenerationRequest, Served


@dataclass(frozen=True)
class CompletedOutput:
    """An output that a client has waited for to its end.

    Its request is for this output alone: with one prompt, and a seed and a length of its own.
    """

    request: GenerationRequest
    prompt_ids: Sequence[int]
    output: Output
    grammar: Grammar | None = None  # of the response format, in the engine of this process

    @property
    def served(self) -> Served:
        return self.request.served


Listener = Callable[[CompletedOutput], None]


class Completions:
    """Calls its listener, if it has one, with every completed output."""

    def __init__(self) -> None:
        self.listener: Listener | None = None

    def publisher(
        self,
        request: GenerationRequest,
        prompt_ids: Sequence[int],
        grammar: Grammar | None = None,
    ) -> Callable[[Output], None]:
        """Calls the listener in the context of the request, which is the current one."""
        context = copy_context()

        def publish(output: Output) -> None:
            if self.listener is not None:
                completed = CompletedOutput(request, prompt_ids, output, grammar)
                context.run(self.listener, completed)

        return publish
