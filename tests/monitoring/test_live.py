"""A real Prometheus that scrapes a real service and worker.

Every panel and rule has data, and the headline agrees with the timings in the responses.
"""

import math
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest
import redis

from app.compare import shadow
from app.config import ServeSettings
from dashboards.queries import metrics_in
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Gate
from pruning.spec.prune import PruneSpec
from pruning.worker.gpu import GpuMemoryCollector
from tests.monitoring.boards import PanelQuery, other_queries, panel_queries
from tests.monitoring.prometheus import (
    Prometheus,
    alerts_and_records,
    prometheus,
    with_values,
)
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.long_search import long_search
from tests.support.processes import free_port
from tests.support.serving import serving
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers

DENSE, PRUNED = "tiny", "tiny@prn-1"  # this name stays the same when the worker publishes
WINDOW_S = 300
SCRAPE_S = 120.0  # until a sample is stored: the first scrape waits for a worker that starts
NUM_ROUNDS, PROMPTS_A_ROUND = 6, 4
HEADLINES = {
    "tpot_s": "Speed-up of time per output token",
    "ttft_s": "Speed-up of time to first token",
    "e2e_s": "Speed-up of end-to-end latency",
}
VALUES = {
    "dense": DENSE,
    "pruned": PRUNED,
    "traffic": "live",
    "ttft_slo": "0.5",
    "tpot_slo": "0.05",
    "job_id": ".+",
    "__rate_interval": "5s",
    "__range": f"{WINDOW_S}s",
}


@dataclass
class Live:
    """The running processes, and the timings of requests by model."""

    api: httpx2.Client
    worker: httpx2.Client
    prometheus: Prometheus
    timings: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def ask(self, model: str, num_prompts: int = 1, *, is_noted: bool = True) -> None:
        prompts = ["the quick brown fox jumps over the lazy dog"] * num_prompts
        body = {"model": model, "prompt": prompts, "max_new_tokens": 24, "ignore_eos": True}
        answer = self.api.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        if is_noted:
            found = self.timings.setdefault(model, [])
            found += [output["timings"] for output in answer.json()["outputs"]]

    def wait_for(self, expr: str, wanted: float) -> None:
        def found() -> bool:
            samples = self.prometheus.query(expr)
            return bool(samples) and samples[0].value >= wanted

        wait_until(found, f"{expr} is {wanted:g}", SCRAPE_S)

    def panel(self, query: PanelQuery) -> float:
        return self.prometheus.value(with_values(query.expr, VALUES))


@pytest.fixture
def live(
    tmp_path: Path,
    workers: Workers,
    redis_url: str,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Live]:
    monkeypatch.setattr(shadow, "CONTROL_SHARE", 0.5)
    port = free_port()
    process = workers.start(metrics_port=port)  # first, because it takes longest
    search = long_search(workers.data_dir)
    calibration, gate = (
        CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12),
        Gate(max_probe_drop=0.99),
    )
    publish_pruned(tmp_path, spec=PruneSpec(DENSE, 6, calibration=calibration, gate=gate))
    settings = ServeSettings(
        data_dir=tmp_path, max_num_seqs=8, drain_s=0, shadow_share=1, shadow_direction="dense"
    )
    with (
        serving(settings, redis_url) as (_, url),
        _clients(url, f"http://127.0.0.1:{port}") as both,
    ):
        api, worker = both
        wait_until(lambda: api.get("/health/ready").status_code == 200, "the API is ready")
        targets = {"sleb-api": url.removeprefix("http://"), "sleb-worker": f"127.0.0.1:{port}"}
        with prometheus(tmp_path / "prometheus", targets) as found:
            live = Live(api, worker, found)
            live.wait_for("sum(sleb_worker_up)", 1)
            PruneQueue(redis_client).enqueue(JobStore(redis_client).create(search).id)
            yield live
            _finish(process)


@contextmanager
def _clients(*urls: str) -> Iterator[Sequence[httpx2.Client]]:
    clients = [httpx2.Client(base_url=url) for url in urls]
    yield clients
    for client in clients:
        client.close()


def _finish(worker: "subprocess.Popen[bytes]") -> None:
    """Stop a worker and its child, so that neither writes while the store is checked."""
    children = psutil.Process(worker.pid).children()
    worker.terminate()
    worker.wait(100)
    psutil.wait_procs(children, timeout=30)


