"""One request to the server of an external model, and what its failures mean to our client.

Statuses follow RFC 9110, 15.6: 502 for an answer that is wrong, 503 for a server that is away, 504
for one that is silent. What the server says goes on to the client only where it is about the
client's own request.

A generation request becomes one request of OpenAI's API for each of its outputs.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from app.engine.sequence import SamplingParams
from app.generation.openai_chunks import Chunk, ChunkReader, ChunkRefused
from app.generation.request import Chat, GenerationRequest, Prompt
from app.models.external import ExternalModel

_MAX_ERROR_BYTES = 65_536
_MAX_TOLD_CHARS = 1000
_MAX_RETRY_S = 3600.0
_ABOUT_THE_REQUEST = (400, 413, 422)


class BackendError(RuntimeError):
    """The server of an external model did not answer as it should."""


class BackendFailed(BackendError):
    """Its answer is an error, breaks off, or is none."""


class BackendTimedOut(BackendError):
    """It was silent for too long."""


class _Retryable(BackendError):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendUnavailable(_Retryable):
    """It cannot be reached, or says that it cannot serve now."""


class BackendOverloaded(_Retryable):
    """It takes no more requests now."""


class BackendRefused(BackendError):
    """It does not take this request."""


# what generating with another server may raise
EXTERNAL_RAISES = (
    BackendFailed,
    BackendTimedOut,
    BackendUnavailable,
    BackendOverloaded,
    BackendRefused,
)


class ExternalClient:
    """Asks the server of one model. Belongs to an event loop; to be closed."""

    def __init__(self, model: ExternalModel) -> None:
        self._model = model
        self._client = httpx2.AsyncClient(
            trust_env=False,  # settings are read in one place, and no .netrc has the key
            headers={"User-Agent": "sleb-serve"} | _authorization(model.api_key),
            timeout=httpx2.Timeout(model.silence_s, connect=model.connect_s, pool=None),
            # none is kept: the server may close it just when it is used again, and what was sent
            # then must not be repeated
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The answer to this request from its headers on; leaving it closes the connection.

        What goes wrong, within it too, leaves it as a ``BackendError``.
        """
        url = f"{self._model.base_url}{path}"
        body = {"model": self._model.model, **body, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        with self._told_apart():
            async with self._client.sse(url, method="POST", json=body) as source:
                if not source.response.is_success:
                    raise await self._refusal(source.response)
                if "text/event-stream" not in source.response.headers.get("content-type", ""):
                    raise BackendFailed(f"{self._who} answered with something else than a stream")
                yield self._chunks(source)

    async def _chunks(self, source: httpx2.EventSource) -> AsyncIterator[Chunk]:
        """Up to ``[DONE]``; raises ``BackendFailed`` if the stream ends without it."""
        reader = ChunkReader()
        async for event in source:
            if event.data == "[DONE]":
                return
            try:
                chunk = reader.read(event.data)
            except ChunkRefused as error:
                told = ChunkRefused(self._without_key(str(error)))  # for the log
                raise BackendFailed(f"{self._who} broke off with an error") from told
            except ValueError as error:
                raise BackendFailed(f"{self._who} sent an event that is no chunk") from error
            yield chunk
        raise BackendFailed(f"{self._who} closed the stream before the answer was over")

    @contextmanager
    def _told_apart(self) -> Iterator[None]:
        model = self._model
        try:
            yield
        except httpx2.ConnectTimeout as error:
            message = f"{self._who} took no connection within {model.connect_s:g} s"
            raise BackendTimedOut(message) from error
        except httpx2.TimeoutException as error:
            message = f"{self._who} was silent for {model.silence_s:g} s"
            raise BackendTimedOut(message) from error
        except httpx2.ConnectError as error:
            raise BackendUnavailable(f"{self._who} cannot be reached", 1.0) from error
        except httpx2.HTTPError as error:
            message = f"{self._who} broke off: {type(error).__name__}"
            raise BackendFailed(message) from error

    async def _refusal(self, response: httpx2.Response) -> BackendError:
        status = response.status_code
        answered = f"{self._who} answered {status}"
        if status in _ABOUT_THE_REQUEST:
            told = self._without_key(_message(await _beginning(response)))
            return BackendRefused(f"{self._who} refuses the request: {told}")
        if status in (429, 503):
            kind = BackendOverloaded if status == 429 else BackendUnavailable
            return kind(f"{answered}: it takes no more now", _retry_after_s(response))
        if status in (408, 504):
            return BackendTimedOut(f"{answered}: it took too long")
        return BackendFailed(f"{answered}: {_advice(status)}")

    def _without_key(self, text: str) -> str:
        key = self._model.api_key
        return text if key is None else text.replace(key, "***")

    @property
    def _who(self) -> str:
        return f"the server of {self._model.name!r}"


def _authorization(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _advice(status: int) -> str:
    """For whoever runs this service: nothing here is the client's fault."""
    if status in (401, 403):
        return "it does not accept the key in api_key_file"
    if status < 500:
        return "base_url or model may be declared wrongly"
    return "its own log says why"


async def _beginning(response: httpx2.Response) -> str:
    found = b""
    async for part in response.aiter_bytes():
        found += part
        if len(found) > _MAX_ERROR_BYTES:
            break
    return found[:_MAX_ERROR_BYTES].decode(errors="replace")


def _message(text: str) -> str:
    """What an error says, in OpenAI's envelope, as older servers and problem documents have it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        inner = found.get("error")
        said = inner.get("message") if isinstance(inner, dict) else inner
        text = str(said or found.get("message") or found.get("detail") or text)
    return text[:_MAX_TOLD_CHARS] or "without a word"


def _retry_after_s(response: httpx2.Response) -> float:
    """Seconds, as whole ones are told on; a date is not read."""
    text = response.headers.get("retry-after", "")
    return min(float(text), _MAX_RETRY_S) if text.isdecimal() else 1.0


# what a server need not know of unless it is asked for
_PASSED_ON = ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos")


@dataclass(frozen=True)
class Asked:
    """What is asked where, but for what all requests have."""

    path: str
    body: Mapping[str, Any]


def asked_of(request: GenerationRequest, prompt: Prompt, number: int) -> Asked:
    """For the one of the ``n`` answers to this prompt."""
    params = request.params_of(number)
    body = _sampling(params)
    if request.stop:
        body["stop"] = list(request.stop)
    if not request.fills_context:
        body["max_tokens"] = params.max_new_tokens
    has_logprobs = params.num_logprobs is not None
    if isinstance(prompt, Chat):
        body["messages"] = list(prompt.messages)
        if has_logprobs:
            body |= {"logprobs": True, "top_logprobs": params.num_logprobs}
        return Asked("/chat/completions", body)
    body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if has_logprobs:
        body["logprobs"] = params.num_logprobs
    return Asked("/completions", body)


def _sampling(params: SamplingParams) -> dict[str, Any]:
    default = SamplingParams()
    body: dict[str, Any] = {"temperature": params.temperature}
    for name in _PASSED_ON:
        if (value := getattr(params, name)) != getattr(default, name):
            body[name] = value
    if params.stop_token_ids:
        body["stop_token_ids"] = sorted(params.stop_token_ids)
    return body
