"""Generation by vLLM servers that this service runs.

They are asked as external servers are, with token ids instead of texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from app.config import PrefixCache
from app.engine.engine import PromptLimit
from app.generation.completed import CompletedOutput, Completions
from app.generation.openai_backend import (
    ConcurrencyLimiter,
    ExternalBackend,
    ExternalOutputStream,
)
from app.generation.output import OutputStream
from app.generation.prompt_sharing import cache_scope
from app.generation.request import GenerationRequest, Prompt, ServedElsewhere
from app.generation.tokenization import TokenIds, TokenizerPool
from app.generation.vllm_requests import check_params, vllm_request
from app.metrics.metrics import Metrics, labels_of
from app.metrics.models import Load
from app.models.entry import ModelEntry
from app.vllm.servers import VllmModel, VllmServers


class VllmBackend(ExternalBackend):
    """Bound to one event loop; must be closed, which ends the servers."""

    def __init__(
        self, servers: VllmServers, metrics: Metrics, prefix_cache: PrefixCache = "on"
    ) -> None:
        super().__init__((), metrics, prefix_cache)
        self.servers = servers
        self._uncounted = Metrics()  # of replays, which are counted in pairs once both have ended
        self._tokenizers = TokenizerPool()
        self._asked: dict[str, ModelEntry] = {}
        self._before_work: list[Callable[[], None]] = []
        self.completions = Completions()
        servers.num_open = self.num_open

    @property
    def is_busy(self) -> bool:
        """Whether requests are open, replays excluded, or a server is starting."""
        is_open = any(server.open_outputs for server in self._servers.values())
        return is_open or self.servers.is_starting

    def before_work(self, listener: Callable[[], None]) -> None:
        """Call the listener before any request is sent or server is started, except for replays."""
        self._before_work.append(listener)

    def num_open(self, name: str) -> int:
        """The number of requests that run on a server or wait for it."""
        server = self._servers.get(name)
        return 0 if server is None else len(server.open_outputs)

    def loads(self) -> list[Load]:
        """Of all models that were asked for, by the names under which each first was. Safe from
        any thread."""
        all_loads = []
        for name, entry in [*self._asked.items()]:  # a request may add one meanwhile
            limiter = self._servers[name].limiter
            all_loads.append(Load(entry.name, entry.kind, limiter.num_running, limiter.num_waiting))
        return all_loads

    async def load(self, entry: ModelEntry) -> ServedElsewhere:
        """Wait until its server is ready. Raises what ``VllmServers.model`` does."""
        for listener in self._before_work:
            listener()
        server = await self.servers.model(entry)
        known = self._servers.get(server.model.name)
        if known is None or known.model != server.model:
            self._connect(server.model)
            self._asked.setdefault(server.model.name, entry)
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
        check_params(request.params)
        served = await self.load(served.entry)
        assert served.vllm is not None
        max_new_tokens = 1 if request.fills_context else request.params.max_new_tokens
        prompts = await self.encode(request.prompts, [served.vllm], max_new_tokens)
        scope = cache_scope(request.cache_salt, self._prefix_cache)
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
        await self.servers.aclose()
        await super().aclose()
