"""What OpenAI's answers have in common: one id and moment for all chunks, usage, errors, an end."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from uuid import uuid4

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from app.api.errors import problem_of
from app.api.problems import envelope
from app.api.schemas.openai import Finish, GenerationBody, StreamOptions, Usage
from app.engine.async_engine import EngineStopped
from app.engine.sequence import FinishReason
from app.generation.output import Output, Piece, Vocabulary

_UNLIKELY = -9999.0  # OpenAI's number for what has no chance; JSON knows no infinity


class OpenAIFormat(ABC):
    """Of one request: the answers to it, or the chunks of them."""

    def __init__(self, prefix: str, body: GenerationBody, vocabulary: Vocabulary) -> None:
        options = body.stream_options or StreamOptions()
        self._id = f"{prefix}-{uuid4().hex}"
        self._created = int(time.time())
        self._model = body.model
        self._n = body.n or 1
        self._vocabulary = vocabulary
        self._has_usage = bool(options.include_usage)
        self._has_usage_so_far = self._has_usage and bool(options.continuous_usage_stats)

    def end(self, outputs: Sequence[Output]) -> Iterator[bytes]:
        if self._has_usage:
            yield self._event(self._last_chunk(self._usage(outputs)))
        yield format_sse_event(data_str="[DONE]")

    def error(self, error: Exception) -> bytes:
        return format_sse_event(data_str=json.dumps(envelope(problem_of(error).marshal())[1]))

    @abstractmethod
    def _last_chunk(self, usage: Usage) -> BaseModel:
        """Without any choice."""

    def _event(self, chunk: BaseModel) -> bytes:
        exclude = None if self._has_usage else {"usage"}
        return format_sse_event(data_str=chunk.model_dump_json(exclude=exclude, ensure_ascii=True))

    def _usage(self, outputs: Sequence[Output]) -> Usage:
        """A prompt counts once, however many answers it gets."""
        num_prompt_tokens = sum(output.num_prompt_tokens for output in outputs[:: self._n])
        return Usage.of(num_prompt_tokens, sum(output.num_tokens for output in outputs))

    def _usage_so_far(self, piece: Piece) -> Usage | None:
        if not self._has_usage_so_far or piece.num_prompt_tokens is None:
            return None
        return Usage.of(piece.num_prompt_tokens, piece.num_tokens)


def finish_of(output: Output) -> Finish:
    """A deadline is a limit too. Raises ``EngineStopped`` for an answer that was given up."""
    if output.finish_reason is FinishReason.ABORT:
        raise EngineStopped("the service is stopping, and the answer has not come to its end")
    return "stop" if output.finish_reason is FinishReason.STOP else "length"


def finite(logprob: float | None) -> float:
    return max(_UNLIKELY if logprob is None else logprob, _UNLIKELY)
