"""Batched generation with a dense model or one of its pruned variants, and its responses: whole,
and as server-sent events.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

from fastapi import APIRouter, Request, Response
from fastapi.sse import format_sse_event

from app.api.deps import GeneratorDep
from app.api.generations import SheddingRoute, respond
from app.api.openapi import EVENT_STREAM, Responses, responses_for
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
from app.api.schemas.sampling import sampling_params
from app.generation.generator import RAISES
from app.generation.output import Delta, Output, Token, TokenKey
from app.generation.request import GenerationRequest
from app.generation.vocabulary import NoTokenIds, Vocabulary
from app.models.entry import ModelKind
from app.request_id import current_request_id

router = APIRouter(tags=["generate"], route_class=SheddingRoute)

_RESPONSES: Responses = {**responses_for(*RAISES, has_body=True), 200: {"content": EVENT_STREAM}}


@router.post("/generate", response_model=GenerateView, responses=_RESPONSES)
async def generate(
    body: GenerateBody, generator: GeneratorDep, request: Request
) -> GenerateView | Response:
    """Generate an output for each prompt, in one batch.

    With ``stream``, the response is a stream of server-sent events: ``text`` with the delta of an
    output, and finally ``done`` with the same body as a response without ``stream``, or ``error``
    with a problem document.
    """
    params = sampling_params(body, num_logprobs=body.logprobs)
    served = await generator.load(body.model)
    generation_request = GenerationRequest(
        served,
        prompts=body.prompts,
        params=params,
        stop=body.stop_strings,
        timeout_s=body.timeout_s,
        cache_salt=body.cache_salt,
    )
    format_ = GenerateFormat(body, Vocabulary(served.tokenizer), served.entry.kind)
    return await respond(request, generator, generation_request, format_, is_streamed=body.stream)


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
