"""A client that submits jobs, cancels some, and checks the outcome of every accepted job."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import httpx2

from tests.soak.service import Service
from tests.soak.tally import Tally
from tests.support.waiting import wait_until

_MAX_OPEN = 2
_POLL_S = 0.25
_CANCELLED_EVERY = 4
_FINISH_TIMEOUT_S = 300.0  # for open jobs after the end of the traffic
_AWAY = "503, Redis away"


class JobsClient:
    """Used from one thread. ``accepted`` has the expected final status of every accepted job."""

    def __init__(self, service: Service, tally: Tally) -> None:
        self._service = service
        self._tally = tally
        self._client = httpx2.Client(base_url=service.url)
        self._numbers = count()
        self.accepted: dict[str, str] = {}
        self._open: set[str] = set()

    def submit(self) -> str:
        """Submit a job, retried with the same idempotency key until it is accepted."""
        number = next(self._numbers)
        calibration = {"dataset": "self", "num_samples": 16, "seqlen": 32, "seed": number}
        body = {"model": "tiny", "num_remove": 2, "evaluate": False, "calibration": calibration}
        headers = {"Idempotency-Key": f"soak-{number}"}
        answer = self._request("submit", "POST", "/prune-jobs", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        self.accepted[job_id] = "succeeded"
        self._open.add(job_id)
        if number % _CANCELLED_EVERY == _CANCELLED_EVERY - 1:
            self._cancel(job_id)
        return job_id

    def _cancel(self, job_id: str) -> None:
        answer = self._request("cancel", "POST", f"/prune-jobs/{job_id}/cancel")
        assert answer.status_code in (200, 202, 409), answer.text
        if answer.status_code != 409:  # 409: it has succeeded already
            self.accepted[job_id] = "cancelled"

    @property
    def num_open(self) -> int:
        return len(self._open)

    def refresh(self) -> None:
        """Forget the open jobs that have ended."""
        for job_id in sorted(self._open):
            if self.job(job_id)["finished_at"]:
                self._open.remove(job_id)

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self._request("look at jobs", "GET", f"/prune-jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def wait_for_all(self) -> None:
        def is_done() -> bool:
            self.refresh()
            return not self._open

        wait_until(is_done, "all accepted jobs have ended", _FINISH_TIMEOUT_S)

    def check_all(self) -> None:
        """Check that each job has its expected status, and that the list has exactly these jobs."""
        for job_id, expected in self.accepted.items():
            job = self.job(job_id)
            if job["status"] != expected:
                self._tally.failed(f"{job_id} is {job['status']}: {job['error']}")
        listed = self._listed()
        if sorted(listed) != sorted(self.accepted):
            self._tally.failed(f"listed {sorted(listed)}, accepted {sorted(self.accepted)}")

    def _listed(self) -> list[str]:
        found: list[str] = []
        has_more = True
        while has_more:
            behind = {"after": found[-1]} if found else {}
            page = self._client.get("/prune-jobs", params={"limit": 100, **behind}).json()
            found += [job["id"] for job in page["data"]]
            has_more = page["has_more"]
        return found

    def _request(self, kind: str, method: str, path: str, **rest: Any) -> httpx2.Response:
        """Send a request, repeated while Redis is away."""
        while True:
            began_s = time.monotonic()
            answer = self._client.request(method, path, **rest)
            is_away = answer.status_code == 503 and self._service.may_lack_store(began_s)
            outcome = _AWAY if is_away else str(answer.status_code)
            self._tally.add(kind, outcome, time.monotonic() - began_s)
            if not is_away:
                return answer
            threading.Event().wait(_POLL_S)

    def close(self) -> None:
        self._client.close()


@contextmanager
def jobs(client: JobsClient, tally: Tally) -> Iterator[None]:
    """Keep a few jobs open until the end of the block."""
    stopped = threading.Event()

    def run() -> None:
        try:
            while not stopped.wait(_POLL_S):
                client.refresh()
                if client.num_open < _MAX_OPEN:
                    client.submit()
        except (AssertionError, httpx2.TransportError) as error:
            tally.failed(f"jobs: {type(error).__name__} {error}")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run)
        try:
            yield
        finally:
            stopped.set()
    running.result()
