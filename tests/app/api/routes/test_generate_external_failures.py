"""Servers of external models that misbehave, over real connections, and what a client is told.

None of it disturbs anybody else, each of it is counted, and afterwards all places are free.
"""

import json
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.server.valkey import embedded_valkey
from tests.support.exposition import Scrape
from tests.support.external import (
    DONE,
    GOOD,
    KEY,
    Behaviour,
    FakeServer,
    declare,
    event,
    fake_server,
    head,
    says,
    says_and_is_silent,
    says_and_resets,
    text,
    usage,
)
from tests.support.generate_requests import events_in
from tests.support.quick import slow_but
from tests.support.serving import local_api
from tests.support.waiting import wait_until

LABELS = {"variant": "pruned", "traffic": "live", "engine": "openai"}
IMPATIENT = "impatient"  # for what is silent: where others wait for 120 s, it does for 0.3 s
JSON = "application/json"


@dataclass(frozen=True)
class Case:
    """What the server does, and the problem that our client is answered with."""

    behave: Behaviour
    status: int
    kind: str
    told: str = ""  # in the detail
    retry_after: str | None = None
    is_early: bool = False  # in front of the headers of its answer: then no stream begins
    model: str = "odd"


def refusing(status: int, body: str = "", extra: str = "") -> Behaviour:
    return says(head(status, JSON, extra), body.encode())


def early(behave: Behaviour, status: int, kind: str, **more: Any) -> Case:
    return Case(behave, status, kind, is_early=True, **more)


FAILED, TIMED_OUT, REFUSED = "backend-failed", "backend-timed-out", "backend-refused"
SO_FAR = (head(), text("a b"))
ENVELOPE = json.dumps({"error": {"message": f"no such thing, {KEY}", "code": 400}})

