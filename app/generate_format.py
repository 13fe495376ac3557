"""The answers to ``POST /generate``, as a whole and event by event."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from asgi_correlation_id import correlation_id
from fastapi.sse import format_sse_event
from transformers import PreTrainedTokenizerBase

from app.answer import Output, Piece, Token
from app.engine.text import token_text
from app.errors import problem_of
from app.schemas import (
    GenerateBody,
    GenerateView,
    LogprobView,
    OutputView,
    PieceView,
    TimingsView,
    TokenView,
)


class GenerateFormat:
    """Events are ``text``, one per output and moment, then ``done`` or ``error``."""

    def __init__(
        self,
        body: GenerateBody,
        tokenizer: PreTrainedTokenizerBase,
        variant: Literal["dense", "pruned"],
    ) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._variant: Literal["dense", "pruned"] = variant

    def whole(self, outputs: Sequence[Output]) -> GenerateView:
        return GenerateView(
            id=correlation_id.get() or "",
            model=self._body.model,
            variant=self._variant,
            created_at=time.time(),
            outputs=[self._output(index, output) for index, output in enumerate(outputs)],
        )

    def pieces(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        for piece in filter(lambda piece: piece.text or piece.tokens, pieces):
            view = PieceView(
                index=piece.index,
                text=piece.text,
                token_ids=self._token_ids(piece.tokens),
                logprobs=self._logprobs(piece.tokens),
            )
            data = view.model_dump_json(exclude_none=True, ensure_ascii=True)
            yield format_sse_event(event="text", data_str=data)

    def end(self, outputs: Sequence[Output]) -> Iterator[bytes]:
        yield format_sse_event(
            event="done", data_str=self.whole(outputs).model_dump_json(ensure_ascii=True)
        )

    def error(self, error: Exception) -> bytes:
        return format_sse_event(event="error", data_str=json.dumps(problem_of(error).marshal()))

    def _output(self, index: int, output: Output) -> OutputView:
        timings = output.timings
        return OutputView(
            index=index,
            text=output.text,
            finish_reason=output.finish_reason.value,
            prompt_tokens=output.num_prompt_tokens,
            completion_tokens=len(output.tokens),
            timings=TimingsView(
                queue_s=timings.queue_s,
                ttft_s=timings.ttft_s,
                tpot_s=timings.tpot_s,
                e2e_s=timings.e2e_s,
            ),
            token_ids=self._token_ids(output.tokens),
            logprobs=self._logprobs(output.tokens),
        )

    def _token_ids(self, tokens: Iterable[Token]) -> list[int] | None:
        return [token.id for token in tokens] if self._body.return_token_ids else None

    def _logprobs(self, tokens: Iterable[Token]) -> list[TokenView] | None:
        if self._body.logprobs is None:
            return None
        return [
            TokenView(
                **self._logprob(token.id, token.logprob or 0.0).model_dump(),
                top=[self._logprob(token_id, value) for token_id, value in token.top_logprobs],
            )
            for token in tokens
        ]

    def _logprob(self, token_id: int, logprob: float) -> LogprobView:
        text = token_text(self._tokenizer, token_id)
        return LogprobView(token_id=token_id, token=text, logprob=logprob)
