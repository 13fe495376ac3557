"""What the API's /metrics says of requests: lengths, batches, ids, no names of clients' own."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.metrics import Labels, Metrics
from app.request_id import current_request_id
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape

BODY = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 5, "ignore_eos": True}
DENSE = {"model_name": "tiny", "variant": "dense", "traffic": "live"}
LATENCIES = {
    "sleb_time_to_first_token_seconds",
    "sleb_inter_token_latency_seconds",
    "sleb_request_time_per_output_token_seconds",
    "sleb_e2e_request_latency_seconds",
    "sleb_request_queue_time_seconds",
}


def scrape(client: TestClient) -> Scrape:
    return Scrape(client.get("/metrics").text)


def exemplars(text: str) -> dict[str, set[str]]:
    """Request ids by the name of the metric."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar:
                ids = found.setdefault(family.name, set())
                ids.add(sample.exemplar.labels["request_id"])
    return found


@pytest.mark.parametrize("request_id", ["req-7", 'a "quoted" \\ one', "x" * 128])
def test_latencies_have_the_id_of_a_request_as_exemplar(
    client: TestClient, request_id: str
) -> None:
    answer = client.post("/generate", json=BODY, headers={"X-Request-Id": request_id})
    assert answer.status_code == 200
    page = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = exemplars(page.text)
    assert found.keys() >= LATENCIES
    assert all(found[name] == {request_id[:118]} for name in LATENCIES)


def test_of_the_gaps_of_an_answer_only_the_longest_so_far_bring_its_id() -> None:
    def labels() -> Labels:
        current_request_id.set("req-7")
        return Labels("tiny", "dense")

    metrics = Metrics()
    token_gap = metrics.token_gaps(copy_context().run(labels))
    gaps_s = (0.004, 0.03, 0.002, 0.2, 0.03)
    for seconds in gaps_s:
        token_gap(seconds)
    page = openmetrics.generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    (family,) = (
        each
        for each in text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
        if each.name == "sleb_inter_token_latency_seconds"
    )
    shown = [each.exemplar for each in family.samples if each.exemplar]
    assert [each.value for each in shown] == [0.004, 0.03, 0.2]
    (count,) = (each.value for each in family.samples if each.name.endswith("_count"))
    assert count == len(gaps_s)


def test_what_is_asked_without_openmetrics_has_no_exemplars(client: TestClient) -> None:
    client.post("/generate", json=BODY, headers={"X-Request-Id": "req-7"})
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert "req-7" not in page.text


def test_a_made_up_model_has_the_one_label_of_all_made_up_ones(client: TestClient) -> None:
    for number in range(3):
        client.post("/generate", json={**BODY, "model": f"made-up-{number}"})
        client.get(f"/made-up-{number}")
        client.request(f"MADEUP{number}", "/generate")
    found = scrape(client)
    other = {"model_name": "other", "variant": "unknown", "traffic": "live", "engine": "unknown"}
    rejected = found.value("sleb_admission_rejections_total", reason="unknown_model", **other)
    assert rejected == 3
    requests = "sleb_http_requests_total"
    assert found.value(requests, route="/generate", method="POST", status="404") == 3
    assert found.value(requests, route="other", method="GET", status="404") == 3
    assert sum(labels["method"] == "other" for labels in found.series(requests)) == 1
    assert "made-up" not in client.get("/metrics").text.lower()


