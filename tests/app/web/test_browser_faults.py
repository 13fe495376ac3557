"""The pages while something goes wrong: workers that die, a store that is gone, hostile text."""

import os
import signal
from pathlib import Path

import pytest
import redis

from app.config import ServeSettings
from app.results.store import FOLDER, ResultKind, ResultStore
from pruning.jobs import transitions
from pruning.jobs.job import JobError, JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.browser import browser, browser_page, page_of
from tests.support.job_lives import messages, succeed
from tests.support.serving import serving
from tests.support.valkey_server import running_valkey
from tests.support.worker_fixtures import Workers
from tests.support.worker_process import HOLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPEC = PruneSpec("tiny", num_remove=2)
HOSTILE = (
    "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>",
    "\u202eright to left\u202c\u200bzero\u200dwidth\ufeff",
    "{{7*7}}${7*7}javascript:document.title='hit'",
)
LONG = "x" * 1_000_000


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0)


def test_hostile_text_is_shown_as_text(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    results = ResultStore(settings.data_dir)
    job = job_store.create(SPEC)
    job_store.start(job.id, HOSTILE[1])
    for text in (*HOSTILE, LONG):
        job_store.record(job.id, transitions.warned(text))
        results.keep(ResultKind.STABILITY, text[:5000], text, {})
    job_store.fail(job.id, JobError("x", HOSTILE[0], HOSTILE[2]))
    broken = settings.data_dir / FOLDER / "20200101T000000Z-bench-000000.json"
    broken.write_bytes(b'{"kind": "bench", "model": "\xff\xfe"}')
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto(f"/ui/jobs/{job.id}")
        page.locator("#events li").nth(4).wait_for()
        page.get_by_text("more characters]").wait_for()
        found = page.locator("main").text_content() or ""
        assert all(text in found for text in HOSTILE)
        page.goto("/ui/results")
        page.locator("#list tbody tr").nth(3).wait_for()
        found = page.locator("#list").text_content() or ""
        assert all(text in found for text in HOSTILE)
        assert page.locator("#list tbody tr").count() == len(HOSTILE) + 1
        page.goto("/ui/jobs")
        page.get_by_title(job.id).wait_for()
        assert page.locator("main img, main script").count() == 0
        assert page.title() != "hit"
        assert (watched.complaints, watched.foreign) == ([], [])


def test_numbers_are_shown_where_the_library_of_plots_cannot_be_loaded(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    job = job_store.create(SPEC).id
    succeed(job_store, job)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True
        page.route("**/uplot.js", lambda route: route.abort())
        page.goto(f"/ui/jobs/{job}")
        page.locator("#rounds tbody tr").wait_for()
        page.get_by_text("The plot cannot be loaded").nth(1).wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_job_is_followed_past_a_dead_worker_then_paused_and_cancelled_in_two_tabs(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    job_store: JobStore,
    workers: Workers,
) -> None:
    job = job_store.create(SPEC)
    PruneQueue(redis_client, task=HOLD).enqueue(job.id)
    first = workers.start()
    with serving(settings, redis_url) as (_, url), browser() as visitor:
        page, watched = page_of(visitor, url)
        page.goto(f"/ui/jobs/{job.id}")
        page.get_by_text("attempt 1").wait_for()
        [child] = workers.wait_for_children(1)
        first.kill()
        os.kill(child, signal.SIGKILL)
        workers.start()
        page.get_by_text("attempt 2").wait_for()

        other = page.context.new_page()
        other.goto(f"/ui/jobs/{job.id}")
        other.get_by_role("button", name="Pause").click()
        for tab in (page, other):
            tab.locator(".status", has_text="paused").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Keep it").click()
        assert job_store.get(job.id).status is JobStatus.PAUSED
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel the job").click()
        for tab in (page, other):
            tab.locator(".status", has_text="cancelled").wait_for()
            tab.get_by_role("button", name="Delete").wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_page_says_that_the_store_is_gone_and_goes_on_when_it_is_back(
    settings: ServeSettings,
) -> None:
    with running_valkey("--appendonly", "yes") as server:
        with redis.Redis.from_url(server.url) as client:
            job = JobStore(client).create(SPEC)
        with serving(settings, server.url) as (_, url), browser_page(url) as (page, watched):
            page.goto(f"/ui/jobs/{job.id}")
            page.locator(".status", has_text="queued").wait_for()
            watched.may_fail = True
            server.process.terminate()
            server.process.wait()
            page.locator("#stale").wait_for()
            other = page.context.new_page()
            other.goto("/ui/curve?model=tiny")
            other.get_by_role("alert").get_by_text("The job store is unavailable").wait_for()
            other.get_by_role("button", name="Try again").click()
            other.get_by_role("button", name="Try again").wait_for()
            with server.start() as again:
                try:
                    server.wait_until_it_answers()
                    other.get_by_role("button", name="Try again").click()
                    other.get_by_text("No job has measured this model yet").wait_for()
                    assert other.get_by_role("alert").inner_text() == ""
                    other.close()
                    page.locator("#stale").wait_for(state="hidden")
                    page.get_by_role("button", name="Pause").click()
                    page.locator(".status", has_text="paused").wait_for()
                    with redis.Redis.from_url(server.url) as client:
                        assert JobStore(client).get(job.id).status is JobStatus.PAUSED
                        written = messages(JobStore(client), job.id)
                    shown = page.locator("#events .text")
                    shown.nth(len(written) - 1).wait_for()
                    assert shown.all_inner_texts()[::-1] == written
                finally:
                    again.terminate()
            assert watched.complaints == []
