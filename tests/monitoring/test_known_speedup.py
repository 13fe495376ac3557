"""What the dashboard shows for latencies with a known speed-up.

They are recorded in the real metrics and scraped by a real Prometheus.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist, fmean, quantiles

import pytest
from prometheus_client import start_http_server

from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.metrics import Labels, Metrics
from app.models.entry import ModelKind
from tests.monitoring.boards import panel_queries
from tests.monitoring.prometheus import Prometheus, prometheus, with_values
from tests.support.waiting import wait_until

SPEEDUP = 1.25
FACTORS: dict[ModelKind, float] = {"dense": 1.0, "pruned": SPEEDUP}
DENSE_TPOTS_MS = (12, 18, 40)
SPREADS = {"narrow": 0.05, "wide": 0.2}  # standard deviation of the logarithm
NUM_REQUESTS, NUM_TOKENS, PREFILL_TOKENS = 2000, 101, 3
COUNT = "sleb_request_time_per_output_token_seconds_count"


def latencies_s(mean_ms: float, spread: float) -> list[float]:
    """Latencies of a log-normal distribution, at the centres of intervals of equal probability."""
    normal = NormalDist(sigma=spread)
    parts = ((number + 0.5) / NUM_REQUESTS for number in range(NUM_REQUESTS))
    raw = [math.exp(normal.inv_cdf(part)) for part in parts]
    return [value / fmean(raw) * mean_ms / 1000 for value in raw]


def cases() -> Iterator[tuple[str, ModelKind, float, list[float]]]:
    """Models, variants, and times per output token in seconds."""
    for mean_ms in DENSE_TPOTS_MS:
        for name, spread in SPREADS.items():
            for variant, factor in FACTORS.items():
                values = latencies_s(mean_ms / factor, spread)
                yield f"{name}-{mean_ms}-{variant}", variant, mean_ms, values


def feed(metrics: Metrics, labels: Labels, tpots_s: list[float]) -> None:
    token_gap = metrics.token_gaps(labels)
    for tpot_s in tpots_s:
        ttft_s = PREFILL_TOKENS * tpot_s
        end_s = ttft_s + tpot_s * (NUM_TOKENS - 1)
        timings = Timings(0.0, 0.0, ttft_s, end_s, NUM_TOKENS, 1.0)
        metrics.finished(labels, 10, FinishReason.LENGTH, timings)
        token_gap(tpot_s)


@contextmanager
def scraped(directory: Path) -> Iterator[Prometheus]:
    """Prometheus after it scraped all cases. Each series starts at 0."""
    metrics = Metrics()
    labelled = {model: (Labels(model, variant), values) for model, variant, _, values in cases()}
    for labels, _ in labelled.values():
        metrics.admitted(labels)
    server, thread = start_http_server(0, "127.0.0.1", metrics.registry)
    try:
        with prometheus(directory, {"sleb-api": f"127.0.0.1:{server.server_port}"}) as found:
            wait_for_counts(found, len(labelled), 0)
            for labels, values in labelled.values():
                feed(metrics, labels, values)
            wait_for_counts(found, len(labelled), NUM_REQUESTS)
            yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for_counts(found: Prometheus, num_models: int, count: int) -> None:
    expr = f"count({COUNT} == {count})"
    wait_until(
        lambda: [sample.value for sample in found.query(expr)] == [num_models], "all is scraped"
    )


def values_of(dense: str) -> Mapping[str, str]:
    pruned = dense.replace("dense", "pruned")
    windows = {"__range": "60s", "__rate_interval": "60s"}
    return {"dense": dense, "pruned": pruned, "traffic": "live", **windows}


def shown(found: Prometheus, title: str, values: Mapping[str, str]) -> dict[str, float]:
    """Values of a panel by legend."""
    return {
        with_values(query.legend, values): found.value(with_values(query.expr, values))
        for query in panel_queries()
        if query.title == title
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_known_speedup_is_what_the_dashboard_shows(tmp_path: Path) -> None:
    with scraped(tmp_path / "prometheus") as found:
        for model, variant, mean_ms, tpots_s in cases():
            if variant == "dense":
                assert_headlines(found, values_of(model))
                assert_ratios_of_quantiles(found, values_of(model))
            assert_quantiles(found, model, variant, tpots_s, mean_ms)


def assert_headlines(found: Prometheus, values: Mapping[str, str]) -> None:
    for title in (
        "Speed-up of time per output token",
        "Speed-up of time to first token",
        "Speed-up of end-to-end latency",
    ):
        panel = shown(found, title, values)
        assert panel.pop("speed-up") == pytest.approx(SPEEDUP, abs=0.01), values
        assert all(count >= NUM_REQUESTS * 0.9 for count in panel.values())


def assert_ratios_of_quantiles(found: Prometheus, values: Mapping[str, str]) -> None:
    """The quantile of each side may differ by half a bucket."""
    for share, ratio in shown(
        found, "Speed-up of quantiles of time per output token", values
    ).items():
        assert ratio == pytest.approx(SPEEDUP, rel=0.1), (share, values)


def assert_quantiles(
    found: Prometheus, model: str, variant: str, tpots_s: list[float], mean_ms: float
) -> None:
    dense = model.replace("pruned", "dense")
    hundredths = quantiles(tpots_s, n=100)
    of_tokens = {50: hundredths[49], 95: hundredths[94], 99: hundredths[98]}
    scales = {
        "Time per output token": 1,
        "Inter-token latency": 1,
        "Time to first token": PREFILL_TOKENS,
        "End-to-end latency": PREFILL_TOKENS + NUM_TOKENS - 1,
    }
    for title, scale in scales.items():
        panel = shown(found, title, values_of(dense))
        for percent, of_token in of_tokens.items():
            shown_s = panel[f"p{percent} {model}"]
            assert shown_s == pytest.approx(of_token * scale, rel=0.05), (
                title,
                percent,
                mean_ms,
                variant,
            )
