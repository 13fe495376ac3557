"""The client that follows a job: lost connections, restarted services and interrupts."""

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from app.commands.client import (
    JobNotSucceeded,
    Refused,
    ServiceClient,
    ServiceUnavailable,
    follow,
    service_client,
    url_of,
)
from app.config import ServeSettings
from pruning.jobs import transitions
from pruning.jobs.events import EventFeed
from pruning.jobs.job import JobStatus, Phase
from pruning.jobs.keys import EVENTS
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.processes import environment, free_port, running
from tests.support.serving import serving


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(data_dir=tmp_path, drain_s=0)


@pytest.fixture
def url(settings: ServeSettings, redis_url: str, redis_client: redis.Redis) -> Iterator[str]:
    redis_client.ping()
    with serving(settings, redis_url) as (_, url):
        yield url


def test_a_url_needs_no_scheme(url: str) -> None:
    with service_client(url.removeprefix("http://")) as client:
        assert client.request("GET", "/version")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("cancelled: killed", "job prn-1 cancelled: killed"),
        ("cancelled", "job prn-1 cancelled"),
        ("cancel requested", "job prn-1 cancelled: cancel requested"),
    ],
)
def test_the_end_of_a_job_is_said_once(
    message: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"message": message, "data": {"status": "cancelled"}}
    monkeypatch.setattr(ServiceClient, "follow", lambda _client, _job_id: iter([event]))
    client = ServiceClient("http://127.0.0.1:9", None)
    with closing(client), pytest.raises(JobNotSucceeded) as ended:
        follow(client, "prn-1", lambda _event: None)
    assert str(ended.value) == said


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(PruneSpec("tiny", num_remove=1)).id


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://localhost:8000"),  # noqa: S104 - is not listened on here
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_url_comes_from_the_settings(tmp_path: Path, host: str, expected: str) -> None:
    settings = ServeSettings.model_validate({"data_dir": tmp_path, "host": host, "port": 8000})
    assert url_of(settings) == expected


def watching(
    data_dir: Path, url: str, job_id: str
) -> AbstractContextManager["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "app", "jobs", "watch", job_id, "--json", "--url", url]
    pipe = subprocess.PIPE
    return running(command, environment(data_dir), stdout=pipe, stderr=pipe, text=True)


def next_event(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    event: dict[str, Any] = json.loads(process.stdout.readline())
    return event


def test_ctrl_c_leaves_the_job_alone(
    tmp_path: Path, url: str, job_store: JobStore, job_id: str
) -> None:
    with watching(tmp_path, url, job_id) as process:
        assert next_event(process)["message"] == "job created"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
    assert "is still running" in err
    assert "Traceback" not in err
    assert job_store.get(job_id).status is JobStatus.QUEUED


def test_watching_survives_a_restart_of_the_service(
    settings: ServeSettings, redis_url: str, tmp_path: Path, job_store: JobStore, job_id: str
) -> None:
    port = free_port()
    with ExitStack() as stack:
        with serving(settings, redis_url, port) as (_, url):
            process = stack.enter_context(watching(tmp_path, url, job_id))
            seen = [next_event(process)["id"]]
            job_store.start(job_id, "worker-1")
            seen.append(next_event(process)["id"])
        job_store.record(job_id, transitions.phase_begun(Phase.SEARCH))
        with serving(settings, redis_url, port):
            seen.append(next_event(process)["id"])
            job_store.succeed(job_id, "tiny@x")
            out, _ = process.communicate(timeout=30)
    seen += [json.loads(line)["id"] for line in out.splitlines()]
    assert process.returncode == 0
    assert seen == [event.id for event in job_store.events(job_id)]


def test_a_service_that_stays_away_is_given_up(
    settings: ServeSettings, redis_url: str, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.client.MIN_PAUSE_S", 0.001)
    monkeypatch.setattr("app.commands.client.MAX_FAILURES", 2)
    with serving(settings, redis_url) as (_, url):
        client = ServiceClient(url)
        events = client.follow(job_id)
        assert next(events)["message"] == "job created"
    with pytest.raises(ServiceUnavailable, match="cannot connect to a service"):
        next(events)
    client.close()


def test_a_certificate_of_an_unknown_ca_is_said_to_be_not_trusted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def refused() -> None:
            with suppress(ssl.SSLError, OSError):
                context.wrap_socket(listener.accept()[0], server_side=True).close()

        pool.submit(refused)
        client = ServiceClient(f"https://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ServiceUnavailable, match="is not trusted: set SSL_CERT_FILE"):
            client.get("prn-1")
        client.close()


def test_a_job_that_is_deleted_meanwhile_is_not_waited_for(
    url: str, job_id: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.client.MIN_PAUSE_S", 0.001)
    client = ServiceClient(url)
    events = client.follow(job_id)
    next(events)
    redis_client.flushdb()
    with pytest.raises(Refused, match="not found: it was deleted"):
        next(events)
    client.close()


def test_an_end_whose_events_are_lost_is_told_from_one_to_come(
    url: str, job_store: JobStore, job_id: str, redis_client: redis.Redis
) -> None:
    job_store.cancel(job_id)
    redis_client.delete(EVENTS.format(id=job_id))
    client = ServiceClient(url)
    with pytest.raises(Refused, match="cancelled, but its last events have expired"):
        next(client.follow(job_id))
    client.close()


def test_a_service_with_too_many_watchers_says_so(
    url: str, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventFeed, "max_watchers", 0)
    client = ServiceClient(url)
    with pytest.raises(ServiceUnavailable, match="returned 429: too many clients"):
        next(client.follow(job_id))
    client.close()


def test_events_so_far_are_read_page_by_page(
    url: str, job_store: JobStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.client.EVENTS_PER_PAGE", 2)
    job_store.start(job_id, "worker-1")
    for phase in (Phase.LOAD, Phase.CALIBRATE, Phase.SEARCH):
        job_store.record(job_id, transitions.phase_begun(phase))
    with closing(ServiceClient(url)) as client:
        found = [event["id"] for event in client.events_so_far(job_id)]
    assert found == [event.id for event in job_store.events(job_id)]
    assert len(found) == 5
