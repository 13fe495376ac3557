"""The pages in a browser, over a real service with a worker: what a visitor sees and does."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from tests.support.browser import browser_page
from tests.support.processes import sleb_up
from tests.support.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEAL = {"num_tokens": 640, "batch_tokens": 64, "steps_per_check": 5}
HOSTILE = "<img src=x onerror=\"document.title='hit'\">\u202e\u200b the dog"


@pytest.fixture
def url(data_dir: Path) -> Iterator[str]:
    with sleb_up(data_dir) as url:
        yield url


def wait_for_success(page: "Page") -> None:
    """Of the job on the page. Another end fails the test with what the page says about it."""
    status = page.locator(".status", has_text=re.compile("succeeded|failed|cancelled"))
    status.wait_for(timeout=300_000)
    assert "succeeded" in str(status.text_content()), page.locator("main").inner_text()


def heal(page: "Page") -> None:
    """From the page of a job that has pruned to the end of one that heals what it published."""
    page.get_by_role("link", name="Heal", exact=True).click()

    page.get_by_text("Training in memory").wait_for()
    page.locator("#advanced > summary").click()
    for field, value in HEAL.items():
        page.locator(f"[id='heal.{field}']").fill(str(value))
    page.locator("#estimate").get_by_text("640, and 640 for the control").wait_for()
    assert '"heal":{"num_tokens":640,' in str(page.locator("#curl").text_content())
    page.get_by_role("button", name="Submit the job").click()
    wait_for_success(page)
    page.locator("#healed tbody tr").nth(2).wait_for()
    legend = page.locator("#healing-plot .u-legend")
    for line in ("healed, held-out text", "healed, in training"):
        legend.get_by_text(line).wait_for()
    assert legend.get_by_text("control").count() == 0  # it had nothing to learn


def test_a_visitor_prunes_a_model_reads_its_curve_and_compares(url: str) -> None:
    with browser_page(url) as (page, watched):
        page.goto("/")
        page.get_by_text("accepts requests").wait_for()
        page.get_by_role("button", name="Unload tiny").wait_for()

        page.goto("/ui/jobs/new?model=tiny")
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        page.locator("#advanced > summary").click()
        watched.may_fail = True  # the estimate is refused
        page.locator("[id='calibration.seqlen']").fill("100000")
        page.locator("#num_remove").fill("2")
        page.get_by_text("context length of tiny, 256 tokens").first.wait_for()
        page.locator("[id='calibration.seqlen']").fill("16")
        page.locator("[id='calibration.num_samples']").fill("4")
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        watched.may_fail = False
        assert '"seqlen":16' in str(page.locator("#curl").text_content())
        page.get_by_role("button", name="Submit the job").click()

        wait_for_success(page)
        page.locator("#rounds tbody tr").nth(1).wait_for()
        page.get_by_text("removed block").first.wait_for()
        assert page.locator("#trajectory li.gone").count() == 2
        for line in ("all text", "prose", "code"):
            page.locator("#losses .u-legend").get_by_text(line).wait_for()
        heal(page)
        page.get_by_role("link", name="Show the curve").click()

        page.locator("#rows tbody tr").nth(2).wait_for()
        page.locator("#plot .u-legend").get_by_text("healed").wait_for()
        with page.expect_download() as downloading:
            page.get_by_role("button", name="Save as CSV").click()
        rows = list(csv.DictReader(Path(downloading.value.path()).read_text().splitlines()))
        found = {(row["removed"], row["repair"] == "healed") for row in rows}
        assert found == {(depth, is_healed) for depth in "12" for is_healed in (False, True)}

        query = [
            ("model", "tiny"),
            ("model", "tiny@-2"),
            ("prompt", HOSTILE),
            ("prompt", "the dog"),
        ]
        page.goto(f"/ui/compare?{urlencode([*query, ('max_new_tokens', '8')])}")
        page.get_by_role("button", name="Generate").click()
        page.locator("#outputs .facts").nth(3).wait_for()
        assert HOSTILE in page.locator("#outputs").inner_text()
        assert page.title() != "hit"
        assert page.locator("main img").count() == 0
        page.get_by_role("button", name="Compare speed").click()
        page.locator("#result table").wait_for()

        page.goto("/docs")
        page.get_by_text("/prune-jobs", exact=True).first.wait_for()
        assert page.evaluate("() => localStorage.length") == 0
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_page_says_that_it_is_old_and_recovers(data_dir: Path, redis_url: str) -> None:
    settings = ServeSettings(data_dir=data_dir, drain_s=0)
    with serving(settings, redis_url) as (server, url), browser_page(url) as (page, watched):
        page.goto("/ui")
        page.get_by_role("button", name="Unload tiny").wait_for()
        watched.may_fail = True
        server.should_exit = True
        page.get_by_text("Last updated").wait_for()
        port = int(url.rpartition(":")[2])
        with serving(settings, redis_url, port):
            page.locator("#stale").wait_for(state="hidden")
        assert watched.complaints == []


def test_a_key_is_exchanged_for_a_session_that_ends_with_it(data_dir: Path, redis_url: str) -> None:
    settings = ServeSettings(data_dir=data_dir, drain_s=0)
    keys = KeyFile(settings.keys_file)
    key = keys.create("reader", [Scope.JOBS])
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True  # requests are refused before the sign-in
        page.goto("/ui/jobs?status=failed")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("No job has this status").wait_for()
        page.get_by_text("reader (jobs)").wait_for()
        assert "status=failed" in page.url
        page.goto("/ui")
        page.locator("#list table").wait_for()
        assert not page.get_by_role("button", name="Unload tiny").is_visible()
        assert page.evaluate("() => document.cookie + JSON.stringify({...localStorage})") == "{}"
        keys.revoke("reader")
        page.get_by_label("API key").wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])
