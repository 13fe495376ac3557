"""Two replicas on one machine, with a real Ray, behave as one process does over HTTP."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from tests.support.api_fixtures import publish_pruned
from tests.support.clusters import LONG, MODEL, Many, Service, service_on
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # it takes minutes until they are there


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("cluster")
    with service_on(directory, 1, replicas=2, max_num_seqs=2, max_waiting=1) as service:
        yield service


def num_done(service: Service, reason: str) -> float:
    return sum(service.metric("sleb_request_success_total", finished_reason=reason).values())


def test_replicas_share_the_load_and_one_page_has_the_metrics_of_both(service: Service) -> None:
    assert service.client.get("/health/ready").json()["status"] == "ready"
    whole = [service.generate("the dog", 5) for _ in range(2)]
    texts = {answer.json()["outputs"][0]["text"] for answer in whole}
    assert len(texts) == 1

    answers = Many([partial(service.generate, "the dog", 40)] * 4).results()
    assert [answer.status_code for answer in answers] == [200] * 4
    tokens = service.metric("sleb_generation_tokens_total", model_name="tiny")
    assert len(tokens) == len(service.pids) == 2
    assert sum(tokens.values()) == 2 * 5 + 4 * 40
    assert "sleb_replicas 2.0" in service.client.get("/metrics").text


def test_a_stream_is_that_of_one_process(service: Service) -> None:
    ask = {**MODEL, "prompt": "the dog", "max_new_tokens": 9}
    whole = service.client.post("/generate", json=ask)
    headers = {"X-Request-Id": "mine"}
    streamed = service.client.post("/generate", json={**ask, "stream": True}, headers=headers)
    assert streamed.headers.get_list("x-request-id") == ["mine"]
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [event.partition("\ndata: ") for event in streamed.text.strip().split("\n\n")]
    text = "".join(json.loads(data)["text"] for kind, _, data in events if kind == "event: text")
    assert text == whole.json()["outputs"][0]["text"]
    assert [kind for kind, *_ in events][-1] == "event: done"
    assert len(events) > 2


def test_a_checkpoint_on_the_shared_storage_is_served_by_all_replicas(service: Service) -> None:
    publish_pruned(service.settings.data_dir, num_remove=1)
    ask = partial(service.generate, "the dog", 40, model="tiny@-1")
    answers = [answer.json() for answer in Many([ask] * 4).results()]
    assert {answer["variant"] for answer in answers} == {"pruned"}
    assert len({answer["outputs"][0]["text"] for answer in answers}) == 1
    assert len(service.metric("sleb_generation_tokens_total", variant="pruned")) == 2


def test_what_is_refused_is_refused_in_the_words_of_the_application(service: Service) -> None:
    unknown = service.client.post("/generate", json={"model": "unknown", "prompt": "a"})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "model-not-found")
    openai = service.client.post("/v1/completions", json={"model": "unknown", "prompt": "a"})
    assert openai.json()["error"]["code"] == "model_not_found"
    assert unknown.headers["x-content-type-options"] == "nosniff"
    large = service.client.post("/generate", content=b"x" * (service.settings.max_body_bytes + 9))
    assert (large.status_code, large.json()["type"]) == (413, "body-too-large")


def test_back_pressure_is_passed_on(service: Service) -> None:
    """A replica runs two requests and queues one more, so a fourth one is with the other replica.

    Not all six places have to be taken: Ray prefers the replica with fewer requests, and one that
    is full refuses at once, so it seems idle.
    """
    asks = [partial(service.generate, "the dog", LONG) for _ in range(16)]
    answers = Many(asks).results()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}, [answer.text for answer in answers]
    assert statuses.count(200) >= 4
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["type"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(service: Service, is_streamed: bool) -> None:
    before = num_done(service, "abort")
    ask: dict[str, Any] = {**MODEL, "prompt": "the dog", "max_new_tokens": LONG}
    with httpx2.Client(base_url=service.url) as client:
        if is_streamed:
            with client.stream("POST", "/generate", json={**ask, "stream": True}) as answer:
                assert next(answer.iter_lines()) == "event: text"
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/generate", json=ask, timeout=0.2)
    wait_until(lambda: num_done(service, "abort") == before + 1, "the sequence was cancelled")
    assert not any(service.metric("sleb_num_requests_running").values())


def test_models_go_and_come_in_all_replicas(service: Service) -> None:
    def weights() -> list[bool]:
        found = service.metric("sleb_model_weight_bytes", model_name="tiny")
        return [num_bytes > 0 for num_bytes in found.values()]

    assert service.client.post("/models/tiny/unload").status_code == 204
    assert not any(weights())
    assert service.client.post("/models/tiny/load").is_success
    assert weights() == [True, True]
