"""Generation by vLLM servers that this service runs.

They are asked as external servers are. Token ids go in, and come back with the texts.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256

from transformers import PreTrainedTokenizerBase

from app.config import PrefixCache
from app.engine.engine import PromptLimit
from app.engine.sampling.text import Detokenizer
from app.engine.scheduling.sequence import PromptToken, RequestRefused
from app.generation.openai_backend import (
    ConcurrencyLimiter,
    ExternalBackend,
    ExternalOutputStream,
)
from app.generation.openai_chunks import Choice, Chunk, ChunkReader, Usage
from app.generation.openai_client import OpenAIRequest, openai_request
from app.generation.output import CompletedOutput, Completions, OutputStream, Token
from app.generation.request import Chat, GenerationRequest, Prompt, ServedElsewhere
from app.generation.tokenization import TokenIds, TokenizerPool
from app.metrics.metrics import Metrics, labels_of
from app.models.entry import ModelEntry
from app.vllm.servers import VllmModel, VllmServers

_ID = "token_id:"
_STOPPED = ("stop", "tool_calls")


class NotOnVllm(RequestRefused):
    """A reproducible output was requested, which vLLM does not give."""

    param = "reproducible"

    def __init__(self) -> None:
        super().__init__(
            "reproducible: not supported by vLLM, which serves this model: remove it, or "
            "use a model of the built-in engine"
        )


class VllmBackend(ExternalBackend):
    """Bound to one event loop; must be closed, which ends the servers."""

    def __init__(
        self, servers: VllmServers, metrics: Metrics, prefix_cache: PrefixCache = "on"
    ) -> None:
        super().__init__((), metrics, prefix_cache)
        self.servers = servers
        self._uncounted = Metrics()  # of replays, which are counted in pairs once both have ended
        self._tokenizers = TokenizerPool()
        # called before any request is sent or server is started, except for replays
        self.before_work: Callable[[], None] = lambda: None
        self.completions = Completions()
        servers.num_open = self.num_open

    @property
    def is_busy(self) -> bool:
        """Whether requests are open, replays excluded, or a server is starting."""
        is_open = any(server.open_outputs for server in self._servers.values())
        return is_open or self.servers.is_starting

    def num_open(self, name: str) -> int:
        """The number of requests that run on a server or wait for it."""
        server = self._servers.get(name)
        return 0 if server is None else len(server.open_outputs)

    async def load(self, entry: ModelEntry) -> ServedElsewhere:
        """Wait until its server is ready. Raises what ``VllmServers.model`` does."""
        self.before_work()
        server = await self.servers.model(entry)
        known = self._servers.get(server.model.name)
        if known is None or known.model != server.model:
            self._connect(server.model, entry)
            if known is not None:
                await known.client.aclose()
        return ServedElsewhere(entry, server.model, server)

    def ready(self, entry: ModelEntry) -> ServedElsewhere | None:
        """None unless its server is ready, and was asked for before."""
        server = self.servers.ready_model(entry)
        known = None if server is None else self._servers.get(server.model.name)
        if server is None or known is None or known.model != server.model:
            return None
        return ServedElsewhere(entry, server.model, server)

    async def start(
        self, request: GenerationRequest, served: ServedElsewhere, deadline_s: float | None
    ) -> Sequence[OutputStream]:
        """As ``ExternalBackend.start``, on a server that may have been stopped meanwhile.

        Raises ``NotOnVllm``, ``PromptTooLong`` and what ``load`` raises, too.
        """
        if request.params.reproducible:
            raise NotOnVllm
        served = await self.load(served.entry)
        assert served.vllm is not None
        self._check_room(request, served)
        max_new_tokens = 1 if request.fills_context else request.params.max_new_tokens
        prompts = await self.encode(request.prompts, [served.vllm], max_new_tokens)
        scope = request.cache_scope(self._prefix_cache)
        alone = replace(request, served=served).alone(prompts, served.vllm.max_len)
        requests = [vllm_request(one, served.vllm, ids, scope) for one, ids in alone]
        outputs = self._admitted(requests, served, request.traffic, deadline_s)
        for output, (one, ids) in zip(outputs, alone, strict=True):
            output.on_done = self.completions.publisher(one, ids)
        return outputs

    def replay(self, live: CompletedOutput, served: ServedElsewhere) -> ExternalOutputStream:
        """The same request once more, its prompt read in full, neither counted nor limited.

        ``served`` is from ``ready``.
        """
        assert served.vllm is not None
        params = replace(live.request.params, num_logprobs=None, num_prompt_logprobs=None)
        request = replace(live.request, served=served, params=params)
        apart = replace(
            self._servers[served.model.name], limiter=ConcurrencyLimiter(1, 0), open_outputs=set()
        )
        made = vllm_request(request, served.vllm, live.prompt_ids, scope=None)
        labels = labels_of(served.entry, "shadow", served.model.backend)
        return ExternalOutputStream(0, made, apart, self._uncounted, labels, None)

    async def encode(
        self, prompts: Sequence[Prompt], models: Sequence[VllmModel], max_new_tokens: int
    ) -> list[TokenIds]:
        """Token ids of each prompt, for all of these models, which share a tokenizer.

        Raises ``PromptTooLong``, ``Overloaded``, and the errors of ``render_chat``.
        """
        least = min(models, key=lambda model: model.max_len)
        limit = PromptLimit(least.model.name, least.max_len, max_new_tokens)
        return await self._tokenizers.encode(prompts, least.tokenizer, limit)

    def fingerprint(self, model: VllmModel) -> str:
        """OpenAI's ``system_fingerprint``."""
        what = f"{model.model.name} {model.version} {model.args}"
        return f"fp_{sha256(what.encode()).hexdigest()[:12]}"

    async def aclose(self) -> None:
        await self._tokenizers.aclose()
        await self.servers.aclose()
        await super().aclose()


