"""What pages look like besides having data, against the rules of axe-core: nothing there yet, a
question, an error, old data, outputs that differ, a sign-in."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from pruning.jobs import transitions
from pruning.jobs.job import JobError, Phase
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.accessibility import faults
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser, page_of
from tests.support.job_lives import succeed
from tests.support.serving import serving
from tests.support.valkey_server import running_valkey
from tests.support.vllm_program import write_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPEC = PruneSpec("tiny", num_remove=2)


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0)


@pytest.fixture(scope="module")
def visitor() -> Iterator["Browser"]:
    with browser() as launched:
        yield launched


class Look:
    """Looks at states of one page, and remembers what is wrong with each."""

    def __init__(self, visitor: "Browser", url: str) -> None:
        self.page, self.watched = page_of(visitor, url)
        self.watched.may_fail = True  # states of errors are some of those looked at
        self.found: list[tuple[object, ...]] = []

    def at(self, path: str, words: str) -> None:
        """Look at the page when it shows these words."""
        self.page.goto(path)
        self.page.locator("[aria-busy=true]").first.wait_for(state="detached")
        self.page.locator("main").get_by_text(words).first.wait_for()
        self.now(path)

    def at_first(self, path: str, words: str, step: str) -> None:
        """Look at a page without data, which has to show the first step: a command, or a link."""
        self.at(path, words)
        steps = self.page.locator(".empty pre, .empty a").all_inner_texts()
        assert any(step in each for each in steps), (path, steps)

    def now(self, state: str) -> None:
        assert (self.watched.complaints, self.watched.foreign) == ([], []), state
        self.found += [(state, *fault) for fault in faults(self.page)]
        self.watched.complaints.clear()  # of axe itself, which is no part of the page


def test_pages_without_data_break_no_rule(
    tmp_path: Path, visitor: "Browser", redis_url: str, redis_client: redis.Redis
) -> None:
    assert redis_client.keys("sleb:job*") == []
    settings = ServeSettings(data_dir=tmp_path, drain_s=0)
    with serving(settings, redis_url) as (_, url):
        look = Look(visitor, url)
        for path in ("/ui", "/ui/jobs/new", "/ui/curve", "/ui/compare"):
            look.at_first(path, "No models yet", "sleb models add")
        look.at_first("/ui/jobs", "No jobs yet", "Submit the first job")
        look.at("/ui/jobs?status=failed", "No job has this status")
        look.at_first("/ui/results", "No results yet", "sleb bench")
    assert look.found == []


def test_a_model_without_a_job_breaks_no_rule(
    settings: ServeSettings, visitor: "Browser", redis_url: str, redis_client: redis.Redis
) -> None:
    assert redis_client.keys("sleb:job*") == []
    with serving(settings, redis_url) as (_, url):
        look = Look(visitor, url)
        look.at_first("/ui/curve?model=tiny", "No job has measured this model", "Submit a job")
    assert look.found == []


def test_questions_and_errors_break_no_rule(
    settings: ServeSettings, visitor: "Browser", redis_url: str, job_store: JobStore
) -> None:
    running, failed = [job_store.create(SPEC).id for _ in range(2)]
    for job_id in (running, failed):
        job_store.start(job_id, "worker-1")
        job_store.record(job_id, transitions.phase_begun(Phase.SEARCH))
    job_store.fail(failed, JobError("out_of_memory", "too large", "calibration.seqlen"))
    with serving(settings, redis_url) as (_, url):
        look = Look(visitor, url)
        for job_id, verb in ((running, "Cancel"), (failed, "Delete")):
            look.page.goto(f"/ui/jobs/{job_id}")
            look.page.get_by_role("button", name=verb).click()
            look.page.get_by_role("dialog", name=f"{verb} this job?").wait_for()
            look.now(f"the question of {verb}")
        look.at("/ui/jobs/none", "Job not found")
        look.at("/ui/results/none", "Result not found")
        fill_wrongly(look.page)
        look.now("a form that is refused")
    assert look.found == []


def fill_wrongly(page: "Page") -> None:
    """A form with several texts, each with an error, and a summary of them."""
    page.goto("/ui/jobs/new?model=tiny")
    page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
    page.locator("#advanced > summary").click()
    page.locator("[id='calibration.dataset']").select_option("mix")
    page.locator("#heal").check()
    page.locator("#num_remove").fill("5")
    page.locator("[id='calibration.1.weight']").fill("0")
    page.get_by_role("button", name="Submit the job").click()
    page.locator("#alert .banner").wait_for()
    page.locator("[aria-invalid=true]").first.wait_for()
    page.locator("#estimate .error").wait_for()


def test_outputs_verdicts_and_choices_break_no_rule(
    settings: ServeSettings, visitor: "Browser", redis_url: str, job_store: JobStore
) -> None:
    job = job_store.create(SPEC).id
    publish_pruned(settings.data_dir, 2, job=job)
    succeed(job_store, job, f"tiny@{job}")
    shutil.copytree(settings.models_dir / "tiny", settings.models_dir / "zoo")
    with serving(settings, redis_url) as (_, url):
        look = Look(visitor, url)
        query = "model=tiny&model=tiny@-2&prompt=the%20dog&prompt=a%20fox&max_new_tokens=8"
        look.page.goto(f"/ui/compare?{query}")
        look.page.get_by_role("button", name="Generate").click()
        look.page.locator("#outputs .facts").nth(3).wait_for()
        look.page.locator("#outputs mark").first.wait_for()
        look.page.get_by_role("button", name="Compare speed").click()
        look.page.locator("#result table").wait_for()
        look.page.locator("#result li").first.wait_for()
        look.now("outputs that differ, and a verdict")

        look.page.goto("/ui/compare?model=tiny&model=tiny@-2&prompt=x&max_new_tokens=100000")
        look.page.get_by_role("button", name="Generate").click()
        look.page.locator("#outputs .error").nth(1).wait_for()
        look.now("outputs that are refused")

        look.page.goto("/ui/curve?model=tiny")
        look.page.locator("#rows [data-key]").first.click()
        look.page.get_by_role("button", name="Measure speed").click()
        look.page.get_by_text("outputs of 32 tokens").wait_for()
        look.now("a choice on the curve, by measured speed")

        look.page.goto("/docs")
        look.page.get_by_role("searchbox").fill("heal")
        look.page.locator("summary:visible").first.click()
        look.now("a route that was searched and opened")
    assert look.found == []


def test_a_sign_in_and_its_session_break_no_rule(
    settings: ServeSettings, visitor: "Browser", redis_url: str
) -> None:
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    with serving(settings, redis_url) as (_, url):
        look = Look(visitor, url)
        look.at("/ui/jobs", "This service requires an API key")
        look.page.get_by_label("API key").fill("sleb_wrong")
        look.page.get_by_role("button", name="Sign in").click()
        look.page.get_by_role("alert").get_by_text("This key is unknown or has expired").wait_for()
        look.now("a key that is refused")
        look.page.get_by_label("API key").fill(key)
        look.page.get_by_role("button", name="Sign in").click()
        look.page.get_by_text("reader (jobs)").wait_for()
        for path in ("/ui", "/ui/compare"):
            look.page.goto(path)
            look.page.get_by_text("reader (jobs)").wait_for()
            look.now(f"{path} for somebody who may not do all")
    assert look.found == []


def test_old_data_and_a_store_that_is_gone_break_no_rule(
    settings: ServeSettings, visitor: "Browser"
) -> None:
    with running_valkey() as store, redis.Redis.from_url(store.url) as client:
        job = JobStore(client).create(SPEC).id
        with serving(settings, store.url) as (server, url):
            look = Look(visitor, url)
            look.page.goto(f"/ui/jobs/{job}")
            look.page.locator(".status", has_text="queued").wait_for()
            store.process.terminate()
            store.process.wait()
            look.page.locator("#stale").wait_for()
            look.now("a job whose store is gone")
            look.at("/ui", "unavailable")
            look.at("/ui/curve?model=tiny", "The job store is unavailable")
            look.page.goto("/ui")
            look.page.get_by_role("button", name="Unload tiny").wait_for()
            server.should_exit = True
            look.page.get_by_text("Last updated").wait_for()
            look.now("a page whose service is gone")
    assert look.found == []


def test_what_vllm_does_for_a_model_is_shown(
    settings: ServeSettings, tmp_path: Path, visitor: "Browser", redis_url: str
) -> None:
    program = write_program(tmp_path / "program")
    for arguments, words in (
        ("", "vLLM: ready"),
        ("--test-refuse 'no kernel'", "vLLM: failed"),
    ):
        changes = {"engine": "vllm", "vllm": program, "vllm_args": arguments}
        with serving(settings.model_copy(update=changes), redis_url) as (_, url):
            look = Look(visitor, url)
            look.at("/ui", words)
            assert not look.found
