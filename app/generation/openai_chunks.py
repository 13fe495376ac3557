"""The chunks of an OpenAI server's stream: text, tokens, a finish reason and the usage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pydantic import AliasPath, BaseModel, ConfigDict, Field, NonNegativeInt

from app.engine.scheduling.sequence import FinishReason, PromptToken
from app.generation.output import CallPart, Spelling, Token, TokenKey

_REPLACEMENT = "\ufffd"
_MAX_MESSAGE_CHARS = 1000
# vLLM's finish reasons of failed requests
_FAILED = ("abort", "error")


class ChunkRefused(ValueError):
    """The server reported an error in its stream."""


class Usage(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt
    cached_tokens: NonNegativeInt | None = Field(  # of the prompt, where the server says so
        default=None, validation_alias=AliasPath("prompt_tokens_details", "cached_tokens")
    )


@dataclass(frozen=True)
class Chunk:
    """One event. The usage comes with the last one, or after the finish reason."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None
    usage: Usage | None
    prompt: tuple[PromptToken, ...] = ()  # if its log-probabilities were requested
    calls: tuple[CallPart, ...] = ()


class _TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _ChatToken(_TopLogprob):
    top_logprobs: list[_TopLogprob] = Field(default_factory=list)


class Logprobs(BaseModel):
    """Of completions, lists with one element per token; of chat completions, ``content``."""

    tokens: list[str] = Field(default_factory=list)
    token_logprobs: list[float | None] = Field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
    content: list[_ChatToken] | None = None


class _CallDelta(BaseModel):
    index: NonNegativeInt
    id: str | None = None
    name: str | None = Field(default=None, validation_alias=AliasPath("function", "name"))
    arguments: str | None = Field(default=None, validation_alias=AliasPath("function", "arguments"))


class Choice(BaseModel):
    text: str = ""
    content: str | None = Field(default=None, validation_alias=AliasPath("delta", "content"))
    calls: list[_CallDelta] | None = Field(
        default=None, validation_alias=AliasPath("delta", "tool_calls")
    )
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None  # vLLM's, if they were requested
    prompt_token_ids: list[int] | None = None
    stop_reason: int | str | None = None  # vLLM's: the id or the string that it stopped at


class _Event(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)  # it is the text of a client

    error: Any = None
    choices: list[Choice] = Field(default_factory=list, max_length=1)
    usage: Usage | None = None


class ChunkReader:
    """Reads the events of one output, and counts characters for the offsets of its tokens."""

    def __init__(self) -> None:
        self._num_characters = 0

    def read(self, data: str) -> Chunk:
        """Parse an event. Raises ``ChunkRefused`` for an error, ``ValueError`` for invalid data."""
        event = _Event.model_validate_json(data)
        if event.error is not None:
            raise ChunkRefused(f"it reported: {str(event.error)[:_MAX_MESSAGE_CHARS]}")
        choice = event.choices[0] if event.choices else Choice()
        if choice.finish_reason in _FAILED:
            raise ChunkRefused(f"it reported finish_reason {choice.finish_reason}")
        tokens, prompt = tuple(self._tokens(choice)), tuple(self._prompt(choice))
        text = choice.text or choice.content or ""
        self._num_characters += len(text)
        return Chunk(
            text,
            tokens,
            _finish_reason(choice.finish_reason),
            event.usage,
            prompt,
            tuple(
                CallPart(call.index, call.id, call.name, call.arguments or "")
                for call in choice.calls or ()
            ),
        )

    def _prompt(self, _choice: Choice) -> Iterable[PromptToken]:
        return ()

    def _tokens(self, choice: Choice) -> Iterable[Token]:
        logprobs = choice.logprobs
        if logprobs is None:
            return
        of_chat = logprobs.content is not None
        tokens = list(_chat_tokens(logprobs) if of_chat else _completion_tokens(logprobs))
        lengths = [len(token.text) for token, _, _ in tokens]
        offsets = list(accumulate(lengths, initial=self._num_characters))
        known = logprobs.text_offset or []
        # Exact inside of a character too, but some servers count from 0 in every chunk.
        if len(known) == len(tokens) and min(known, default=0) >= self._num_characters:
            offsets = known
        for (token, logprob, top), offset in zip(tokens, offsets, strict=False):
            yield Token(token, True, offset, logprob, top)


_Found = tuple[Spelling, float | None, tuple[tuple[TokenKey, float], ...]]


def _completion_tokens(logprobs: Logprobs) -> Iterable[_Found]:
    """Tokens of the completions route, which gives their texts alone."""
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    for text, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True):
        yield _spelling(text), logprob, _ranked(top or {})


def _ranked(top: Mapping[str, float]) -> tuple[tuple[TokenKey, float], ...]:
    best_first = sorted(top.items(), key=lambda item: -item[1])
    return tuple((_spelling(text), logprob) for text, logprob in best_first)


def _chat_tokens(logprobs: Logprobs) -> Iterable[_Found]:
    for token in logprobs.content or ():
        top = tuple((_spelling(one.token, one.bytes), one.logprob) for one in token.top_logprobs)
        yield _spelling(token.token, token.bytes), token.logprob, top


def _spelling(text: str, raw: Iterable[int] | None = None) -> Spelling:
    """A token with the given bytes, or with those of its text if that has whole characters."""
    if raw is not None:
        return Spelling(text, bytes(raw))
    return Spelling(text, None if _REPLACEMENT in text else text.encode())


def _finish_reason(text: str | None) -> FinishReason | None:
    if text is None:
        return None
    return FinishReason.LENGTH if text == "length" else FinishReason.STOP