def vllm_request(
    request: GenerationRequest, model: VllmModel, prompt: Sequence[int], scope: str | None
) -> OpenAIRequest:
    """A request for one output. ``prompt`` has the token ids of its prompt.

    Requests of one ``scope`` share what is read of their prompts; None: it is read in full.
    """
    params = request.params
    [asked] = request.prompts
    if isinstance(asked, Chat) and asked.may_call:
        plain = _with_tools(openai_request(request, asked, 0), asked, prompt)
    else:
        plain = openai_request(request, prompt, 0)
    body = {**plain.body, "return_token_ids": True}
    num_top = params.num_logprobs
    if params.num_prompt_logprobs is not None:
        num_top = params.num_prompt_logprobs
        body |= {"echo": True, "logprobs": num_top, "max_tokens": max(1, params.max_new_tokens)}
    if num_top is not None:
        body["return_tokens_as_token_ids"] = True
    # of a random salt, nothing is kept that could be read again
    body["cache_salt"] = scope or secrets.token_urlsafe(16)
    reader = partial(VllmChunkReader, model.tokenizer, num_top, params.max_new_tokens)
    return replace(plain, body=body, reader=reader)


def _with_tools(plain: OpenAIRequest, chat: Chat, prompt: Sequence[int]) -> OpenAIRequest:
    """The chat route, which finds calls of tools in an output.

    It takes these token ids as the prompt, as if another vLLM had rendered the messages.
    """
    body = {
        **plain.body,
        "tools": list(chat.tools),
        "tool_choice": "auto",
        "parallel_tool_calls": chat.may_call_many,
        "kv_transfer_params": {"prompt_token_ids": list(prompt)},
    }
    return replace(plain, body=body)


class VllmChunkReader(ChunkReader):
    """Reads the events of one output. ``num_top`` are the likeliest tokens to report, if any."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_top: int | None, max_new_tokens: int
    ) -> None:
        super().__init__()
        self._num_top = num_top
        self._detokenizer = None if num_top is None else Detokenizer(tokenizer)
        self._num_detokenized = 0  # characters
        self._is_prompt_alone = max_new_tokens == 0

    def read(self, data: str) -> Chunk:
        chunk = super().read(data)
        if not self._is_prompt_alone:
            return chunk
        usage = chunk.usage
        if usage is not None:
            usage = Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=0)
        return replace(chunk, text="", tokens=(), usage=usage)

    def _prompt(self, choice: Choice) -> Iterable[PromptToken]:
        ids = choice.prompt_token_ids or []
        logprobs = self._logprobs(choice)
        if len(logprobs) > len(choice.token_ids or ()):
            for token_id, (logprob, top) in zip(ids, logprobs, strict=False):
                yield PromptToken(token_id, logprob, top)

    def _tokens(self, choice: Choice) -> Iterable[Token]:
        ids = choice.token_ids or []
        logprobs = self._logprobs(choice)[-len(ids) :] or [(None, ())] * len(ids)
        for at, (token_id, offset, (logprob, top)) in enumerate(
            zip(ids, self._offsets(ids), logprobs, strict=True)
        ):
            is_last = choice.finish_reason in _STOPPED and at == len(ids) - 1
            is_end = is_last and not isinstance(choice.stop_reason, str)
            yield Token(token_id, not is_end, offset, logprob, top)

    def _offsets(self, ids: Sequence[int]) -> list[int]:
        """Where tokens begin. The text of an event may lag: it may be held back for a stop."""
        if self._detokenizer is None:
            return [0] * len(ids)  # nothing reports them
        offsets = []
        for token_id in ids:
            offsets.append(self._num_detokenized)
            self._num_detokenized += len(self._detokenizer.push(token_id))
        return offsets

    def _logprobs(self, choice: Choice) -> list[tuple[float | None, tuple[tuple[int, float], ...]]]:
        """Of the prompt, if it is echoed, and of the tokens."""
        if choice.logprobs is None:
            return []
        if choice.logprobs.content is not None:  # of the chat route
            return [
                (
                    token.logprob,
                    self._ranked({top.token: top.logprob for top in token.top_logprobs}),
                )
                for token in choice.logprobs.content
            ]
        logprobs = choice.logprobs.token_logprobs
        tops = choice.logprobs.top_logprobs or [None] * len(logprobs)
        return [
            (logprob, self._ranked(top or {})) for logprob, top in zip(logprobs, tops, strict=True)
        ]

    def _ranked(self, top: dict[str, float]) -> tuple[tuple[int, float], ...]:
        best_first = sorted(top.items(), key=lambda item: -item[1])[: self._num_top or 0]
        return tuple((int(text.removeprefix(_ID)), logprob) for text, logprob in best_first)
