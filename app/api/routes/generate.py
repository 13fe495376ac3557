"""Batched generation with a dense model or one of its pruned variants."""

from fastapi import APIRouter, Request, Response

from app.api.deps import GeneratorDep
from app.api.formats.generate import GenerateFormat
from app.api.generations import SheddingRoute, respond
from app.api.openapi import EVENT_STREAM, Responses, responses_for
from app.api.schemas.generate import GenerateBody, GenerateView
from app.api.schemas.sampling import sampling_params
from app.generation.generator import RAISES
from app.generation.request import GenerationRequest
from app.generation.vocabulary import Vocabulary

router = APIRouter(tags=["generate"], route_class=SheddingRoute)

_RESPONSES: Responses = {**responses_for(*RAISES, has_body=True), 200: {"content": EVENT_STREAM}}


@router.post("/generate", response_model=GenerateView, responses=_RESPONSES)
async def generate(
    body: GenerateBody, generator: GeneratorDep, request: Request
) -> GenerateView | Response:
    """Generate an output for each prompt, in one batch.

    With ``stream``, the response is a stream of server-sent events: ``text`` with the delta of an
    output, and at the end ``done`` with the body of a response without ``stream``, or ``error``
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
