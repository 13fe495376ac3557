"""OpenAI's API for text: models, completions and chat completions."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from app.api.deps import GeneratorDep, ModelOrAlias, ServicesDep
from app.api.formats.models import error_of
from app.api.formats.openai import ChatFormat, CompletionFormat
from app.api.formats.tools import check_chat, chosen_format, leaves_choice, tool_use
from app.api.generations import SheddingRoute, respond
from app.api.openapi import EVENT_STREAM, Responses
from app.api.problems import TOO_LARGE_TITLE, NotOffered
from app.api.schemas.openai import (
    DEFAULT_CHAT_TOKENS,
    ChatBody,
    ChatView,
    CompletionBody,
    CompletionView,
    ErrorView,
    GenerationBody,
    ModelCard,
    ModelCardList,
)
from app.api.schemas.sampling import sampling_params
from app.engine.scheduling.sequence import InvalidSampling, SamplingParams
from app.generation.request import Chat, GenerationRequest
from app.generation.vocabulary import Vocabulary
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry
from pruning.jobs.redis import JobStoreUnavailable
from pruning.models.lineage import added_at
from pruning.models.store import ModelNotFound, NotAModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=SheddingRoute)
_not_offered = APIRouter()  # these need no place in the queue

_MEANINGS = {
    400: "The request is invalid.",
    404: "The model does not exist.",
    413: TOO_LARGE_TITLE,
    429: "Too many requests are waiting.",
    500: "Internal server error.",
    502: "The external server sent an invalid response.",
    503: "The service, its job store or an external server is unavailable.",
    504: "The external server timed out.",
    507: "Not enough memory to load the model.",
}


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorView, "description": _MEANINGS[status]} for status in statuses}


_RESPONSES: Responses = {**_errors(*_MEANINGS), 200: {"content": EVENT_STREAM}}


@_not_offered.api_route("/embeddings", methods=["GET", "POST"], include_in_schema=False)
def create_embedding() -> None:
    """Refuse a well-known request more clearly than as an unknown path."""
    raise NotOffered("embeddings are not supported: this service only generates text")


@_not_offered.api_route("/responses", methods=["GET", "POST"], include_in_schema=False)
def create_response() -> None:
    """The same of OpenAI's newer API."""
    raise NotOffered("the Responses API is not supported: use POST /v1/chat/completions")


router.include_router(_not_offered)


@router.get("/models", responses=_errors(503))
def list_openai_models(services: ServicesDep) -> ModelCardList:
    """List all variants that can be served, and all aliases."""
    catalog, vllm = services.catalog, services.generation.vllm
    cards = [_card(entry, catalog) for entry in catalog.entries() if not error_of(entry, vllm)]
    for alias in catalog.aliases():
        with suppress(UnknownModel, JobStoreUnavailable):  # its target is gone
            cards.append(_card(catalog.resolve(alias), catalog, alias))
    return ModelCardList(data=cards)


@router.get("/models/{model}", responses=_errors(400, 404, 503))
def retrieve_openai_model(model: ModelOrAlias, services: ServicesDep) -> ModelCard:
    entry = services.catalog.resolve(model)
    if error := error_of(entry, services.generation.vllm):
        raise NotAModel(error)
    return _card(entry, services.catalog, model)


@router.post("/completions", response_model=CompletionView, responses=_RESPONSES)
async def create_completion(
    body: CompletionBody, generator: GeneratorDep, request: Request
) -> CompletionView | Response:
    """Complete one or more prompts, generated together as one batch."""
    params, prompts = _completion_params(body), _prompts(body)
    served = await generator.load(body.model)
    generation_request = GenerationRequest(
        served, prompts, params, _stop(body), n=body.n or 1, cache_salt=body.cache_salt or ""
    )
    format_ = CompletionFormat(
        body, Vocabulary(served.tokenizer), generator.fingerprint(served, params), prompts
    )
    return await respond(
        request, generator, generation_request, format_, is_streamed=bool(body.stream)
    )


@router.post("/chat/completions", response_model=ChatView, responses=_RESPONSES)
async def create_chat_completion(
    body: ChatBody, generator: GeneratorDep, request: Request
) -> ChatView | Response:
    """Generate the next message of a conversation, with the model's own chat template."""
    limit, tools = _chat_limit(body), tool_use(body)
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _params(body, max_new_tokens=limit or DEFAULT_CHAT_TOKENS, num_logprobs=num_logprobs)
    if tools is not None:
        params = replace(params, response_format=tools.response_format)
    served = await generator.load(body.model, partial(check_chat, body))
    if may_call := leaves_choice(body):
        params = replace(params, response_format=chosen_format(served, body))
    chat = Chat(
        [message.as_template_input() for message in body.messages],
        tuple(tool.as_template_input() for tool in body.tools or ()),
        may_call=may_call,
        may_call_many=body.parallel_tool_calls is not False,
        **body.template_options,
    )
    generation_request = GenerationRequest(
        served,
        [chat],
        params,
        _stop(body),
        n=body.n or 1,
        fills_context=limit is None,
        cache_salt=body.cache_salt or "",
    )
    fingerprint = generator.fingerprint(served, params)
    format_ = ChatFormat(body, Vocabulary(served.tokenizer), fingerprint, tools)
    return await respond(
        request, generator, generation_request, format_, is_streamed=bool(body.stream)
    )


def _chat_limit(body: ChatBody) -> int | None:
    """Raises ``InvalidSampling`` for two limits that differ."""
    new, old = body.max_completion_tokens, body.max_tokens
    if new and old and new != old:
        raise InvalidSampling(
            "max_tokens", old, "equal to max_completion_tokens, or only one of the two fields"
        )
    return new or old


def _completion_params(body: CompletionBody) -> SamplingParams:
    """With an echo, log-probabilities are those of the prompt too. Raises ``InvalidSampling``."""
    if body.best_of not in (None, body.n or 1):
        expected = "equal to n, because this service returns all outputs"
        raise InvalidSampling("best_of", body.best_of, expected)
    is_scored = body.echo and (body.logprobs is not None or body.max_tokens == 0)
    return _params(
        body,
        max_new_tokens=16 if body.max_tokens is None else body.max_tokens,
        num_logprobs=body.logprobs,
        num_prompt_logprobs=(body.logprobs or 0) if is_scored else None,
    )


def _params(body: GenerationBody, **overrides: int | None) -> SamplingParams:
    return sampling_params(
        body,
        **overrides,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
    )


def _prompts(body: CompletionBody) -> Sequence[str | Sequence[int]]:
    """A single prompt may come without a list around it."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    return [prompt] if isinstance(prompt[0], int) else prompt


def _stop(body: GenerationBody) -> list[str]:
    return [body.stop] if isinstance(body.stop, str) else body.stop or []


def _card(entry: ModelEntry, catalog: Catalog, name: str | None = None) -> ModelCard:
    return ModelCard(
        id=name or entry.name,
        root=entry.name,
        created=int(_created_at(entry, catalog)),
        parent=entry.parent,
        max_model_len=entry.info.max_positions if entry.info else None,
    )


def _created_at(entry: ModelEntry, catalog: Catalog) -> float:
    """In seconds since the epoch; 0 for a model of another server, which does not say it."""
    if entry.external is not None:
        return 0
    if entry.order is not None and entry.is_pruned:
        return entry.order.created_at
    try:
        return added_at(catalog.directory(entry.base))
    except (ModelNotFound, OSError):  # it has just been deleted
        return 0