def test_a_defect_counts_as_500_and_paths_as_their_template(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.routes.models.model_view", lambda *_: 1 / 0)
    assert client.get("/models/tiny").status_code == 500
    found = scrape(client)
    labels = {"route": "/models/{name}", "method": "GET", "status": "500"}
    assert found.value("sleb_http_requests_total", **labels) == 1


def test_every_series_of_a_request_is_there_when_it_is_admitted() -> None:
    """Or a rate would miss the first of every kind."""
    metrics = Metrics()
    metrics.admitted(Labels("tiny", "dense"))
    found = Scrape(generate_latest(metrics.registry).decode())
    for reason in FinishReason:
        assert found.value("sleb_request_success_total", finished_reason=reason, **DENSE) == 0
    for name in (*LATENCIES, "sleb_request_prompt_tokens", "sleb_request_generation_tokens"):
        assert found.value(f"{name}_count", **DENSE) == 0


def test_how_long_requests_were_and_what_they_shared_a_step_with(client: TestClient) -> None:
    short, long = "the dog", "the quick brown fox jumps over the lazy dog"
    answers = [
        client.post("/generate", json=BODY | {"prompt": [short] * 4}).json(),
        client.post("/generate", json=BODY | {"prompt": long, "max_new_tokens": 1}).json(),
    ]
    lengths = [each["prompt_tokens"] for answer in answers for each in answer["outputs"]]
    found = scrape(client)

    def mean(name: str, count: int) -> float:
        assert found.value(f"{name}_count", **DENSE) == count
        total = found.value(f"{name}_sum", **DENSE)
        assert total is not None
        return total / count

    assert mean("sleb_request_prompt_tokens", 5) == sum(lengths) / 5
    assert mean("sleb_request_generation_tokens", 5) == (4 * 5 + 1) / 5
    assert mean("sleb_request_batch_size", 4) == 4  # one token alone takes no decode step


def test_what_was_cut_short_tells_no_latency() -> None:
    metrics, labels = Metrics(), Labels("tiny", "dense")
    timings = Timings(0.0, 1.0, 2.0, 3.0, 5, 1.0)
    for reason in FinishReason:
        metrics.finished(labels, 3, reason, timings)
    found = Scrape(generate_latest(metrics.registry).decode())
    assert found.value("sleb_e2e_request_latency_seconds_count", **DENSE) == len(FinishReason) - 2
    assert found.value("sleb_generation_tokens_total", **DENSE) == 5 * len(FinishReason)


def test_models_have_numbers_to_reckon_with(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir)
    found = scrape(client)
    blocks = [found.value("sleb_model_num_blocks", model_name=f"tiny{of}") for of in ("", "@-2")]
    assert blocks == [6, 4]
    sizes = [
        found.value("sleb_model_parameter_bytes", model_name=f"tiny{of}")
        for of in ("", "@-1", "@-2")
    ]
    assert sizes[0] == client.get("/models/tiny").json()["num_parameters"] * 4
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[2] is not None
    assert sizes[0] - sizes[1] == sizes[1] - sizes[2] > 0


def test_each_perplexity_names_its_text(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir)
    found, each = scrape(client), client.get("/models/tiny@-2").json()
    text = each["evaluated_on"]
    pruned, dense = (
        found.value(f"sleb_model_{which}perplexity", model_name="tiny@-2", text=text)
        for which in ("", "dense_")
    )
    assert (pruned, dense) == (each["perplexity"], each["dense_perplexity"])
    assert dense == found.value("sleb_model_perplexity", model_name="tiny", text=text)
    assert each["domains"]
    for domain in each["domains"]:
        labels = {"model_name": "tiny@-2", "domain": domain["domain"], "text": domain["text"]}
        for name, value in (
            ("perplexity", domain["perplexity"]),
            ("dense_perplexity", domain["dense_perplexity"]),
            ("perplexity_ratio_low", domain["ratio_low"]),
            ("perplexity_ratio_high", domain["ratio_high"]),
        ):
            assert found.value(f"sleb_model_domain_{name}", **labels) == value


def test_variants_in_memory_show_that_nothing_runs_on_them(
    client: TestClient, data_dir: Path
) -> None:
    publish_pruned(data_dir)
    with ThreadPoolExecutor() as pool:
        for name in ("tiny", "tiny@-1"):
            pool.submit(client.post, "/generate", json={**BODY, "model": name}).result()
    found = scrape(client)
    for name, variant in (("tiny", "dense"), ("tiny@-1", "pruned")):
        each = {"model_name": name, "variant": variant}
        assert found.value("sleb_num_requests_running", **each) == 0
        assert found.value("sleb_num_requests_waiting", **each) == 0
        assert found.value("sleb_kv_cache_bytes", model_name=name) == 0


def test_it_says_whether_traffic_should_come(client: TestClient) -> None:
    found = scrape(client)
    assert (found.value("sleb_ready"), found.value("sleb_draining")) == (1, 0)
    client.app_state["services"].readiness.drain(30)
    found = scrape(client)
    assert (found.value("sleb_ready"), found.value("sleb_draining")) == (0, 1)


def test_it_says_when_the_process_began(client: TestClient) -> None:
    """Under the name of every process, as dashboards for vLLM ask for it."""
    began_s = scrape(client).value("process_start_time_seconds")
    assert began_s == pytest.approx(psutil.Process().create_time(), abs=2)
