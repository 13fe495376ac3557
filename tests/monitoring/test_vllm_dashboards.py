"""Which panels of vLLM's Grafana dashboards have data here, by the metrics and functions they use.

Names are those of its dashboards vLLM, Performance Statistics, Query Statistics, Service Status,
Overview and Instances, and of the first panels of KV Cache. docs/metrics.md says the same.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.config import ServeSettings
from tests.monitoring.prometheus import Prometheus, alerts_and_records, prometheus
from tests.support.api_fixtures import publish_pruned
from tests.support.serving import serving
from tests.support.waiting import wait_until

PRUNED = "tiny@-1"
OF = f'{{job=~"sleb-api",model_name=~"{PRUNED}",instance=~".+"}}'
OF_ENGINE = OF.replace("}", ',engine=~"0"}')
OF_PROCESS = '{job=~"sleb-api",instance=~".+"}'
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *("request_time_per_output_token_seconds", "request_queue_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens"),
)
COUNTERS = (
    *("prompt_tokens_total", "generation_tokens_total", "request_success_total"),
    *("prompt_tokens_by_source_total", "prompt_tokens_cached_total", "num_preemptions_total"),
    *("prefix_cache_queries_total", "prefix_cache_hits_total"),
)
GAUGES = (
    *("num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason"),
    *("kv_cache_usage_perc", "engine_sleep_state"),
)
OF_PROCESSES = (
    *("process_cpu_seconds_total", "process_resident_memory_bytes"),
    *("process_open_fds", "process_max_fds"),
)
GUIDE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
UPTIME = (
    "(time() - process_start_time_seconds{of_process})"
    " * on (job, instance) group_left (model_name)"
    " group by (job, instance, model_name) (vllm:num_requests_running{of})"
)


def queries() -> Iterator[str]:
    """Of every kind that the dashboards have, for one model and in the words of PromQL alone."""
    for name in HISTOGRAMS:
        bucket, total, count = (f"vllm:{name}_{part}" for part in ("bucket", "sum", "count"))
        yield f"histogram_quantile(0.9, sum by (le) (rate({bucket}{OF}[5s])))"
        yield f"sum by (le) (increase({bucket}{OF_ENGINE}[5s]))"
        yield f"sum(rate({total}{OF}[5s])) / (sum(rate({count}{OF}[5s])) > 0)"
        yield f"rate({total}{OF}[5s])"
    for name in COUNTERS:
        yield f"sum by (model_name, instance) (rate(vllm:{name}{OF_ENGINE}[5s]))"
    for name in GAUGES:
        yield f"sum by (instance, engine) (vllm:{name}{OF_ENGINE})"
    for name in OF_PROCESSES:
        yield f"sum by (instance) ({name}{OF_PROCESS})"
    for le, name in (("0.5", "time_to_first_token"), ("0.05", "request_time_per_output_token")):
        within = OF.replace("}", f',le="{le}"}}')
        yield f"sum(rate(vllm:{name}_seconds_bucket{within}[5s]))"
    failed = OF.replace("}", ',finished_reason="error"}')
    hits, asked = (f"rate(vllm:prefix_cache_{each}_total{OF}[5s])" for each in ("hits", "queries"))
    yield f"sum({hits}) / sum({asked})"
    yield f"1 - sum(rate(vllm:request_success_total{failed}[5s]))"
    yield f"sum by (handler) (rate(http_requests_total{OF_PROCESS}[5s]))"
    yield UPTIME.format(of_process=OF_PROCESS, of=OF)


@pytest.fixture
def scraped(
    settings: ServeSettings, data_dir: Path, tmp_path: Path, redis_url: str
) -> Iterator[Prometheus]:
    """After some requests to two models of one process."""
    publish_pruned(data_dir, num_remove=1)
    with (
        serving(settings, redis_url) as (_, url),
        httpx2.Client(base_url=url) as client,
        prometheus(tmp_path / "prometheus", {"sleb-api": url.removeprefix("http://")}) as found,
    ):

        def has_rates() -> bool:
            for model in ("tiny", PRUNED):
                body = {"model": model, "prompt": "the dog", "max_new_tokens": 4}
                assert client.post("/generate", json=body).status_code == 200
            last = "vllm:request_generation_tokens_count"
            rates = found.query(f"rate({last}{OF}[5s])")
            return bool(rates) and rates[0].value > 0

        wait_until(has_rates, "what is counted has rates")
        yield found


@pytest.mark.slow
def test_panels_of_vllm_have_data_as_the_guide_says(scraped: Prometheus) -> None:
    assert not [query for query in queries() if not scraped.has_data(query, 30)]
    awake = OF.replace("}", ',sleep_state="awake"}')
    online = f"2 - (max(vllm:engine_sleep_state{awake}) == bool 0)"
    assert scraped.value(online) == 2
    assert scraped.value(f"count(vllm:num_requests_running{OF})") == 1  # engines
    of_all = OF.replace(PRUNED, ".+")
    assert scraped.value(f"count(vllm:num_requests_running{of_all})") == 2
    with pytest.raises(AssertionError, match=r"duplicate series|many-to-many|unique"):
        scraped.query(UPTIME.format(of_process=OF_PROCESS, of=of_all))
    assert not [name for name in absent() if scraped.query(name)]


def test_the_guide_calls_nothing_absent_that_is_recorded() -> None:
    recorded = {rule["record"] for rule in alerts_and_records() if "record" in rule}
    assert len(absent()) == 13
    assert not recorded & absent()
    asked = {f"vllm:{name}" for name in (*COUNTERS, *GAUGES)}
    asked |= {f"vllm:{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    assert {name for name in recorded if name.startswith("vllm:")} - asked == {
        "vllm:admission_rejections_total"  # which vLLM has not
    }


def absent() -> set[str]:
    listed = GUIDE.partition("Absent are")[2].partition("\n- ")[0]
    return set(re.findall(r"`([a-z:_]+)`", listed))
