"""Batched generation, from the dense model or any of its pruned variants."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.deps import GeneratorDep
from app.api.errors import described
from app.api.formats.generate import GenerateFormat
from app.api.openapi import EVENT_STREAM
from app.api.schemas.generate import GenerateBody, GenerateView
from app.api.sse import answer
from app.engine.admission import Overloaded
from app.engine.async_engine import EngineStopped
from app.engine.engine import RequestRefused
from app.generation.openai_client import (
    BackendFailed,
    BackendOverloaded,
    BackendRefused,
    BackendTimedOut,
    BackendUnavailable,
)
from app.generation.output import GenerationFailed, Vocabulary
from app.generation.request import Call
from app.models.catalog import UnknownModel
from app.models.registry import ModelReplaced
from app.models.weights import NoRoomForWeights
from pruning.jobs.redis import JobStoreUnavailable

router = APIRouter(tags=["generate"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    **described(
        UnknownModel,
        RequestRefused,
        Overloaded,
        EngineStopped,
        JobStoreUnavailable,
        ModelReplaced,
        NoRoomForWeights,
        GenerationFailed,
        BackendFailed,
        BackendOverloaded,
        BackendRefused,
        BackendTimedOut,
        BackendUnavailable,
        has_body=True,
    ),
    200: {"content": EVENT_STREAM},
}


@router.post("/generate", response_model=GenerateView, responses=_ANSWERS)
async def generate(
    body: GenerateBody, generator: GeneratorDep, request: Request
) -> GenerateView | Response:
    """Answer one or many prompts, served together as one batch.

    With ``stream``, server-sent events: ``text`` with what is new of an output, and at the end
    ``done`` with all that the answer without it has, or ``error`` with a problem document.
    """
    params = body.params(body.logprobs)
    served = await generator.load(body.model)
    call = Call(
        served,
        prompts=body.prompts,
        params=params,
        stop=body.stop_strings,
        timeout_s=body.timeout_s,
    )
    format_ = GenerateFormat(body, Vocabulary(served.tokenizer), served.entry.kind)
    return await answer(request, generator, call, format_, is_streamed=body.stream)
