"""Twenty clients that submit at once, every request twice, while another pages through the list."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx2
import pytest

from app.config import ServeSettings
from tests.support.prune_requests import JOB
from tests.support.serving import serving

NUM_CLIENTS = 20
NUM_JOBS = 60  # the walks of a list take the square of it


@pytest.fixture
def url(settings: ServeSettings, redis_url: str) -> Iterator[str]:
    enough = settings.model_copy(update={"max_queued_jobs": NUM_JOBS})
    with serving(enough, redis_url) as (_, url):
        yield url


class Submissions:
    """What the clients were told: the job of every key, in the order of the answers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[tuple[str, str]] = []

    def submit(self, keys: list[str]) -> None:
        """All of them, as one client."""
        with httpx2.Client(base_url=self._url) as client:
            for key in keys:
                headers = {"Idempotency-Key": key}
                answer = client.post("/prune-jobs", json=JOB, headers=headers)
                while answer.status_code == 409:
                    assert answer.json()["type"].endswith("idempotency-in-flight")
                    answer = client.post("/prune-jobs", json=JOB, headers=headers)
                assert answer.status_code == 202, answer.text
                self.answers.append((key, answer.json()["id"]))


def walk(client: httpx2.Client, limit: int) -> list[dict[str, Any]]:
    """The whole list, page by page."""
    found: list[dict[str, Any]] = []
    has_more = True
    while has_more:
        behind = {"after": found[-1]["id"]} if found else {}
        page = client.get("/prune-jobs", params={"limit": limit, **behind}).json()
        assert len(page["data"]) == limit or not page["has_more"]
        found += page["data"]
        has_more = page["has_more"]
    return found


def check(found: list[dict[str, Any]], known: list[tuple[str, str]]) -> None:
    """Every job once, the newest first, and none of those missing that were known before."""
    ids = [job["id"] for job in found]
    assert len(set(ids)) == len(ids)
    created = [job["created_at"] for job in found]
    assert created == sorted(created, reverse=True)
    assert {job_id for _, job_id in known} <= set(ids)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_key_makes_one_job_and_the_list_stays_right(url: str) -> None:
    keys = [f"key-{number}" for number in range(NUM_JOBS)] * 2
    Random(0).shuffle(keys)
    submissions = Submissions(url)
    is_over = threading.Event()

    def page_through() -> int:
        num_walks = 0
        with httpx2.Client(base_url=url) as client:
            while not is_over.is_set():
                known = list(submissions.answers)
                check(walk(client, limit=5), known)
                num_walks += 1
        return num_walks

    with ThreadPoolExecutor(NUM_CLIENTS + 1) as threads:
        pager = threads.submit(page_through)
        try:
            shares = [keys[client::NUM_CLIENTS] for client in range(NUM_CLIENTS)]
            list(threads.map(submissions.submit, shares))
        finally:
            is_over.set()
        assert pager.result() > 0
    made = dict(submissions.answers)
    assert len(submissions.answers) == 2 * NUM_JOBS
    assert len(set(submissions.answers)) == len(set(made.values())) == NUM_JOBS
    with httpx2.Client(base_url=url) as client:
        found = walk(client, limit=100)
    check(found, submissions.answers)
    assert len(found) == NUM_JOBS
