"""Requests to the server of an external model, and the errors that its failures become.

Statuses follow RFC 9110, section 15.6: 502 for a response that is wrong, 503 for a server that is
unavailable, 504 for one that does not respond in time. The server's own message reaches the client
only where it concerns the client's request.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast

import httpx2

from app.engine.scheduling.sequence import ResponseFormat, SamplingParams
from app.generation.openai_chunks import Chunk, ChunkReader, ChunkRefused
from app.generation.request import Chat, GenerationRequest, Prompt
from app.generation.socket_client import SocketClient, SocketResponse
from app.models.external import ExternalModel

_MAX_ERROR_BYTES = 65_536
_MAX_MESSAGE_CHARS = 1000
_MAX_RETRY_S = 3600.0
_ABOUT_THE_REQUEST = (400, 413, 422)  # statuses whose message concerns our client's request
# sent only when they differ from the default: not every server knows them
_PASSED_ON = (
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
)
_OF_TEMPLATES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class BackendError(RuntimeError):
    """The server of an external model did not respond as it should."""


class BackendFailed(BackendError):
    """The server responded with an error, or with something invalid or incomplete."""


class BackendTimedOut(BackendError):
    """The server did not respond in time."""


class _Retryable(BackendError):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendUnavailable(_Retryable):
    """The server cannot be reached or reports that it is unavailable."""


class BackendOverloaded(_Retryable):
    """The server takes no more requests at the moment."""


class BackendRefused(BackendError):
    """The server does not accept this request."""


# the errors of a generation by another server
EXTERNAL_RAISES = (
    BackendFailed,
    BackendTimedOut,
    BackendUnavailable,
    BackendOverloaded,
    BackendRefused,
)


@dataclass(frozen=True)
class OpenAIRequest:
    """A path of OpenAI's API and a body, without the fields that all requests share."""

    path: str
    body: Mapping[str, Any]
    reader: Callable[[], ChunkReader] = ChunkReader  # of the events of the response


def openai_request(
    request: GenerationRequest, prompt: Prompt, number: int, cache_salt: str | None = None
) -> OpenAIRequest:
    """The request for one of the ``n`` outputs of this prompt, ``number`` from 0."""
    params = request.params_of(number)
    body = _sampling(params)
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    if request.stop:
        body["stop"] = list(request.stop)
    if not request.fills_context:
        body["max_tokens"] = params.max_new_tokens
    has_logprobs = params.num_logprobs is not None
    if isinstance(prompt, Chat):
        body["messages"] = [*map(_as_sent, prompt.messages)]
        body |= _differing(Chat(()), prompt, _OF_TEMPLATES)
        if has_logprobs:
            body |= {"logprobs": True, "top_logprobs": params.num_logprobs}
        return OpenAIRequest("/chat/completions", body)
    body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if has_logprobs:
        body["logprobs"] = params.num_logprobs
    return OpenAIRequest("/completions", body)


class HttpClient:
    """Requests by httpx2, with these ``headers``. Bound to one event loop; must be closed.

    No connection is reused: the server may close it at that moment, and the request must not be
    sent twice.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], connect_s: float, silence_s: float
    ) -> None:
        self._base_url = base_url
        self._client = httpx2.AsyncClient(
            trust_env=False,  # proxies and keys come from the settings, not from .netrc
            headers=headers,
            timeout=httpx2.Timeout(silence_s, connect=connect_s, pool=None),
            transport=httpx2.AsyncHTTPTransport(
                trust_env=False,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            ),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def post(self, path: str, body: Mapping[str, Any]) -> AsyncIterator["HttpResponse"]:
        """The response, once its headers are there. Raises ``httpx2.HTTPError``."""
        url = f"{self._base_url}{path}"
        async with self._client.sse(url, method="POST", json=body) as source:
            # a generator; the garbage collector may end what is left of one in another thread
            events = cast("AsyncGenerator[httpx2.ServerSentEvent, None]", aiter(source))
            async with aclosing(events):
                yield HttpResponse(source.response, events)


@dataclass(frozen=True)
class HttpResponse:
    """A response, and an iterator over the data of its events, if it has some.

    What is left of it is cancelled at the end.
    """

    response: httpx2.Response
    events: AsyncIterator[httpx2.ServerSentEvent]

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""
        return self.response.headers

    async def beginning(self, num_bytes: int) -> bytes:
        """At most so much of the body. Raises ``httpx2.HTTPError``."""
        body = b""
        async with aclosing(self.response.aiter_bytes()) as parts:
            async for part in parts:
                body += part
                if len(body) > num_bytes:
                    break
        return body[:num_bytes]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Of the next event. Raises ``httpx2.HTTPError``."""
        return (await anext(self.events)).data


