"""What pages answer first: choices of a job, how long it takes, what a depth is good for."""

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import (
    COMPARISON,
    ONE_STREAM,
    Measurand,
    MeasuredSpeedup,
    MeasuredSpeedups,
)
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.jobs import transitions
from pruning.jobs.job import Phase
from pruning.jobs.store import JobStore
from pruning.models.safetensors_headers import fingerprint
from pruning.search.state import SearchPlan
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser, browser_page, page_of
from tests.support.job_lives import succeed
from tests.support.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PHONE = {"width": 390, "height": 844}


def body_of(command: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((command or "").partition("-d '")[2].removesuffix("'"))
    return found


def test_a_new_job_is_three_choices_and_the_rest_is_folded(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    assert job_store.list(1).jobs == ()
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui")
        page.get_by_role("link", name="Prune your first model").click()
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        assert not page.locator("#metric").is_visible()
        assert page.locator("#num_remove").input_value() == "1"
        curl = page.locator("#curl")
        assert body_of(curl.text_content()) == {"model": "tiny", "num_remove": 1}
        page.get_by_label("Blocks to remove, slider").fill("3")
        assert page.locator("#num_remove").input_value() == "3"
        page.locator("#expected").get_by_text("up to 2.00×").wait_for()
        page.get_by_label("Quick").check()
        assert body_of(curl.text_content()) == {
            "model": "tiny",
            "num_remove": 3,
            "calibration": {"num_samples": 8, "seqlen": 64},
            "evaluation": {"margin": 0.05, "max_seconds": 45},
        }
        page.get_by_label("With healing").check()
        assert body_of(curl.text_content()) == {"model": "tiny", "num_remove": 3, "heal": {}}
        watched.may_fail = True
        page.locator("#num_remove").fill("5")
        page.locator("#num_remove-error").get_by_text("cannot remove 5 of 6").wait_for()
        page.locator("#advanced > summary").click()
        page.locator("[id='calibration.seqlen']").fill("100000")
        page.locator("#advanced > summary").click()
        page.locator("#num_remove").fill("3")  # asks again, with what is folded now
        page.locator("[id='calibration.seqlen-error']").get_by_text("tiny, 256").wait_for()
        assert watched.complaints == []


def test_a_job_says_how_long_it_takes_once_it_knows(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = job_store.create(PruneSpec("tiny", num_remove=2)).id
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto(f"/ui/jobs/{job}")
        page.locator("#bars").get_by_text("Waiting for a worker").wait_for()
        job_store.start(job, "worker-1")
        job_store.record(job, transitions.phase_begun(Phase.SEARCH))
        job_store.record(job, transitions.searching(SearchPlan("d1g", 2), 0, 100))
        job_store.record(job, transitions.evaluated(1, 100))
        page.locator("[aria-current=step]", has_text="1 of 100 evaluations").wait_for()
        assert "Estimating the time left" in page.locator(".headline").inner_text()
        an_hour_ago = str(time.time() - 3600)
        redis_client.hset(f"sleb:job:{job}", "search_started_at", an_hour_ago)
        job_store.record(job, transitions.evaluated(4, 100))
        page.locator(
            ".headline", has_text=re.compile(r"Search\. \d+ h .+ to \d+ h .+ left")
        ).wait_for()
        steps = page.locator(".phases li")
        assert steps.locator("> span:first-child").all_inner_texts() == [
            *("Load the model", "Sample the text", "Search", "Repair", "Evaluate", "Publish")
        ]
        assert steps.locator("progress").count() == 6
        assert (watched.complaints, watched.foreign) == ([], [])


def test_int8_weights_are_in_the_picture_of_the_overview(
    settings: ServeSettings, redis_url: str
) -> None:
    publish_pruned(settings.data_dir)
    weights = fingerprint(settings.models_dir / "tiny")
    domain = DomainQuality("prose", "", 24, 64, "d", Measured(3.0, 0.1), (Measured(3.01, 1e-3),))
    MeasuredQualities(settings.data_dir).record("tiny", weights, {"tiny+int8": (domain,)})
    speedup = MeasuredSpeedup(1.7, 1.69, 1.71, COMPARISON, 1.0, 5)
    MeasuredSpeedups(settings.data_dir).record("tiny", {Measurand(0, is_int8=True): speedup})
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui")
        page.locator(".advice", has_text="Take tiny+int8").wait_for()
        picture = page.locator(".gain.wide")
        assert picture.locator("circle.point.int8").count() == 1
        assert picture.locator("circle.taken").count() == 1
        assert picture.locator("text.int8").text_content() == "int8"
        assert watched.complaints == []


def test_a_load_and_limits_change_the_answer_while_they_are_typed(
    settings: ServeSettings, redis_url: str
) -> None:
    publish_pruned(settings.data_dir)
    weights = fingerprint(settings.models_dir / "tiny")
    domain = DomainQuality("prose", "", 24, 64, "d", Measured(3.0, 0.1), (Measured(3.01, 1e-3),))
    MeasuredQualities(settings.data_dir).record("tiny", weights, {"tiny+int8": (domain,)})
    speeds = MeasuredSpeedups(settings.data_dir)
    for load, value in ((ONE_STREAM, 1.7), ("8", 1.2)):
        found = MeasuredSpeedup(value, value - 0.01, value + 0.01, load, 1.0, 5)
        speeds.record("tiny", {Measurand(0, is_int8=True, load=load): found})
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui")
        answer = page.locator(".advice")
        answer.get_by_text("1.70 × as fast at one stream").wait_for()
        row = page.get_by_role("row", name=re.compile(r"^\+int8"))
        assert "1.70×" in row.inner_text()
        page.get_by_label("Load of tiny").select_option("8 streams")
        answer.get_by_text("1.20 × as fast at 8 streams").wait_for()
        row.get_by_text("1.20×").wait_for()
        page.locator(".gain.wide").get_by_text("speed-up at 8 streams").wait_for()
        limit = page.get_by_label("× as fast")
        limit.fill("1.5")
        answer.get_by_text("Do not prune this model at 8 streams").wait_for()
        assert limit.evaluate("(node) => node === document.activeElement")
        limit.fill("0.5")  # the browser says why not, and nothing is asked
        assert limit.evaluate("(node) => node.matches(':invalid')")
        page.get_by_label("Load of tiny").select_option("one stream")
        limit.fill("1.5")
        answer.get_by_text("1.70 × as fast at one stream").wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_frontier_is_measured_from_the_first_page_and_can_be_stopped(
    settings: ServeSettings, redis_url: str
) -> None:
    publish_pruned(settings.data_dir)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui")
        button = page.get_by_role("button", name="Measure int8 weights")
        button.click()
        line = page.locator("#running", has_text="Measuring tiny")
        line.wait_for()
        page.get_by_role("button", name="Stop").click()
        line.wait_for(state="detached")
        page.route("**/frontiers", briefly)
        button.click()
        line.wait_for()
        line.wait_for(state="detached")
        page.goto("/ui/results")
        page.get_by_role("link", name="frontier").click()
        page.get_by_role("heading", name="Frontier of tiny").wait_for()
        rows = page.get_by_role("region", name="Candidates of tiny").locator("tbody tr")
        assert {"tiny", "tiny+int8", "tiny@-1"} <= {*rows.locator("th .name").all_inner_texts()}
        assert (watched.complaints, watched.foreign) == ([], [])


def briefly(route: "Route") -> None:
    """The same measurement with little time."""
    body = json.loads(route.request.post_data or "")
    route.continue_(post_data=body | {"max_minutes": 0.1})


def test_a_depth_is_evaluated_and_used_as_prod(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    job = job_store.create(PruneSpec("tiny", num_remove=2)).id
    enough = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
    spec = PruneSpec("tiny", 2, calibration=enough)
    publish_pruned(settings.data_dir, job=job, spec=spec)
    succeed(job_store, job, f"tiny@{job}")
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/curve?model=tiny")
        choice = page.get_by_role("button", name="@-2", exact=True)
        choice.click()
        assert choice.get_attribute("title") == f"tiny@{job}-2"
        page.get_by_role("button", name="Use as prod").click()
        page.get_by_text(f"Requests for prod now run on tiny@{job}-2").wait_for()
        target = page.evaluate("() => fetch('/models/prod').then((answer) => answer.json())")
        assert target["aliases"] == ["prod"]
        page.get_by_role("button", name="Evaluate").click()
        page.wait_for_url(re.compile("/ui/results/.*-eval-"))
        rows = page.locator("#report tbody tr")
        rows.nth(2).wait_for()
        assert all("×" in each for each in rows.locator("td:last-child").all_inner_texts())
        assert (watched.complaints, watched.foreign) == ([], [])


def probed(route: "Route") -> None:
    """The advice as it is where the deepest model was probed."""
    response = route.fetch()
    advice = response.json()
    advice["depths"][-1] |= {"probe_score": 0.612, "dense_probe_score": 0.64}
    route.fulfill(response=response, json=advice)


def test_the_trajectory_tells_of_the_depth_under_the_pointer(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    job = job_store.create(PruneSpec("tiny", num_remove=2)).id
    publish_pruned(settings.data_dir, 2, job=job)
    succeed(job_store, job, f"tiny@{job}")
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/curve?model=tiny")
        told = page.locator("#trajectory .told")
        told.wait_for()
        texts = page.locator("#trajectory h3").all_inner_texts()
        assert len(texts) == page.locator(".panels svg").count() >= 2
        page.locator(".panels [data-depth='2']").first.hover()
        assert told.inner_text().startswith("@-2 without ")
        assert all(f"{text} " in told.inner_text() for text in texts)
        assert page.locator("#trajectory li.gone.later").count() == 0
        page.locator(".panels [data-depth='1']").last.hover()
        assert re.match(r"@-1 without \d: \d\.\d\d× as fast \(predicted\)", told.inner_text())
        assert page.locator("#trajectory li.gone.later").inner_text().endswith("2")
        page.locator(".panels [data-depth='1']").last.click()
        page.get_by_role("heading", name="Without 1 block").wait_for()
        page.route("**/models/tiny/advice", probed)
        page.goto(f"/ui/jobs/{job}")
        table = page.locator("#advice table")
        table.wait_for()
        assert "probe" in table.locator("thead th").all_inner_texts()
        assert table.locator("tbody tr").last.locator("td").nth(-2).inner_text() == "0.61 of 0.64"
        page.locator("#trajectory li.gone").nth(1).wait_for()
        assert page.locator("#trajectory li.gone").count() == 2
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_phone_has_the_header_in_one_line_and_a_key_sees_what_it_may_do(
    settings: ServeSettings, redis_url: str
) -> None:
    key = KeyFile(settings.keys_file).create("reader", [Scope.GENERATE])
    with serving(settings, redis_url) as (_, url), browser() as visitor:
        page, watched = page_of(visitor, url, viewport=PHONE)
        watched.may_fail = True
        page.goto("/ui")
        page.get_by_label("API key").wait_for()
        assert page.locator("nav").count() == 0
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("reader (generate)").wait_for()
        header = page.locator("header").bounding_box()
        assert header is not None
        assert header["height"] < 60
        assert not page.locator("nav").is_visible()
        page.get_by_role("button", name="Overview").click()
        shown = page.locator("nav a:visible").all_inner_texts()
        assert shown == ["Overview", "Side by side", "REST API"]
        page.goto("/ui/jobs/new")
        page.get_by_text("requires the scope jobs, and your key has generate").wait_for()
        assert not page.locator("#form").is_visible()
        assert watched.complaints == []