CASES: dict[str, Case] = {
    "400 with an envelope": early(refusing(400, ENVELOPE), 422, REFUSED, told="such thing, ***"),
    "400 of old": early(refusing(400, '{"message": "too long"}'), 422, REFUSED, told="too long"),
    "413": early(refusing(413, "big"), 422, REFUSED, told=": big"),
    "422 without a body": early(refusing(422), 422, REFUSED, told="no message"),
    "422 that nests too deep": early(refusing(422, "[" * 60_000), 422, REFUSED),
    "401": early(refusing(401, KEY), 502, FAILED, told="api_key_file"),
    "403": early(refusing(403, KEY), 502, FAILED, told="api_key_file"),
    "404": early(refusing(404, "none"), 502, FAILED, told="base_url and model"),
    "a redirect": early(
        refusing(307, extra="Location: /v2"), 502, FAILED, told="responded with 307"
    ),
    "418": early(refusing(418), 502, FAILED),
    "408": early(refusing(408), 504, TIMED_OUT),
    "429": early(refusing(429, extra="Retry-After: 9"), 429, "backend-overloaded", retry_after="9"),
    "429 with a date": early(
        refusing(429, extra="Retry-After: Fri, 31 Dec 1999 23:59:59 GMT"),
        429,
        "backend-overloaded",
        retry_after="1",
    ),
    "500": early(refusing(500, f"traceback {KEY}"), 502, FAILED, told="see the server's log"),
    "502": early(refusing(502), 502, FAILED),
    "503": early(
        refusing(503, extra="Retry-After: 7"), 503, "backend-unavailable", retry_after="7"
    ),
    "504": early(refusing(504), 504, TIMED_OUT),
    "no HTTP": early(says(b"220 smtp ready\r\n"), 502, FAILED),
    "nothing": early(says(), 502, FAILED),
    "a reset": early(says_and_resets(), 502, FAILED),
    "silence": early(
        says_and_is_silent(), 504, TIMED_OUT, told="no data for 0.3 s", model=IMPATIENT
    ),
    "half of the headers": early(says_and_is_silent(head()[:20]), 504, TIMED_OUT, model=IMPATIENT),
    "a page": early(
        says(head(content_type="text/html"), b"<p>"), 502, FAILED, told="an event stream"
    ),
    "an answer that is no stream": early(says(head(content_type=JSON), b"{}"), 502, FAILED),
    "headers alone": Case(says(head()), 502, FAILED, "before the output was complete"),
    "silence after the headers": Case(says_and_is_silent(head()), 504, TIMED_OUT, model=IMPATIENT),
    "an end in the middle": Case(says(*SO_FAR), 502, FAILED, "before the output was complete"),
    "a reset in the middle": Case(says_and_resets(*SO_FAR), 502, FAILED),
    "silence in the middle": Case(says_and_is_silent(*SO_FAR), 504, TIMED_OUT, model=IMPATIENT),
    "fewer bytes than promised": Case(
        says(head(extra="Content-Length: 9999"), text("a")), 502, FAILED
    ),
    "no JSON": Case(says(*SO_FAR, event("{nonsense")), 502, FAILED, "invalid event"),
    "JSON of another kind": Case(says(*SO_FAR, event([1, 2])), 502, FAILED, "invalid event"),
    "a chunk of two answers": Case(
        says(head(), event({"choices": [{"text": "a"}, {"text": "b"}]})), 502, FAILED, "invalid"
    ),
    "numbers for text": Case(says(head(), event({"choices": [{"text": 1}]})), 502, FAILED),
    "tokens without numbers": Case(
        says(head(), text("a", logprobs={"tokens": ["a"], "token_logprobs": []})), 502, FAILED
    ),
    "no UTF-8": Case(says(*SO_FAR, b"data: \xff\xfe\n\n", DONE), 502, FAILED),
    "a line without an end": Case(says(head(), b"data: ", b"x" * 3_000_000), 502, FAILED),
    "an error in the stream": Case(
        says(*SO_FAR, event({"error": {"message": f"out of memory {KEY}"}}), DONE), 502, FAILED
    ),
    "an abort": Case(says(*SO_FAR, text("", "abort"), usage(5, 2), DONE), 502, FAILED),
    "no usage": Case(says(*SO_FAR, text("", "stop"), DONE), 502, FAILED, "include_usage"),
    "no finish_reason": Case(says(*SO_FAR, usage(5, 2), DONE), 502, FAILED, "finish_reason"),
}


