"""One answer as it grows: events in, pieces of final text out, and at the end the whole of it."""

import asyncio
from dataclasses import dataclass

from app.engine.sequence import FinishReason, Timings, TokenEvent
from app.engine.text import TextStream


class GenerationFailed(RuntimeError):
    """The engine gave up on a request that it had accepted."""


@dataclass(frozen=True)
class Token:
    """A generated token; its text begins ``offset`` characters behind the start of the answer."""

    id: int
    is_text: bool  # false for the one that ended the sequence
    offset: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]  # token ids, the most likely first


@dataclass(frozen=True)
class Output:
    """One finished answer; ``tokens`` are all generated ones, an end of sequence included."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    tokens: tuple[Token, ...]
    timings: Timings

    @property
    def token_ids(self) -> list[int]:
        return [token.id for token in self.tokens]


@dataclass(frozen=True)
class Piece:
    """What is new of one answer. Tokens come with the text that they complete; the end, last."""

    index: int  # of the answer in its call
    text: str
    tokens: tuple[Token, ...]
    num_prompt_tokens: int
    num_tokens: int  # generated so far
    output: Output | None  # the finished answer, with its last piece


class Answer:
    """Gathers the events of one request until it ends or a stop string appears."""

    def __init__(self, index: int, num_prompt_tokens: int, text: TextStream) -> None:
        self._index = index
        self._num_prompt_tokens = num_prompt_tokens
        self._stream = text
        self._text: list[str] = []
        self._tokens: list[Token] = []
        self._taken = (0, 0)  # of text and tokens
        self._last_token_s: float | None = None
        self._output: Output | None = None
        self.is_taken = False  # whether the last piece is out

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found: whatever comes now is no part of the answer."""
        return self._stream.is_stopped

    @property
    def output(self) -> Output:
        assert self._output is not None, "the answer has not come to its end"
        return self._output

    def add(self, event: TokenEvent) -> float | None:
        """Take the next event; returns the seconds between its token and the one before it.

        Raises ``GenerationFailed`` for the end that the engine makes of what it cannot do.
        """
        gap_s = None
        if event.token_id is not None and not self.is_stopped:
            gap_s = self._add_token(event.token_id, event)
        if event.finish_reason is not None:
            self._output = self._end(event.finish_reason, event)
        return gap_s

    def take(self) -> Piece | None:
        """What has come since the last piece; None while there is no final text and no end."""
        num_taken, num_tokens_taken = self._taken
        text = "".join(self._text[num_taken:])
        if self.is_taken or not (text or self._output):
            return None
        self._taken = (len(self._text), len(self._tokens))
        self.is_taken = self._output is not None
        return Piece(
            self._index,
            text,
            tuple(self._tokens[num_tokens_taken:]),
            self._num_prompt_tokens,
            len(self._tokens),
            self._output,
        )

    def _add_token(self, token_id: int, event: TokenEvent) -> float | None:
        offset = self._stream.num_characters
        self._tokens.append(
            Token(token_id, event.is_text, offset, event.logprob, event.top_logprobs)
        )
        if event.is_text:
            self._text.append(self._stream.push(token_id))
        now_s = asyncio.get_running_loop().time()
        last_s, self._last_token_s = self._last_token_s, now_s
        return None if last_s is None else now_s - last_s

    def _end(self, reason: FinishReason, last: TokenEvent) -> Output:
        assert last.timings is not None
        if reason is FinishReason.ERROR:
            raise GenerationFailed("the engine failed on this request; its log says why")
        if self.is_stopped:
            reason = FinishReason.STOP
        else:
            self._text.append(self._stream.flush())
            reason = FinishReason.STOP if self.is_stopped else reason
        text, tokens = "".join(self._text), tuple(self._tokens)
        return Output(text, reason, self._num_prompt_tokens, tokens, last.timings)
