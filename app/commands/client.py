"""What a program that talks to the job routes over HTTP needs; follows jobs over broken lines."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import quote

import httpx2

from app.config import ServeSettings
from pruning.jobs.job import JobStatus

ANSWER_S = 30.0
QUIET_S = 45.0  # a stream that has not even said that it is alive for so long is dead
FIRST_PAUSE_S = 0.5  # before connecting again; twice as long after every failure
LONGEST_PAUSE_S = 10.0
MAX_FAILURES = 10  # in a row, about a minute

_PASSING = (429, 502, 503, 504)
_NO_KEY = 401


class ServiceUnavailable(ConnectionError):
    """No service answers at the URL, or it cannot do what is asked now."""


class Refused(RuntimeError):
    """The service will not do what is asked; the message is its own, where it has one."""


class JobNotSucceeded(RuntimeError):
    """The job that was followed has failed, or was cancelled."""


class JobClient:
    """Jobs as the API describes them.

    Every method may raise ``ServiceUnavailable`` and ``Refused``.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url
        self._pause = threading.Event()
        with self._reaching():
            self._http = httpx2.Client(base_url=url, timeout=ANSWER_S, headers=authorization(key))

    def close(self) -> None:
        self._http.close()

    def list(self, limit: int, status: JobStatus | None = None) -> dict[str, Any]:
        """A page of jobs, the newest first."""
        given = {} if status is None else {"status": status.value}
        return self._request("GET", "/prune-jobs", {"limit": limit, **given})

    def get(self, job_id: str) -> dict[str, Any]:
        return self._request("GET", _path(job_id))

    def webhook_deliveries(self, job_id: str) -> Sequence[dict[str, Any]]:
        """Every attempt that is remembered, the oldest first."""
        found: list[dict[str, Any]] = self._request("GET", f"{_path(job_id)}/webhook-deliveries")[
            "data"
        ]
        return found

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._request("POST", f"{_path(job_id)}/cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        return self._request("POST", f"{_path(job_id)}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        return self._request("POST", f"{_path(job_id)}/resume")

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Every event, once and in order, until the job has ended.

        Once connected, it connects again whenever the line breaks, up to ``MAX_FAILURES`` times in
        a row.
        """
        last, failures = None, 0
        while True:
            before = last
            try:
                for event in self._stream(job_id, last):
                    last, failures = event["id"], 0
                    yield event
                    if _is_final(event["data"]["status"]):
                        return
                if last == before:
                    self._expect_more(job_id)
            except ServiceUnavailable:
                failures += 1
                if last is None or failures > MAX_FAILURES:
                    raise
            self._pause.wait(min(FIRST_PAUSE_S * 2**failures, LONGEST_PAUSE_S))

    def _expect_more(self, job_id: str) -> None:
        status = self.get(job_id)["status"]
        if _is_final(status):
            raise Refused(f"job {job_id} {status}, but the events of its end are not kept")

    def _stream(self, job_id: str, last: str | None) -> Iterator[dict[str, Any]]:
        headers = {} if last is None else {"Last-Event-ID": last}
        timeout = httpx2.Timeout(ANSWER_S, read=QUIET_S)
        path = f"{_path(job_id)}/events"
        with self._reaching(), self._http.sse(path, headers=headers, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
            self._expect_success(source.response)
            for event in source:
                if event.data:
                    yield self._object(event.json())

    def _request(
        self, method: str, path: str, params: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._reaching():
            response = self._http.request(method, path, params=params)
            self._expect_success(response)
            return self._object(response.json())

    def _expect_success(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        is_problem = response.headers.get("content-type") == "application/problem+json"
        detail = response.json()["detail"] if is_problem else response.reason_phrase
        if response.status_code == _NO_KEY:
            detail += "; commands take it from SLEB_API_KEY"
        answer = f"{self._url} answers {response.status_code}: {detail}"
        if response.status_code in _PASSING:
            raise ServiceUnavailable(answer)
        raise Refused(answer if detail == response.reason_phrase else detail)

    def _object(self, found: object) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise Refused(f"what answers at {self._url} is no service of this kind")
        return found

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ServiceUnavailable(
                f"no service answers at {self._url}: start one with `sleb up`, or say where it is "
                f"with --url ({error})"
            ) from error
        except ValueError as error:  # not even JSON
            raise Refused(f"what answers at {self._url} is no service of this kind") from error


def follow(client: JobClient, job_id: str, show: Callable[[dict[str, Any]], None]) -> None:
    """Show every event until the job has succeeded. Raises ``JobNotSucceeded`` if it does not."""
    for event in client.follow(job_id):
        show(event)
        status = event["data"]["status"]
        if _is_final(status) and status != JobStatus.SUCCEEDED:
            raise JobNotSucceeded(f"job {job_id} {status}: {event['message']}")


def authorization(key: str | None) -> dict[str, str]:
    """The header that a service with keys asks for."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def url_of(settings: ServeSettings) -> str:
    """Where a service with these settings can be reached from its own machine."""
    host = settings.host
    if not isinstance(host, str) and host.is_unspecified:
        return f"http://localhost:{settings.port}"
    name = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    return f"http://{name}:{settings.port}"


def _path(job_id: str) -> str:
    return f"/prune-jobs/{quote(job_id, safe='')}"


def _is_final(status: str) -> bool:
    return JobStatus(status).is_final