# one of each status, and of each place where an answer ends
QUICK = {"400 with an envelope", "401", "404", "408", "429", "503", "no HTTP", "a reset", "silence"}
QUICK |= {"headers alone", "an end in the middle", "silence in the middle", "no JSON"}
QUICK |= {"a line without an end", "an error in the stream", "no finish_reason"}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a job store that no test here uses."""
    with embedded_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@contextmanager
def api_of(data_dir: Path, store_url: str, base_url: str, **declared: Any) -> Iterator[TestClient]:
    (data_dir / "key").write_text(f"{KEY}\n")
    declared = {"api_key_file": "key", "parent": "far", "num_removed": 2, **declared}
    declare(data_dir, "odd", base_url, **declared)
    declare(data_dir, IMPATIENT, base_url, **declared, silence_s=0.3)
    with local_api(ServeSettings(data_dir=data_dir, drain_s=0), store_url) as client:
        yield client


@pytest.fixture(scope="module")
def client(
    fake: FakeServer, store_url: str, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """One for all tests, with a model of its own: nothing that goes wrong may stay with it."""
    data_dir = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_model_dir, data_dir / "models" / "tiny")
    with api_of(data_dir, store_url, fake.base_url) as client:
        yield client


@pytest.fixture(autouse=True)
def _well_behaved(fake: FakeServer) -> None:
    fake.behave = says(*GOOD)


def ask(client: TestClient, **body: Any) -> httpx2.Response:
    return client.post("/generate", json={"model": "odd", "prompt": "a", **body})


def check(problem: dict[str, Any], case: Case) -> None:
    assert (problem["status"], problem["type"]) == (case.status, case.kind), problem
    assert case.told in problem["detail"]
    assert repr(case.model) in problem["detail"]
    assert KEY not in json.dumps(problem)


def is_idle(client: TestClient, model: str = "odd") -> bool:
    metrics = scrape(client)
    names = ("sleb_external_requests_running", "sleb_external_requests_waiting")
    return [metrics.value(name, model_name=model) for name in names] == [0, 0]


@pytest.mark.parametrize("name", slow_but(CASES, *QUICK))
def test_what_goes_wrong_there_is_told_here(
    client: TestClient, fake: FakeServer, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    case = CASES[name]
    before, fake.behave = counts(client, case.model), case.behave
    whole = ask(client, model=case.model)
    assert whole.status_code == case.status
    check(whole.json(), case)
    if case.is_early:
        streamed = ask(client, model=case.model, stream=True)
        assert streamed.status_code == case.status
        check(streamed.json(), case)
        for answer in (whole, streamed):
            assert answer.headers.get("retry-after") == case.retry_after
    else:
        body = {"model": case.model, "prompt": "a", "stream": True}
        with client.sse("/generate", method="POST", json=body) as source:
            assert source.response.status_code == 200
            *pieces, (last, problem) = events_in(source)
        assert {piece for piece, _ in pieces} <= {"text"}
        assert last == "error"
        check(problem, case)
    errors, rejections = (2 if case.status >= 500 else 0), (2 if case.status == 429 else 0)
    metrics = scrape(client)
    now = counts_in(metrics, case.model) - before
    assert (now["errors"], now["rejections"], now["latencies"]) == (errors, rejections, 0)
    assert is_idle(client, case.model)
    assert KEY not in caplog.text
    before, fake.behave = counts_in(metrics), says(*GOOD)
    assert ask(client).json()["outputs"][0]["text"] == "a b c"
    served = {"model": "tiny", "prompt": "a", "max_new_tokens": 2}
    assert client.post("/generate", json=served).status_code == 200
    assert (counts(client) - before)["latencies"] == 1


def counts(client: TestClient, model: str = "odd") -> "Counter[str]":
    return counts_in(scrape(client), model)


def scrape(client: TestClient) -> Scrape:
    return Scrape(client.get("/metrics").text)


def counts_in(metrics: Scrape, model: str = "odd") -> "Counter[str]":
    labels = {"model_name": model, **LABELS}
    values = {
        "errors": metrics.value("sleb_request_success_total", finished_reason="error", **labels),
        "rejections": metrics.value(
            "sleb_admission_rejections_total", reason="backend_overloaded", **labels
        ),
        "latencies": metrics.value("sleb_e2e_request_latency_seconds_count", **labels),
        "generated": metrics.value("sleb_generation_tokens_total", **labels),
        "prompt": metrics.value("sleb_prompt_tokens_total", **labels),
    }
    return Counter({name: int(value or 0) for name, value in values.items()})


@pytest.mark.parametrize("name", ["500", "429", "400 of old", "silence in the middle"])
def test_clients_of_openai_get_their_envelope(
    client: TestClient, fake: FakeServer, name: str
) -> None:
    case = CASES[name]
    fake.behave = case.behave
    for path, body in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = client.post(path, json={"model": case.model, **body})
        assert answer.status_code == (400 if case.status == 422 else case.status)
        assert answer.json()["error"]["code"] == case.kind.replace("-", "_")


def test_one_that_fails_ends_the_others_of_its_call(client: TestClient, fake: FakeServer) -> None:
    """And closes their connections, which were silent."""
    gone: list[bytes] = []

    def behave(connection: socket.socket, _over: object) -> None:
        if fake.asked[-1].body["prompt"] == "bad":
            refusing(400, "this one")(connection, fake.over)
        else:
            connection.sendall(b"".join(SO_FAR[:1]))
            gone.append(connection.recv(1))

    fake.behave = behave
    answer = ask(client, prompt=["good", "bad"])
    assert answer.status_code == 422
    wait_until(lambda: gone == [b""], "the other connection is closed")
    assert is_idle(client)


@pytest.mark.parametrize(
    ("base_url", "status"),
    [("http://127.0.0.1:9/v1", 503), ("http://no-such-host.invalid/v1", 503)],
    ids=["refused", "no such name"],
)
def test_a_server_that_is_away_is_unavailable(
    data_dir: Path, store_url: str, base_url: str, status: int
) -> None:
    with api_of(data_dir, store_url, base_url) as client:
        for is_streamed in (False, True):
            answer = ask(client, stream=is_streamed)
            assert (answer.status_code, answer.json()["type"]) == (status, "backend-unavailable")
            assert "cannot connect to the server of 'odd'" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "1"
        assert counts(client) == Counter(errors=2)
        assert client.get("/health/ready").status_code == 200


def test_a_server_that_takes_no_connection_is_given_up(data_dir: Path, store_url: str) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):  # the kernel answers none of those behind them
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with api_of(data_dir, store_url, url, connect_s=0.3) as client:
            answer = ask(client)
            assert (answer.status_code, answer.json()["type"]) == (504, TIMED_OUT)
            assert "did not accept a connection within 0.3 s" in answer.json()["detail"]


def test_a_bad_certificate_is_no_server(data_dir: Path, store_url: str, fake: FakeServer) -> None:
    with api_of(data_dir, store_url, fake.base_url.replace("http:", "https:")) as client:
        assert ask(client).json()["type"] == "backend-unavailable"


def test_only_what_is_asked_for_is_sent(client: TestClient, fake: FakeServer) -> None:
    fake.asked.clear()
    ask(client)
    [plain] = fake.asked
    assert plain.path == "/v1/completions"
    assert plain.headers["authorization"] == f"Bearer {KEY}"
    assert plain.headers["user-agent"] == "sleb-serve"
    assert plain.body == {
        "model": "odd",
        "prompt": "a",
        "temperature": 0.0,
        "max_tokens": 128,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    more: dict[str, Any] = {
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 3,
    }
    more |= {"ignore_eos": True, "stop": ["x"], "stop_token_ids": [4, 1], "logprobs": 2}
    ask(client, **more, max_new_tokens=7, temperature=0.5)
    expected = {**plain.body, **more, "max_tokens": 7, "temperature": 0.5}
    assert fake.asked[-1].body == {**expected, "stop_token_ids": [1, 4]}
    chat = {"model": "odd", "messages": [{"role": "user", "content": "a"}]}
    client.post("/v1/chat/completions", json=chat)
    assert fake.asked[-1].path == "/v1/chat/completions"
    assert fake.asked[-1].body["messages"] == chat["messages"]
    assert "max_tokens" not in fake.asked[-1].body


def test_a_key_is_nowhere_to_be_seen(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    ask(client)
    for path in ("/models", "/v1/models", "/metrics", "/openapi.json"):
        assert KEY not in client.get(path).text
    external = client.app_state["services"].generation.external
    assert KEY not in repr(external.served("odd"))
    assert KEY not in caplog.text


def test_usage_counts_and_not_the_chunks(client: TestClient, fake: FakeServer) -> None:
    fake.behave = says(head(), text("many tokens"), text("", "stop"), usage(11, 40), DONE)
    before = counts(client)
    [output] = ask(client).json()["outputs"]
    assert (output["prompt_tokens"], output["completion_tokens"]) == (11, 40)
    assert output["finish_reason"] == "stop"
    assert counts(client) - before == Counter(latencies=1, prompt=11, generated=40)


def test_an_answer_without_any_text_has_its_first_token_at_its_end(
    client: TestClient, fake: FakeServer
) -> None:
    fake.behave = says(head(), text("", "stop"), usage(3, 1), DONE)
    [output] = ask(client).json()["outputs"]
    assert (output["text"], output["completion_tokens"]) == ("", 1)
    assert output["timings"]["ttft_s"] == output["timings"]["e2e_s"]
