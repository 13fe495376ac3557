"""The responses of ``POST /generate``: whole, and as server-sent events."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence

from fastapi.sse import format_sse_event

from app.api.errors import problem_of
from app.api.schemas.bodies import view_of
from app.api.schemas.generate import (
    GenerateBody,
    GenerateView,
    LogprobView,
    OutputDeltaView,
    OutputView,
    TimingsView,
    TokenView,
)
from app.generation.output import Delta, Output, Token, TokenKey
from app.generation.vocabulary import NoTokenIds, Vocabulary
from app.models.entry import ModelKind
from app.request_id import current_request_id


class GenerateFormat:
    """Events are ``text``, each with the delta of one output, then ``done`` or ``error``.

    Raises ``NoTokenIds``.
    """

    def __init__(self, body: GenerateBody, vocabulary: Vocabulary, variant: ModelKind) -> None:
        if body.return_token_ids and not vocabulary.has_ids:
            raise NoTokenIds("return_token_ids")
        self._body = body
        self._vocabulary = vocabulary
        self._variant: ModelKind = variant

    def whole(self, outputs: Sequence[Output]) -> GenerateView:
        return GenerateView(
            id=current_request_id.get() or "",
            model=self._body.model,
            variant=self._variant,
            created_at=time.time(),
            outputs=[self._output(index, output) for index, output in enumerate(outputs)],
        )

    def deltas(self, deltas: Sequence[Delta]) -> Iterator[bytes]:
        for delta in filter(lambda delta: delta.text or delta.tokens, deltas):
            view = OutputDeltaView(
                index=delta.index,
                text=delta.text,
                token_ids=self._token_ids(delta.tokens),
                logprobs=self._logprobs(delta.tokens),
            )
            data = view.model_dump_json(exclude_none=True, ensure_ascii=True)
            yield format_sse_event(event="text", data_str=data)

    def end(self, outputs: Sequence[Output]) -> Iterator[bytes]:
        yield format_sse_event(
            event="done", data_str=self.whole(outputs).model_dump_json(ensure_ascii=True)
        )

    def error(self, error: Exception) -> bytes:
        return format_sse_event(event="error", data_str=json.dumps(problem_of(error).document))

    def _output(self, index: int, output: Output) -> OutputView:
        return OutputView(
            index=index,
            text=output.text,
            finish_reason=output.finish_reason.value,
            prompt_tokens=output.num_prompt_tokens,
            completion_tokens=output.num_tokens,
            timings=view_of(TimingsView, output.timings),
            token_ids=self._token_ids(output.tokens),
            logprobs=self._logprobs(output.tokens),
        )

    def _token_ids(self, tokens: Iterable[Token]) -> list[int] | None:
        if not self._body.return_token_ids:
            return None
        return [token.key for token in tokens if isinstance(token.key, int)]

    def _logprobs(self, tokens: Iterable[Token]) -> list[TokenView] | None:
        if self._body.logprobs is None:
            return None
        return [
            TokenView(
                **self._logprob(token.key, token.logprob or 0.0).model_dump(),
                top=[self._logprob(key, value) for key, value in token.top_logprobs],
            )
            for token in tokens
        ]

    def _logprob(self, token: TokenKey, logprob: float) -> LogprobView:
        token_id = token if isinstance(token, int) else None
        return LogprobView(token_id=token_id, token=self._vocabulary.spell(token), logprob=logprob)
