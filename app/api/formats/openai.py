"""Completions and chat completions in OpenAI's formats: whole, and as chunks of a stream."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar
from uuid import uuid4

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from app.api.formats.tools import MessageDelta, ToolUse, found_calls, text_and_calls
from app.api.schemas.openai import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatFinish,
    ChatView,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionBody,
    CompletionChoice,
    CompletionView,
    Finish,
    GenerationBody,
    LegacyLogprobs,
    StreamOptions,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from app.engine.async_engine import EngineStopped
from app.engine.scheduling.sequence import FinishReason, PromptToken
from app.generation.output import Delta, Output, Token, TokenKey
from app.generation.vocabulary import Vocabulary

_Body = TypeVar("_Body", bound=BaseModel)

_UNLIKELY = -9999.0  # OpenAI's value for minus infinity, which JSON lacks


class OpenAIFormat:
    """Formats the outputs of one request, or their deltas."""

    _chunk_kind: ClassVar[type[BaseModel]]

    def __init__(
        self, prefix: str, body: GenerationBody, vocabulary: Vocabulary, fingerprint: str | None
    ) -> None:
        options = body.stream_options or StreamOptions()
        self._id = f"{prefix}-{uuid4().hex}"
        self._created = int(time.time())
        self._model = body.model
        self._fingerprint = fingerprint
        self._n = body.n or 1
        self._vocabulary = vocabulary
        self._has_usage = bool(options.include_usage)
        self._has_usage_so_far = self._has_usage and bool(options.continuous_usage_stats)

    def end(self, outputs: Sequence[Output]) -> Iterator[bytes]:
        if self._has_usage:
            yield self._event(self._body(self._chunk_kind, [], self._usage(outputs)))
        yield format_sse_event(data_str="[DONE]")

    def _body(self, kind: type[_Body], choices: Sequence[BaseModel], usage: Usage | None) -> _Body:
        return kind(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )

    def _event(self, chunk: BaseModel) -> bytes:
        exclude = None if self._has_usage else {"usage"}
        return format_sse_event(data_str=chunk.model_dump_json(exclude=exclude, ensure_ascii=True))

    def _usage(self, outputs: Sequence[Output]) -> Usage:
        """Count each prompt once, however many outputs it has."""
        firsts = outputs[:: self._n]
        num_prompt_tokens = sum(output.num_prompt_tokens for output in firsts)
        num_tokens = sum(output.num_tokens for output in outputs)
        return Usage.of(num_prompt_tokens, num_tokens, _num_cached_tokens(firsts))

    def _usage_so_far(self, delta: Delta) -> Usage | None:
        if not self._has_usage_so_far or delta.num_prompt_tokens is None:
            return None
        return Usage.of(delta.num_prompt_tokens, delta.num_tokens)


def _num_cached_tokens(outputs: Sequence[Output]) -> int | None:
    """None unless all of them tell."""
    nums_cached = [output.timings.num_cached_tokens for output in outputs]
    return sum(num for num in nums_cached if num is not None) if None not in nums_cached else None


def finish_of(output: Output) -> Finish:
    """Map the finish reason to OpenAI's: a timeout is ``length``.

    Raises ``EngineStopped`` for an aborted output.
    """
    if output.finish_reason is FinishReason.ABORT:
        raise EngineStopped("the service stopped before the output was complete")
    return "stop" if output.finish_reason is FinishReason.STOP else "length"


def finite(logprob: float | None) -> float:
    return max(_UNLIKELY if logprob is None else logprob, _UNLIKELY)


class ChatFormat(OpenAIFormat):
    """Streams start each output with a chunk of the role, and end it with the finish reason."""

    _chunk_kind = ChatChunk

    def __init__(
        self,
        body: ChatBody,
        vocabulary: Vocabulary,
        fingerprint: str | None,
        tools: ToolUse | None = None,
    ) -> None:
        super().__init__("chatcmpl", body, vocabulary, fingerprint)
        self._tools = tools
        self._has_logprobs = bool(body.logprobs)
        self._started: set[int] = set()  # indices of outputs whose role has been sent

    def whole(self, outputs: Sequence[Output]) -> ChatView:
        choices = [
            ChatChoice(
                index=index,
                message=self._message(output),
                logprobs=self._logprobs(output.tokens),
                finish_reason=self._finish(output),
            )
            for index, output in enumerate(outputs)
        ]
        return self._body(ChatView, choices, self._usage(outputs))

    def deltas(self, deltas: Sequence[Delta]) -> Iterator[bytes]:
        for delta in deltas:
            if is_first := delta.index not in self._started:
                self._started.add(delta.index)
                content = "" if self._tools is None else None
                yield self._chunk(delta, {"role": "assistant", "content": content})
            logprobs = self._logprobs(delta.tokens)
            messages = (
                text_and_calls(delta)
                if self._tools is None
                else self._tools.deltas(delta, is_first=is_first)
            )
            if not messages and logprobs and logprobs.content:
                messages = [{"content": ""}]
            for message in messages:
                yield self._chunk(delta, message, logprobs)
                logprobs = self._logprobs(())  # sent once
            if delta.output:
                yield self._chunk(delta, {}, finish=self._finish(delta.output))

    def _message(self, output: Output) -> AssistantMessage:
        if self._tools is None:
            calls = found_calls(output)
            text = output.text or None if calls else output.text
            return AssistantMessage(content=text, tool_calls=calls)
        return AssistantMessage(content=None, tool_calls=[self._tools.call(output.text)])

    def _finish(self, output: Output) -> ChatFinish:
        """A call that was cut short has no valid arguments."""
        finish, is_call = finish_of(output), self._tools is not None or bool(output.calls)
        return "tool_calls" if is_call and finish == "stop" else finish

    def _chunk(
        self,
        delta: Delta,
        message: MessageDelta,
        logprobs: ChoiceLogprobs | None = None,
        finish: ChatFinish | None = None,
    ) -> bytes:
        choice = ChunkChoice(
            index=delta.index, delta=message, logprobs=logprobs, finish_reason=finish
        )
        return self._event(self._body(ChatChunk, [choice], self._usage_so_far(delta)))

    def _logprobs(self, tokens: Iterable[Token]) -> ChoiceLogprobs | None:
        if not self._has_logprobs:
            return None
        return ChoiceLogprobs(content=[self._token(token) for token in tokens if token.is_text])

    def _token(self, token: Token) -> TokenLogprob:
        chosen = self._logprob(token.key, token.logprob)
        top = [self._logprob(key, logprob) for key, logprob in token.top_logprobs]
        return TokenLogprob(**chosen.model_dump(), top_logprobs=top)

    def _logprob(self, token: TokenKey, logprob: float | None) -> TopLogprob:
        raw = self._vocabulary.raw(token)
        return TopLogprob(
            token=self._vocabulary.spell(token),
            logprob=finite(logprob),
            bytes=None if raw is None else list(raw),
        )


class CompletionFormat(OpenAIFormat):
    """``prompts`` are those of the body, as texts or token ids. Raises ``NoTokenIds``."""

    _chunk_kind = CompletionView

    def __init__(
        self,
        body: CompletionBody,
        vocabulary: Vocabulary,
        fingerprint: str | None,
        prompts: Sequence[str | Sequence[int]],
    ) -> None:
        super().__init__("cmpl", body, vocabulary, fingerprint)
        self._num_logprobs = body.logprobs
        self._echoes: dict[int, str] = {}  # prompts to put in front of the outputs
        self._echoed: set[int] = set()  # indices of outputs whose prompt has been sent
        if body.echo:
            texts = [
                prompt if isinstance(prompt, str) else vocabulary.decode(prompt, "echo")
                for prompt in prompts
            ]
            self._echoes = dict(enumerate(text for text in texts for _ in range(self._n)))

    def whole(self, outputs: Sequence[Output]) -> CompletionView:
        choices = [
            CompletionChoice(
                index=index,
                text=self._echoes.get(index, "") + output.text,
                logprobs=self._logprobs(index, output.prompt, output.tokens),
                finish_reason=finish_of(output),
            )
            for index, output in enumerate(outputs)
        ]
        return self._body(CompletionView, choices, self._usage(outputs))

    def deltas(self, deltas: Sequence[Delta]) -> Iterator[bytes]:
        for delta in deltas:
            is_echoed = delta.index in self._echoed
            self._echoed.add(delta.index)
            choice = CompletionChoice(
                index=delta.index,
                text=("" if is_echoed else self._echoes.get(delta.index, "")) + delta.text,
                logprobs=self._logprobs(delta.index, delta.prompt, delta.tokens),
                finish_reason=finish_of(delta.output) if delta.output else None,
            )
            yield self._event(self._body(CompletionView, [choice], self._usage_so_far(delta)))

    def _logprobs(
        self, index: int, prompt: Sequence[PromptToken], tokens: Sequence[Token]
    ) -> LegacyLogprobs | None:
        """Of the prompt, if it is reported, and of these tokens, an end of sequence included."""
        if self._num_logprobs is None:
            return None
        echo = self._echoes.get(index, "")
        begins = self._vocabulary.offsets([each.token_id for each in prompt], echo)
        every = [
            Token(each.token_id, True, begin, each.logprob, each.top_logprobs)
            for each, begin in zip(prompt, begins, strict=True)
        ]
        every += [replace(token, offset=len(echo) + token.offset) for token in tokens]
        predicted, unpredicted = (every[1:], [None]) if prompt else (every, [])
        return LegacyLogprobs(
            tokens=[self._vocabulary.spell(token.key) for token in every],
            token_logprobs=[*unpredicted, *(finite(token.logprob) for token in predicted)],
            top_logprobs=[*unpredicted, *map(self._top, predicted)] if self._num_logprobs else None,
            text_offset=[token.offset for token in every],
        )

    def _top(self, token: Token) -> dict[str, float]:
        """Return the best tokens and the chosen one; of equal texts, the most likely token."""
        logprobs: dict[str, float] = {}
        for key, logprob in (*token.top_logprobs, (token.key, token.logprob)):
            logprobs.setdefault(self._vocabulary.spell(key), finite(logprob))
        return logprobs
