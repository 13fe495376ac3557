"""``sleb bench --engine vllm``: dense and pruned models as servers of vLLM, in turns.

One server has requests while the others are idle. No prompt is read from a cache.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.bench.bench import keep, measured, stored_subject
from app.bench.plan import AGAIN, DENSE, BenchPlan, BenchSubject, Scenario
from app.bench.result import Bench, facts_of
from app.bench.runs import Sample, closed_loop, requests_of, sample_of
from app.config import ServeSettings
from app.engine.scheduling.sequence import Request, Timings
from app.generation.generator import Generation
from app.generation.request import GenerationRequest
from app.generation.vllm_backend import VllmBackend
from app.metrics.metrics import Metrics
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.external import ExternalModel
from app.vllm.options import VllmOptions
from app.vllm.servers import VllmModel, servers_of
from pruning.models.store import ModelStore
from pruning.plural import counted
from pruning.storage.checkpoints import current_checkpoints


class TooManyServers(ValueError):
    """The sides of a bench are not all served at once, so a turn would begin with a start."""


def bench_in_vllm(
    name: str, variants: Sequence[str], plan: BenchPlan, out: Path, settings: ServeSettings
) -> Bench:
    """Measure a stored model in vLLM, and keep the result. Its dtype is that of ``SLEB_VLLM_ARGS``.

    Raises ``VllmMissing``, ``TooManyServers``, ``VllmUnavailable``, a ``BackendError``, and what
    ``stored_subject`` raises.
    """
    with runs_in_vllm(name, variants, settings) as runs:
        facts = {"engine": runs.engine(), **facts_of("auto")}
        bench = Bench(runs.subject, plan, {}, {}, {}, facts)
        bench = measured(bench, list(runs.entries), runs.measure, out)
    keep(bench, settings)
    return bench


@contextmanager
def runs_in_vllm(
    name: str, variants: Sequence[str], settings: ServeSettings
) -> Iterator["VllmRuns"]:
    """The runs of these sides. Their servers are started when they are first needed, and end here.

    Raises as ``bench_in_vllm`` does.
    """
    own = {"engine": "vllm", "prefix_cache": "off"}
    options = VllmOptions.of(settings.model_copy(update=own))
    assert options is not None
    without_weights = settings.model_copy(update={"device": "meta"})
    subject = stored_subject(name, variants, "auto", without_weights)
    num_servers = 1 + len(subject.removed)
    if num_servers > options.max_servers:
        raise TooManyServers(
            f"{counted(num_servers, 'model')} in vLLM, but only {options.max_servers} run at "
            "once: measure fewer variants, or raise SLEB_VLLM_SERVERS"
        )
    checkpoints = current_checkpoints(settings)
    catalog = Catalog(ModelStore(settings.models_dir), checkpoints)
    names = {DENSE: name, AGAIN: name, **{variant: variant for variant in subject.removed}}
    entries = {side: catalog.resolve(model) for side, model in names.items()}
    with asyncio.Runner() as runner:
        backend = VllmBackend(servers_of(settings, options, catalog, checkpoints), Metrics())
        try:
            yield VllmRuns(backend, subject, entries, runner)
        finally:
            runner.run(backend.aclose())


@dataclass(frozen=True)
class VllmRuns:
    """Runs on the servers of ``entries``, which are the sides by name."""

    backend: VllmBackend
    subject: BenchSubject
    entries: Mapping[str, ModelEntry]
    runner: asyncio.Runner

    def engine(self) -> dict[str, object]:
        """Start the dense model, and return what is known of vLLM."""
        model = self.runner.run(self._server(DENSE))
        return {"name": "vllm", "version": model.version, "arguments": list(model.args)}

    def measure(self, name: str, scenario: Scenario, plan: BenchPlan) -> Sample:
        """Raises ``WrongLength``."""
        requests = requests_of(scenario, self.subject.dense, plan)
        clients = plan.concurrency if scenario is Scenario.SERVED else len(requests)
        began_s = time.perf_counter()
        timings = self.runner.run(closed_loop(requests, clients, partial(self._timings, name)))
        return sample_of(scenario, plan, requests, timings, time.perf_counter() - began_s)

    def model(self, name: str) -> ExternalModel:
        """A side, whose server is ready."""
        return self.runner.run(self._server(name)).model

    async def _server(self, name: str) -> VllmModel:
        server = (await self.backend.load(self.entries[name])).vllm
        assert server is not None
        return server

    async def _timings(self, name: str, request: Request) -> Timings:
        served = await self.backend.load(self.entries[name])
        wanted = GenerationRequest(served, [request.prompt_ids], request.params, traffic="bench")
        outputs = await self.backend.start(wanted, served, None)
        async with aclosing(Generation(outputs)) as generation:
            [output] = await generation.finish()
        return output.timings