def traffic(live: Live) -> None:
    """Requests to both variants, then pauses in which replays find the engine idle."""
    for model in (DENSE, PRUNED):
        live.ask(model, is_noted=False)  # rate() ignores the first sample of a series
    live.api.post("/generate", json={"model": "made-up", "prompt": "a"})
    count = "sleb_request_time_per_output_token_seconds_count"
    for model in (DENSE, PRUNED):
        live.wait_for(f'{count}{{model_name="{model}",traffic="live"}}', 1)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(NUM_ROUNDS):
            list(pool.map(lambda model: live.ask(model, PROMPTS_A_ROUND), (DENSE, PRUNED)))
    for number in (1, 2):  # of each kind, as rate() ignores the first sample
        while min(total(live, "sleb_shadow_tpot_seconds_count") / 2, num_controls(live)) < number:
            replay(live)
        live.wait_for("sum(sleb_shadow_tpot_seconds_count)", 2 * number)
        live.wait_for("sum(sleb_shadow_control_pairs{time='tpot'})", number)
    for model in (DENSE, PRUNED):
        series = f'{count}{{model_name="{model}",traffic="live"}}'
        live.wait_for(series, 1 + len(live.timings[model]))
    live.wait_for("sum(sleb_prune_evaluations_total)", 20)


def replay(live: Live) -> None:
    """Send one request and wait for all replays, which another request would preempt."""
    ends = tuple(f"sleb_shadow_{end}_total" for end in ("done", "control_done", "dropped"))
    live.ask(PRUNED)
    num_replayed = 1 + len(live.timings[PRUNED])
    wait_until(lambda: sum(total(live, name) for name in ends) == num_replayed, "no replay is left")


def num_controls(live: Live) -> float:
    return (
        Scrape(live.api.get("/metrics").text).value(
            "sleb_shadow_control_pairs", live_model=PRUNED, time="tpot"
        )
        or 0
    )


def total(live: Live, name: str) -> float:
    """Current total of all series of this name."""
    found = Scrape(live.api.get("/metrics").text)
    return sum(found.value(name, **labels) or 0 for labels in found.series(name))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_panel_and_rule_has_data_and_the_headline_is_true(live: Live) -> None:
    traffic(live)
    assert_headlines(live)
    assert_every_rule_has_data(live)
    assert_every_panel_has_data(live)
    assert_every_metric_is_shown(live)
    series = 'sleb_time_to_first_token_seconds_bucket{traffic="live"}'
    assert all("request_id" in labels for labels in live.prometheus.exemplars(series))
    assert live.prometheus.exemplars(series)
    assert all(
        "job_id" in labels for labels in live.prometheus.exemplars("sleb_prune_evaluations_total")
    )


def assert_headlines(live: Live) -> None:
    def mean(model: str, kind: str) -> float:
        values = [timings[kind] for timings in live.timings[model]]
        return math.fsum(values) / len(values)

    for kind, title in HEADLINES.items():
        queries = {query.legend: query for query in panel_queries() if query.title == title}
        shown = live.panel(queries["speed-up"])
        assert shown == pytest.approx(mean(DENSE, kind) / mean(PRUNED, kind), rel=0.03), title
        for model, name in ((DENSE, "$dense"), (PRUNED, "$pruned")):
            counted = live.panel(queries[f"requests, {name}"])
            assert counted == pytest.approx(
                len(live.timings[model]), rel=0.3
            )  # increase() extrapolates


def is_for_gpus(query: str) -> bool:
    return "sleb_gpu_" in query and not list(GpuMemoryCollector().collect())


def assert_every_rule_has_data(live: Live) -> None:
    def empty() -> list[str]:
        records = [rule["record"] for rule in alerts_and_records() if "record" in rule]
        return [name for name in records if not live.prometheus.has_data(name, WINDOW_S)]

    wait_until(lambda: not empty(), "every recorded series has data")
    rules = live.prometheus.rules()
    assert len(rules) == len(alerts_and_records())
    assert not [rule["name"] for rule in rules if rule["health"] != "ok" or rule.get("lastError")]


def assert_every_panel_has_data(live: Live) -> None:
    def is_empty(query: PanelQuery) -> bool:
        expr = with_values(query.expr, VALUES)
        if query.is_instant:
            samples = live.prometheus.query(expr)
            return all(math.isnan(sample.value) for sample in samples)
        return not live.prometheus.has_data(expr, WINDOW_S)

    queries = [query for query in panel_queries() if not is_for_gpus(query.expr)]
    assert len(queries) > 80
    assert not [str(query) for query in queries if is_empty(query)]
    for expr in other_queries():
        live.prometheus.query(with_values(expr, VALUES))


def assert_every_metric_is_shown(live: Live) -> None:
    """Every metric in a query of a panel, variable, annotation or rule was scraped.

    Those of a job that runs are exported no longer once it has ended.
    """
    exprs = [query.expr for query in panel_queries()]
    exprs += [rule["expr"] for rule in alerts_and_records()]
    asked = {name for expr in (*exprs, *other_queries()) for name in metrics_in(expr)}
    assert len(asked) > 50
    missing = asked - live.prometheus.names()
    assert not {name for name in missing if not is_for_gpus(name)}
