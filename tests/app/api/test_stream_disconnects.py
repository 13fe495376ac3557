"""200 clients stream beside pruning jobs for three minutes, and most leave at a random moment.

Then no slot is taken, memory is as it was, and those who stayed have read what a client of the
quiet service reads.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random

import httpx2
import pytest

from tests.soak.duration import MAX_GROWTH_BYTES, growth
from tests.soak.jobs import JobsClient, jobs
from tests.soak.service import Service, running
from tests.soak.tally import Tally
from tests.support.generate_requests import events_in
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

NUM_CLIENTS = 200
DURATION_S = 180.0
STAYS = 0.3  # share of the requests whose client reads all
PROMPTS = ("the dog", "a quick brown fox", "the lazy cat", "one two three")
NUM_TOKENS = 40
SAMPLE_S = 0.5
REFUSED = (429, 503)  # while the queue is full


def ask(client: httpx2.Client, prompt: str, num_events: int | None = None) -> str | None:
    """The text of a stream, or None for one that was refused, or left after so many events."""
    shape = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    body = {"model": "tiny", "prompt": prompt, **shape}
    with client.sse("/generate", method="POST", json=body, timeout=120) as source:
        if source.response.status_code in REFUSED:
            return None
        assert source.response.status_code == 200
        if num_events is not None:
            for _ in zip(range(num_events), source, strict=False):
                pass
            return None
        *pieces, (name, end) = events_in(source)
        assert name == "done", name
        [output] = end["outputs"]
        text: str = output["text"]
        assert "".join(piece["text"] for _, piece in pieces) == text
        return text


def stream(service: Service, quiet: Mapping[str, str], counts: Counter[str]) -> list[int]:
    """Let all clients stream, and return samples of the memory of the API in bytes."""
    is_over, rss_bytes = threading.Event(), list[int]()

    def client(seed: int) -> None:
        random = Random(seed)
        with httpx2.Client(base_url=service.url) as http:
            while not is_over.wait(random.uniform(0, 0.5)):
                prompt, stays = random.choice(PROMPTS), random.random() < STAYS
                text = ask(http, prompt, None if stays else random.randrange(NUM_TOKENS // 4))
                counts["refused" if text is None and stays else "stayed" if stays else "left"] += 1
                assert text in (None, quiet[prompt])

    with ThreadPoolExecutor(NUM_CLIENTS) as threads:
        clients = [threads.submit(client, seed) for seed in range(NUM_CLIENTS)]
        began_s = time.monotonic()
        while time.monotonic() - began_s < DURATION_S and not any(map(_has_failed, clients)):
            is_over.wait(SAMPLE_S)
            rss_bytes.append(service.rss_bytes)
        is_over.set()
    for each in clients:
        each.result()
    return rss_bytes


def _has_failed(client: Future[None]) -> bool:
    return client.done()


@pytest.mark.slow
@pytest.mark.timeout(DURATION_S + 900)
def test_clients_that_leave_take_nothing_with_them(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "models" / "tiny")
    tally, counts = Tally(), Counter[str]()
    with running(tmp_path) as service, closing(JobsClient(service, tally)) as job_client:
        with httpx2.Client(base_url=service.url) as http:
            quiet = {prompt: ask(http, prompt) or "" for prompt in PROMPTS}
        tasks = service.tasks()
        with jobs(job_client, tally):
            rss_bytes = stream(service, quiet, counts)
        job_client.wait_for_all()
        job_client.check_all()
        job_client.close()
        print(counts, len(job_client.accepted), [round(each / 2**20) for each in growth(rss_bytes)])  # noqa: T201
        assert not tally.failures
        assert min(counts["stayed"], counts["left"]) > NUM_CLIENTS
        wait_until(lambda: not service.taken(), f"no slot is taken: {service.taken()}")
        service.check_health()
        wait_until(lambda: len(service.tasks()) <= len(tasks), "all tasks have ended")
        wait_until(lambda: not service.num_clients(), "all connections are closed")
        first, last = growth(rss_bytes)
        assert last - first < MAX_GROWTH_BYTES
