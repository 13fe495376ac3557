"""One output of a generation as it grows: deltas of final text, then the finished output.

Some look at outputs of live requests afterwards.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass

from app.engine.grammar import Grammar
from app.engine.scheduling.sequence import FinishReason, PromptToken, Timings
from app.generation.request import GenerationRequest, Served


class GenerationFailed(RuntimeError):
    """The engine failed on a request that it had accepted."""


@dataclass(frozen=True)
class Spelling:
    """A token of another server, known by its text and perhaps its bytes, not by an id."""

    text: str
    raw: bytes | None


TokenKey = int | Spelling  # an id where ids are known


@dataclass(frozen=True)
class Token:
    """A generated token; its text begins ``offset`` characters after the start of the output."""

    key: TokenKey
    is_text: bool  # false for an end-of-sequence token
    offset: int
    logprob: float | None
    top_logprobs: tuple[tuple[TokenKey, float], ...]  # most likely first


@dataclass(frozen=True)
class CallPart:
    """A part of a call of a tool, as another server has found it in an output.

    Parts of one ``index`` are of one call. The first of them has its id and its name.
    """

    index: int  # of the call in its output
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class Output:
    """One finished output.

    ``tokens`` are all generated tokens, an end of sequence included, if the backend reports them.
    ``prompt`` has the tokens of the prompt if their log-probabilities were requested. ``calls``
    are no part of the text.
    """

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    tokens: tuple[Token, ...]
    timings: Timings
    prompt: tuple[PromptToken, ...] = ()
    calls: tuple[CallPart, ...] = ()  # one part for each call


@dataclass(frozen=True)
class Delta:
    """A change of one output. Tokens come with the text that they complete.

    The first has the tokens of the prompt if their log-probabilities were requested.
    """

    index: int  # of the output in its request
    text: str
    tokens: tuple[Token, ...]
    num_prompt_tokens: int | None  # None while it is not known
    num_tokens: int  # generated so far
    output: Output | None  # the finished output, with its last delta
    prompt: tuple[PromptToken, ...] = ()
    calls: tuple[CallPart, ...] = ()


class OutputStream(ABC):
    """Gathers what is generated until it is taken, at any pace."""

    def __init__(self, index: int, num_prompt_tokens: int | None) -> None:
        self._index = index
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._text: list[str] = []
        self._tokens: list[Token] = []
        self._prompt: tuple[PromptToken, ...] = ()
        self._calls: list[CallPart] = []
        self._taken = (0, 0, 0)  # of text, tokens and calls
        self._is_prompt_taken = False
        self._output: Output | None = None
        self.failure: Exception | None = None  # why it will not finish
        self.has_begun = False  # from then on it may fail, but is not refused
        self.is_exhausted = False  # whether the last delta has been taken

    @abstractmethod
    def start(self, notify: Callable[[], None]) -> None:
        """Begin to gather; calls ``notify`` after each change, the end and a failure included."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop the generation, if it still runs."""

    @property
    def is_finished(self) -> bool:
        return self._output is not None

    @property
    def output(self) -> Output:
        assert self._output is not None, "the output is not finished"
        return self._output

    @property
    def has_delta(self) -> bool:
        """Whether there is anything to take."""
        has_news = any(self._untaken_text) or len(self._calls) > self._taken[2]
        return not self.is_exhausted and (self._output is not None or has_news)

    def take_delta(self) -> Delta | None:
        """The change since the last delta; None while there is no final text, call or end."""
        if not self.has_delta:
            return None
        text, tokens = "".join(self._untaken_text), tuple(self._tokens[self._taken[1] :])
        calls = tuple(self._calls[self._taken[2] :])
        self._taken = (len(self._text), len(self._tokens), len(self._calls))
        self.is_exhausted = self._output is not None
        prompt = () if self._is_prompt_taken else self._prompt
        self._is_prompt_taken = True
        return Delta(
            self._index,
            text,
            tokens,
            self._num_prompt_tokens,
            self._num_tokens,
            self._output,
            prompt,
            calls,
        )

    @property
    def _untaken_text(self) -> list[str]:
        return self._text[self._taken[0] :]

    def _finish(self, reason: FinishReason, timings: Timings) -> None:
        self._output = Output(
            "".join(self._text),
            reason,
            self._num_prompt_tokens or 0,
            self._num_tokens,
            tuple(self._tokens),
            timings,
            self._prompt,
            _whole(self._calls),
        )


def _whole(parts: Iterable[CallPart]) -> tuple[CallPart, ...]:
    """One part for each call, in the order of their first parts."""
    calls: dict[int, CallPart] = {}
    for part in parts:
        known = calls.get(part.index, CallPart(part.index, None, None, ""))
        calls[part.index] = CallPart(
            part.index,
            known.id or part.id,
            known.name or part.name,
            known.arguments + part.arguments,
        )
    return tuple(calls.values())


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
