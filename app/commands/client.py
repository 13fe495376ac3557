"""A client of a running service, which reconnects while it follows a job."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import quote

import httpx2

from app.config import ServeSettings, serve_settings
from pruning.jobs.job import JobStatus

RESPONSE_TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 45.0  # without any data; the service sends keep-alives more often
MIN_PAUSE_S = 0.5  # before a reconnection; doubles with every failure
MAX_PAUSE_S = 10.0
MAX_FAILURES = 10  # in a row, about a minute
EVENTS_PER_PAGE = 100  # what the service allows

_TEMPORARY = (429, 502, 503, 504)
_UNAUTHORIZED = 401
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word, in the text of the error


class ServiceUnavailable(ConnectionError):
    """The service cannot be reached, or cannot handle the request now."""


class Refused(RuntimeError):
    """The service refuses the request. The message is that of the service, if it has one."""


class JobNotSucceeded(RuntimeError):
    """The followed job failed or was cancelled."""


class ServiceClient:
    """Requests to a running service; jobs are in the JSON form of its API.

    Every method may raise ``ServiceUnavailable`` and ``Refused``.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url
        self._pause = threading.Event()
        with self._connection_errors():
            self._http = httpx2.Client(
                base_url=url, timeout=RESPONSE_TIMEOUT_S, headers=authorization(key)
            )

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
        timeout_s: float = RESPONSE_TIMEOUT_S,
    ) -> dict[str, Any]:
        """The object of the response; an empty one if it has no body."""
        with self._connection_errors():
            response = self._http.request(method, path, params=params, json=body, timeout=timeout_s)
            self._check_success(response)
            return self._object(response.json()) if response.content else {}

    def events(
        self,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> Iterator[str]:
        """The data of each server-sent event, by POST if there is a body."""
        timeout = httpx2.Timeout(RESPONSE_TIMEOUT_S, read=timeout_s)
        method = "GET" if body is None else "POST"
        with (
            self._connection_errors(),
            self._http.sse(
                path, method=method, json=body, headers=headers, timeout=timeout
            ) as source,
        ):
            if not source.response.is_success:
                source.response.read()
            self._check_success(source.response)
            yield from (event.data for event in source if event.data)

    def work(
        self,
        path: str,
        body: dict[str, Any],
        observe: Callable[[int, int], object],
        timeout_s: float,
    ) -> dict[str, Any]:
        """The result of a request that streams its progress, which calls ``observe(done, total)``.

        ``timeout_s`` is the longest time without any data.
        """
        result: dict[str, Any] | None = None
        for data in self.events(path, body={**body, "stream": True}, timeout_s=timeout_s):
            with self._connection_errors():
                event = self._object(json.loads(data))
            if "object" not in event:  # a problem document
                kind = ServiceUnavailable if event["status"] in _TEMPORARY else Refused
                raise kind(event.get("detail", event["title"]))
            if event["object"].endswith(".progress"):
                observe(event["done"], event["total"])
            else:
                result = event
        if result is None:
            raise ServiceUnavailable(f"{self._url} ended the stream without a result: try again")
        return result

    def get(self, job_id: str) -> dict[str, Any]:
        return self.request("GET", job_path(job_id))

    def events_so_far(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The stored events, oldest first."""
        after: dict[str, str] = {}
        has_more = True
        while has_more:
            params = {"limit": EVENTS_PER_PAGE, **after}
            page = self.request("GET", f"{job_path(job_id)}/events", params=params)
            yield from page["data"]
            has_more = page["has_more"]
            after = {"after": page["data"][-1]["id"]} if has_more else {}

    def change(
        self, job_id: str, verb: str, settings: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """``cancel``, ``pause``, ``resume`` or ``retry``, which takes settings of the job."""
        return self.request("POST", f"{job_path(job_id)}/{verb}", body=settings)

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Every event, once and in order, until the job has ended.

        The service ends the stream then. Earlier events may have ended the job as well, before it
        was retried. After the first event, a lost connection is opened again, up to
        ``MAX_FAILURES`` times in a row.
        """
        last, failures, has_ended = None, 0, False
        while True:
            before = last
            try:
                for event in self._stream(job_id, last):
                    last, failures = event["id"], 0
                    has_ended = _is_final(event["data"]["status"])
                    yield event
                if has_ended:
                    return
                if last == before:
                    self._check_unfinished(job_id)
            except ServiceUnavailable:
                failures += 1
                if last is None or failures > MAX_FAILURES:
                    raise
            self._pause.wait(min(MIN_PAUSE_S * 2**failures, MAX_PAUSE_S))

    def _check_unfinished(self, job_id: str) -> None:
        status = self.get(job_id)["status"]
        if _is_final(status):
            raise Refused(f"job {job_id} {status}, but its last events have expired")

    def _stream(self, job_id: str, last: str | None) -> Iterator[dict[str, Any]]:
        headers = {} if last is None else {"Last-Event-ID": last}
        for data in self.events(f"{job_path(job_id)}/events", headers=headers):
            with self._connection_errors():
                event = self._object(json.loads(data))
            yield event

    def _check_success(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        detail = _detail(response)
        if response.status_code == _UNAUTHORIZED:
            detail += "; set SLEB_API_KEY to a valid API key"
        message = f"{self._url} returned {response.status_code}: {detail}"
        if response.status_code in _TEMPORARY:
            raise ServiceUnavailable(message)
        raise Refused(message if detail == response.reason_phrase else detail)

    def _object(self, content: object) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise Refused(f"{self._url} is not a sleb-serve service: check --url")
        return content

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        """Raise errors of the connection as ``ServiceUnavailable`` or ``Refused``."""
        try:
            yield
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            if _UNTRUSTED in str(error):
                raise ServiceUnavailable(
                    f"the certificate of {self._url} is not trusted: set SSL_CERT_FILE to the file "
                    f"of its CA certificate ({error})"
                ) from error
            raise ServiceUnavailable(
                f"cannot connect to a service at {self._url}: start one with `sleb up`, or set "
                f"--url ({error})"
            ) from error
        except ValueError as error:  # not JSON
            raise Refused(f"{self._url} is not a sleb-serve service: check --url") from error


def _detail(response: httpx2.Response) -> str:
    """What a problem document or OpenAI's envelope says, or else the reason phrase."""
    kind = response.headers.get("content-type")
    if kind == "application/problem+json":
        return str(response.json()["detail"])
    if kind == "application/json" and isinstance(body := response.json(), dict):
        return str(body.get("error", {}).get("message", response.reason_phrase))
    return response.reason_phrase


def follow(client: ServiceClient, job_id: str, show: Callable[[dict[str, Any]], None]) -> None:
    """Pass every event to ``show`` until the job ends. Raises ``JobNotSucceeded``."""
    status, message = "", ""
    for event in client.follow(job_id):
        show(event)
        status, message = event["data"]["status"], event["message"]
    if status != JobStatus.SUCCEEDED:
        reason = message.removeprefix(status).removeprefix(": ")
        raise JobNotSucceeded(f"job {job_id} {status}{reason and f': {reason}'}")


@contextmanager
def service_client(url: str | None) -> Iterator[ServiceClient]:
    """A client of the service at the URL, or of that in the settings, until the context ends.

    A URL without a scheme means http.
    """
    settings = serve_settings()
    url = url_of(settings) if url is None else url if "://" in url else f"http://{url}"
    client = ServiceClient(url, settings.api_key)
    try:
        yield client
    finally:
        client.close()


def authorization(key: str | None) -> dict[str, str]:
    """The header that a service with keys requires."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def url_of(settings: ServeSettings) -> str:
    """The URL of a service with these settings, for clients on its own machine."""
    host = settings.host
    scheme = "http" if settings.tls_cert is None else "https"
    if not isinstance(host, str) and host.is_unspecified:
        return f"{scheme}://localhost:{settings.port}"
    name = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    return f"{scheme}://{name}:{settings.port}"


def job_path(job_id: str) -> str:
    return f"/prune-jobs/{quote(job_id, safe='')}"


def _is_final(status: str) -> bool:
    return JobStatus(status).is_final