class ExternalClient:
    """A client of the server of one model. Bound to one event loop; must be closed."""

    def __init__(self, model: ExternalModel) -> None:
        self._model = model
        headers = {"User-Agent": "sleb-serve"}
        if model.api_key is not None:
            headers["Authorization"] = f"Bearer {model.api_key}"
        limits_s = (model.connect_s, model.silence_s)
        self._client: HttpClient | SocketClient
        if model.socket is None:
            self._client = HttpClient(model.base_url, headers, *limits_s)
        else:
            self._client = SocketClient(model.socket, model.base_url, headers, *limits_s)

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def stream(self, request: OpenAIRequest) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of the response. Leaving the context cancels what is left of it.

        Failures of the connection and of the server, within the context too, raise a
        ``BackendError``.
        """
        body = {"model": self._model.model, **request.body, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        with self._backend_errors():
            async with self._client.post(request.path, body) as response:
                if not 200 <= response.status < 300:
                    raise await self._refusal(response)
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    raise BackendFailed(f"{self._who} did not respond with an event stream")
                async with aclosing(self._chunks(response, request.reader())) as chunks:
                    yield chunks

    async def _chunks(
        self, events: AsyncIterator[str], reader: ChunkReader
    ) -> AsyncGenerator[Chunk, None]:
        """Up to ``[DONE]``; raises ``BackendFailed`` if the stream ends without it."""
        async for data in events:
            if data == "[DONE]":
                return
            try:
                chunk = reader.read(data)
            except ChunkRefused as error:
                cause = ChunkRefused(self._without_key(str(error)))  # for the log
                message = f"{self._who} ended its stream with an error"
                raise await self._failed(message) from cause
            except ValueError as error:
                raise BackendFailed(f"{self._who} sent an invalid event") from error
            yield chunk
        raise self._broken(f"{self._who} closed the stream before the output was complete")

    @contextmanager
    def _backend_errors(self) -> Iterator[None]:
        model = self._model
        try:
            yield
        except httpx2.ConnectTimeout as error:
            message = f"{self._who} did not accept a connection within {model.connect_s:g} s"
            raise BackendTimedOut(message) from error
        except httpx2.TimeoutException as error:
            message = f"{self._who} sent no data for {model.silence_s:g} s"
            raise BackendTimedOut(message) from error
        except httpx2.ConnectError as error:
            raise BackendUnavailable(f"cannot connect to {self._who}", 1.0) from error
        except httpx2.HTTPError as error:
            message = f"{self._who} closed the connection: {type(error).__name__}"
            raise self._broken(message) from error

    async def _failed(self, message: str) -> BackendError:
        """The server says that it failed, as a vLLM of this service does when its engine dies."""
        if isinstance(self._client, SocketClient) and not await self._client.is_healthy():
            return self._broken(message)
        return BackendFailed(message)

    def _broken(self, message: str) -> BackendError:
        """A vLLM of this service has died, and is started again."""
        if self._model.backend == "vllm":
            return BackendUnavailable(f"{message}: retry the request", 1.0)
        return BackendFailed(message)

    async def _refusal(self, response: HttpResponse | SocketResponse) -> BackendError:
        status = response.status
        responded = f"{self._who} responded with {status}"
        if status in _ABOUT_THE_REQUEST:
            text = (await response.beginning(_MAX_ERROR_BYTES)).decode(errors="replace")
            message = self._without_key(_message(text))
            return BackendRefused(f"{self._who} rejected the request: {message}")
        if status in (429, 503):
            kind = BackendOverloaded if status == 429 else BackendUnavailable
            return kind(
                f"{responded}: it accepts no more requests at the moment", _retry_after_s(response)
            )
        if status in (408, 504):
            return BackendTimedOut(f"{responded}: timeout")
        return await self._failed(f"{responded}: {_advice(status)}")

    def _without_key(self, text: str) -> str:
        key = self._model.api_key
        return text if key is None else text.replace(key, "***")

    @property
    def _who(self) -> str:
        kind = "vLLM" if self._model.backend == "vllm" else "the server"
        return f"{kind} of {self._model.name!r}"


def _sampling(params: SamplingParams) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": params.temperature}
    body |= _differing(SamplingParams(), params, _PASSED_ON)
    if params.logit_bias:
        body["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias}
    if (wanted := params.response_format) is not None and wanted.what == "schema":
        body["response_format"] = _response_format(wanted)
    elif wanted is not None:
        is_choice = wanted.type == "choice"
        asked = json.loads(wanted.schema) if is_choice else wanted.schema
        body["structured_outputs"] = {wanted.type: asked}
    if params.stop_token_ids:
        body["stop_token_ids"] = sorted(params.stop_token_ids)
    return body


def _differing(default: object, asked: object, names: Iterable[str]) -> dict[str, Any]:
    every = ((name, getattr(asked, name)) for name in names)
    return {name: value for name, value in every if value != getattr(default, name)}


def _as_sent(message: Mapping[str, Any]) -> dict[str, Any]:
    """With the arguments of calls as text."""
    if "tool_calls" not in message:
        return dict(message)
    return {**message, "tool_calls": [*map(_call, message["tool_calls"])]}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"])
    return {**call, "function": function}


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.type == "json_object":
        return {"type": wanted.type}
    options = {"name": wanted.name, "description": wanted.description, "strict": wanted.strict}
    options = {name: value for name, value in options.items() if value is not None}
    return {"type": wanted.type, wanted.type: {**options, "schema": json.loads(wanted.schema)}}


def _advice(status: int) -> str:
    """Advice to the operator of this service: these statuses are not the client's fault."""
    if status in (401, 403):
        return "the server rejected the key in api_key_file"
    if status < 500:
        return "check base_url and model in external.toml"
    return "see the server's log"


def _message(text: str) -> str:
    """The message of an error: in OpenAI's envelope, of older servers, or a problem document."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        inner = body.get("error")
        said = inner.get("message") if isinstance(inner, dict) else inner
        text = str(said or body.get("message") or body.get("detail") or text)
    return text[:_MAX_MESSAGE_CHARS] or "no message"


def _retry_after_s(response: HttpResponse | SocketResponse) -> float:
    """``Retry-After`` in seconds. A date counts as one second."""
    text = response.headers.get("retry-after", "")
    return min(float(text), _MAX_RETRY_S) if text.isdecimal() else 1.0
