"""How the ingress handles responses of replicas, and replicas that do not respond."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import Request
from starlette.types import Message

from app.cluster.ingress import MAX_ATTEMPTS, Ingress, merged_metrics
from app.cluster.messages import ReplicaResponse

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"X-Request-Id", b"mine")],
}
FIRST: Message = {"type": "http.response.body", "body": b"first", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"last"}
WHOLE = [START, FIRST, LAST]
Tries = list[list[Message | Exception]]


class Replicas:
    """A fake of Ray Serve's handle: each attempt follows its script."""

    def __init__(self, tries: Tries, wholes: list[Any] | None = None) -> None:
        self._tries = tries
        self._wholes = wholes
        self.num_tries = 0
        self.num_cancelled = 0

    def options(self, **options: Any) -> "Replicas":
        assert options == {"method_name": "stream", "stream": True}
        return self

    def remote(self, _asked: object) -> "Attempt":
        self.num_tries += 1
        return Attempt(self, self._tries[self.num_tries - 1])

    def broadcast(self, method: str, _asked: object) -> "Replicas":
        assert method == "respond"
        return self

    async def _fetch_replica_results_async(self) -> list["Result"]:
        if self._wholes is None:
            raise DeploymentUnavailableError(DeploymentID("replica"))
        return [Result(answer) for answer in self._wholes]


class Result:
    """The response of one replica to a broadcast; None never arrives."""

    def __init__(self, answer: ReplicaResponse | Exception | None) -> None:
        self._answer = answer

    async def get_async(self) -> ReplicaResponse:
        if self._answer is None:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        return self._answer


class Attempt:
    def __init__(self, replicas: Replicas, script: list[Message | Exception]) -> None:
        self._replicas = replicas
        self._script = script

    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        for step in self._script:
            if isinstance(step, Exception):
                raise step
            yield [step]

    def cancel(self) -> None:
        self._replicas.num_cancelled += 1


