"""Traces of requests: one tree from HTTP to the phases in the engine, or nothing at all."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.config import ServeSettings
from app.main import create_app
from app.metrics.tracing import Tracing
from tests.support.serving import LocalClient
from tests.support.waiting import wait_until

BODY = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 5, "ignore_eos": True}
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(
    settings: ServeSettings, redis_url: str, exporter: InMemorySpanExporter
) -> Iterator[TestClient]:
    tracing = Tracing(SimpleSpanProcessor(exporter))
    app = create_app(settings, redis_url=redis_url, tracing=tracing)
    with LocalClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the API is ready")
        yield client


def below(spans: tuple[ReadableSpan, ...], parent: ReadableSpan) -> list[ReadableSpan]:
    assert parent.context is not None
    return [each for each in spans if each.parent and each.parent.span_id == parent.context.span_id]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_request_is_one_tree_down_to_the_phases_in_the_engine(
    client: TestClient, exporter: InMemorySpanExporter, is_streamed: bool
) -> None:
    headers = {"X-Request-Id": "req-7", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    body = {**BODY, "prompt": ["the dog"] * 2, "stream": is_streamed}
    assert client.post("/generate", json=body, headers=headers).status_code == 200
    spans = exporter.get_finished_spans()
    assert {f"{each.context.trace_id:032x}" for each in spans if each.context} == {TRACE_ID}
    [request] = [each for each in spans if each.name == "POST /generate"]
    generated = below(spans, request)
    assert [each.name for each in generated] == ["generate tiny"] * 2
    for each in generated:
        assert each.attributes is not None
        assert each.attributes["gen_ai.usage.output_tokens"] == 5
        assert each.attributes["gen_ai.response.finish_reasons"] == ("length",)
        assert each.attributes["sleb.request_id"] == "req-7"
        assert each.attributes["sleb.engine"] == "own"
        assert (each.attributes["sleb.variant"], each.attributes["sleb.traffic"]) == (
            "dense",
            "live",
        )
        phases = below(spans, each)
        assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
        moments = [each.start_time, *(phase.end_time for phase in phases)]
        assert moments == sorted(moments, key=lambda moment: moment or 0)
        assert [phase.start_time for phase in phases] == moments[:-1]
        assert moments[-1] == each.end_time
        assert (request.start_time or 0) <= (each.start_time or 0) + 1_000_000


def test_phases_last_as_long_as_the_answer_says(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    [output] = client.post("/generate", json=BODY).json()["outputs"]
    took_s = {
        each.name: ((each.end_time or 0) - (each.start_time or 0)) / 1e9
        for each in exporter.get_finished_spans()
    }
    timings = output["timings"]
    assert took_s["queue"] == pytest.approx(timings["queue_s"], abs=1e-5)
    assert took_s["queue"] + took_s["prefill"] == pytest.approx(timings["ttft_s"], abs=1e-5)
    assert took_s["decode"] == pytest.approx(timings["tpot_s"] * 4, abs=1e-5)
    assert took_s["generate tiny"] == pytest.approx(timings["e2e_s"], abs=1e-5)


def test_what_machines_ask_every_few_seconds_is_not_traced(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    for path in ("/metrics", "/health/live", "/health/ready"):
        client.get(path)
    client.get("/models")
    assert [each.name for each in exporter.get_finished_spans()] == ["GET /models"]


@pytest.mark.parametrize("name", ["SLEB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_both_names_of_the_setting_are_heard(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert ServeSettings().otlp_endpoint is None
    monkeypatch.setenv(name, "http://127.0.0.1:4318")
    assert str(ServeSettings().otlp_endpoint) == "http://127.0.0.1:4318/"


@pytest.mark.slow
def test_without_an_endpoint_the_extra_is_neither_imported_nor_needed() -> None:
    """The API of OpenTelemetry belongs to FastAPI; its SDK and its exporters are the extra."""
    code = (
        "import sys;"
        "sys.modules.update({'opentelemetry.sdk': None, 'opentelemetry.exporter': None});"
        "from app.config import ServeSettings; from app.main import create_app;"
        "create_app(ServeSettings(), redis_url='unix:///nowhere');"
        "sys.exit('app.metrics.tracing' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode == 0, done.stderr