def ask(
    replicas: Any,
    path: str = "/generate",
    method: str = "POST",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    on_sent: Callable[[Message], None] = lambda _message: None,
) -> list[Message]:
    """The messages that a client of the ingress receives."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)
        on_sent(message)

    async def answer() -> None:
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        response = await Ingress(replicas, 100)(Request(scope, receive))
        await response(scope, receive, send)

    asyncio.run(answer())
    return sent


def refusal(sent: list[Message]) -> tuple[int, Any]:
    start, body = sent
    return start["status"], json.loads(body["body"])


def lost() -> Exception:
    return ActorDiedError()


def test_an_answer_is_passed_on_as_it_comes_without_a_second_id() -> None:
    sent = ask(Replicas([[*WHOLE]]))
    assert sent[0]["headers"] == [(b"content-type", b"text/event-stream")]
    assert sent[1:] == [FIRST, LAST]


@pytest.mark.parametrize("said", [[], [START]])
def test_what_has_not_begun_to_stream_is_asked_again(said: list[Message | Exception]) -> None:
    replicas = Replicas([[*said, lost()], [*WHOLE]])
    assert len(ask(replicas)) == 3
    assert replicas.num_tries == 2


def test_it_is_not_asked_again_for_ever() -> None:
    replicas = Replicas([[lost()]] * 9)
    status, problem = refusal(ask(replicas))
    assert (status, problem["type"]) == (502, "replica-lost")
    assert replicas.num_tries == MAX_ATTEMPTS


def test_what_has_begun_to_stream_ends_with_an_error_event() -> None:
    replicas = Replicas([[START, FIRST, lost()], [*WHOLE]])
    *_, first, last = ask(replicas)
    assert first == FIRST
    assert last["body"].startswith(b"event: error\ndata: ")
    assert not last.get("more_body")
    assert replicas.num_tries == 1
    of_openai = ask(Replicas([[START, FIRST, lost()]]), "/v1/completions")[-1]["body"]
    assert json.loads(of_openai.removeprefix(b"data: "))["error"]["code"] == "replica_lost"


def test_what_was_begun_and_is_no_stream_of_events_breaks_off() -> None:
    start = {**START, "headers": [(b"content-type", b"application/octet-stream")]}
    sent: list[Message] = []
    replicas = Replicas([[start, FIRST, lost()], [*WHOLE]])
    with pytest.raises(RuntimeError, match="was lost during its response"):
        ask(replicas, "/prune-jobs/prn-1/checkpoints/model.safetensors", "GET", on_sent=sent.append)
    assert sent[1:] == [FIRST]


def test_what_may_have_been_done_is_asked_again_with_a_key_alone() -> None:
    replicas = Replicas([[lost()], [*WHOLE]])
    status, problem = refusal(ask(replicas, "/prune-jobs"))
    assert (status, replicas.num_tries) == (502, 1)
    assert "Idempotency-Key" in problem["detail"]
    keyed = Replicas([[lost()], [*WHOLE]])
    assert len(ask(keyed, "/prune-jobs", headers=((b"idempotency-key", b"mine"),))) == 3
    listed = Replicas([[lost()], [*WHOLE]])
    assert len(ask(listed, "/prune-jobs", "GET")) == 3


def test_a_request_that_only_watches_is_told_at_once_that_it_was_heard() -> None:
    replicas = Replicas([[START, lost()], [*WHOLE]])
    sent = ask(replicas, "/prune-jobs/prn-1/events", "GET")
    assert [message["type"] for message in sent] == [START["type"], LAST["type"]]
    assert b"replica-lost" in sent[-1]["body"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BackPressureError(1, 1), 429, "overloaded"),
        (DeploymentUnavailableError(DeploymentID("replica")), 503, "no-replica"),
    ],
)
def test_what_ray_serve_refuses_is_refused_in_our_words(
    error: Exception, status: int, kind: str
) -> None:
    sent = ask(Replicas([[error]]))
    assert refusal(sent)[0] == status
    assert refusal(sent)[1]["type"] == kind
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    _, envelope = refusal(ask(Replicas([[error]]), "/v1/completions"))
    assert set(envelope) == {"error"}


def test_a_client_that_goes_ends_what_the_replica_does() -> None:
    replicas = Replicas([[*WHOLE]])

    def go(message: Message) -> None:
        if message == FIRST:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ask(replicas, on_sent=go)
    assert replicas.num_cancelled == 1


def whole(replica: str, status: int, body: bytes = b"{}") -> ReplicaResponse:
    return ReplicaResponse(replica, status, ((b"X-Request-Id", b"mine"), (b"x-own", b"1")), body)


def test_one_ready_replica_makes_it_ready_and_one_that_cannot_unload_says_so() -> None:
    wholes = [lost(), whole("b", 503), None, whole("a", 200)]
    assert ask(Replicas([], wholes), "/health/ready", "GET")[0]["status"] == 200
    refused = ask(Replicas([], [whole("a", 204), whole("b", 409)]), "/models/tiny/unload")
    assert refused[0]["status"] == 409
    assert refused[0]["headers"] == [(b"x-own", b"1")]


@pytest.mark.parametrize("wholes", [None, [ActorDiedError()]])
def test_without_any_replica_it_is_not_ready(wholes: list[Any] | None) -> None:
    status, problem = refusal(ask(Replicas([], wholes), "/health/ready", "GET"))
    assert (status, problem["type"]) == (503, "no-replica")


def test_a_replica_that_is_late_is_left_out_but_nothing_is_done_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.cluster.ingress.BROADCAST_TIMEOUT_S", {"GET": 0.01, "POST": 0.01})
    page = ask(Replicas([], [whole("a", 200, b""), None]), "/metrics", "GET")
    assert b"sleb_replicas 1.0" in page[1]["body"]
    status, problem = refusal(ask(Replicas([], [whole("a", 204), None]), "/models/tiny/unload"))
    assert (status, problem["type"]) == (503, "no-replica")


def test_metrics_of_all_come_on_one_page() -> None:
    page = b'# HELP sleb_a_total Some.\n# TYPE sleb_a_total counter\nsleb_a_total{x="1"} %d\n'
    wholes = [whole("a", 200, page % 1), whole("b", 200, page % 2), lost()]
    lines = ask(Replicas([], wholes), "/metrics", "GET")[1]["body"].decode().splitlines()
    assert [line for line in lines if line.startswith("sleb_")] == [
        "sleb_replicas 2.0",
        'sleb_a_total{replica="a",x="1"} 1',
        'sleb_a_total{replica="b",x="1"} 2',
    ]
    assert lines.count("# TYPE sleb_a_total counter") == 1
    keyless = ask(Replicas([], [whole("a", 401), whole("b", 200, page)]), "/metrics", "GET")
    assert keyless[0]["status"] == 401


def test_the_page_has_every_sample_of_every_replica_with_its_name() -> None:
    """Parsing each page and adding the label is slow, and shows what is right."""
    registry = CollectorRegistry()
    Gauge("sleb_plain", "Without labels.", registry=registry).set(0.5)
    Counter("sleb_odd", 'Of "names".', ["name"], registry=registry).labels('a{b "c\\d} 1').inc()
    Histogram("sleb_s", "Of seconds.", ["x"], registry=registry).labels("y").observe(0.3)
    page = generate_latest(registry).decode()
    merged = merged_metrics({"a": page, "b": page.replace("0.5", "0.25")})

    def samples(text: str) -> list[Sample]:
        families = list(text_string_to_metric_families(text))
        names = [family.name for family in families]
        assert sorted(set(names)) == sorted(names)
        return [sample for family in families for sample in family.samples]

    found = samples(merged)
    for replica, value in (("a", 0.5), ("b", 0.25)):
        own = [each for each in found if each.labels.get("replica") == replica]
        for each in own:
            del each.labels["replica"]
        assert own == samples(page.replace("0.5", str(value)))
    assert len(found) == 1 + 2 * len(samples(page))
