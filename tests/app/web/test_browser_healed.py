"""What pages say of a healed model, and what they offer to a key that may not submit jobs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from pruning.heal_checkpoint import heal_checkpoint
from pruning.healing.places import HealedPlaces
from pruning.jobs.store import JobStore
from pruning.models.names import healed_name
from pruning.models.store import ModelStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.accessibility import misfits
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser, browser_page, page_of
from tests.support.healing import HEAL
from tests.support.job_lives import succeed
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder
from tests.support.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def settings(tiny_models_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=tiny_models_dir.parent, drain_s=0)


SVG = (Path(__file__).parents[3] / "app" / "web" / "static" / "svg.js").read_text()
RUNS = f"""(all) => {{ {SVG.replace("export ", "")}
  const joined = (depths) => runs(depths.map((depth) => ({{ depth }})));
  return all.map((depths) => joined(depths).map((run) => run.map(({{ depth }}) => depth))); }}"""


MARKS = "(all) => all.map((mark) => getComputedStyle(mark).borderTopStyle)"


def healed_job(settings: ServeSettings, job_store: JobStore) -> str:
    """A job that has pruned, repaired and healed, with the control of its healing."""
    text = settings.data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(900)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    spec = PruneSpec("tiny", 2, calibration=calibration, repair=Repair.RIDGE)
    job = job_store.create(replace(spec, heal=HEAL)).id
    name = f"tiny@{job}"
    prune_tiny(settings.models_dir, spec, name)
    checkpoints = settings.data_dir / "checkpoints"
    target = checkpoints / healed_name(name)
    heal_checkpoint(
        HEAL,
        HealedPlaces(checkpoints / name, target, settings.data_dir / "searches" / name),
        models=ModelStore(settings.models_dir),
        observer=Recorder(),
    )
    succeed(job_store, job, target.name)
    return job


def test_a_healed_model_is_compared_with_all_others_and_is_one_point_of_the_curve(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    job = healed_job(settings, job_store)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto(f"/ui/jobs/{job}")
        page.locator("#healed table").wait_for()
        headings = page.locator("#healed thead th").all_inner_texts()
        assert headings == ["text", "dense", "pruned, raw", "repaired", "healed", "control"]
        for row in page.locator("#healed tbody tr").all():
            assert all("×" in cell for cell in row.locator("td").all_inner_texts()[1:])
        trained = "at most 1,920 tokens, adapters of rank 4, for the deepest model, with a control"
        assert trained in page.locator("#state").inner_text()

        page.goto("/ui/compare")
        option = page.locator(f"#side-2 option[value='tiny@{job}+healed']")
        assert option.inner_text() == f"tiny@…{job[-6:]}+healed"

        page.goto("/ui")
        shown = page.locator(
            f"#list td [title='tiny@{job}+healed'], #list th [title='tiny@{job}+healed']"
        )
        assert shown.first.inner_text() == f"@…{job[-6:]}+healed"
        assert misfits(page) == []

        page.goto("/ui/curve?model=tiny")
        page.locator("#plot .u-over").hover(position={"x": 2, "y": 40})
        page.locator("#plot .u-series .u-value", has_text="1.00×").first.wait_for()
        marks = page.locator("#plot .u-marker").evaluate_all(MARKS)
        assert {*marks} - {"none"} == {"solid", "dashed", "dotted"}, (
            "the legend tells series of a job apart"
        )
        at_dense = {
            row.locator(".u-label").inner_text(): row.locator(".u-value").inner_text()
            for row in page.locator("#plot .u-series").all()[1:]
        }
        values = {label.rpartition(", ")[2]: value for label, value in at_dense.items()}
        assert values.pop("healed") in ("", "\N{EN DASH}")
        assert {value.startswith("1") for value in values.values()} == {True}

        healed = page.locator("#trajectory circle.healed")
        assert healed.count() == page.locator("#trajectory svg").count() >= 2
        assert page.locator("#trajectory polyline.healed").count() == 0, (
            "no depth was healed before it"
        )
        joined = page.evaluate(RUNS, [[0, 1, 2, 4], [0, 2, 3], [0, 3], [0]])
        assert joined == [[[0, 1, 2]], [[2, 3]], [], []]
        assert (watched.complaints, watched.foreign) == ([], [])


def asked_by(page: "Page") -> list[str]:
    """The addresses that the page asks for from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked


def test_a_key_that_may_only_generate_is_not_offered_jobs_and_asks_once(
    settings: ServeSettings, redis_url: str
) -> None:
    key = KeyFile(settings.keys_file).create("reader", [Scope.GENERATE])
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True
        page.clock.install()
        page.goto("/ui/jobs")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("reader (generate)").wait_for()
        page.get_by_text("Your key has no access to this page").wait_for()
        assert not page.locator("#stale").is_visible()
        assert not page.get_by_role("link", name="New job").is_visible()
        asked = asked_by(page)
        page.clock.fast_forward(120_000)
        page.evaluate("() => fetch('/health/live').then((response) => response.status)")
        assert any("/health/live" in each for each in asked)
        assert not [each for each in asked if "/prune-jobs" in each]


def test_a_key_without_the_scope_sees_the_overview_while_a_job_runs(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    spec = PruneSpec("tiny", 2, calibration=CalibrationSpec(Dataset.SELF, num_samples=8, seqlen=8))
    publish_pruned(settings.data_dir, 2, job="done", spec=spec)
    running = job_store.create(spec).id
    job_store.start(running, "worker-1")
    keys = KeyFile(settings.keys_file)
    given = {scope: keys.create(scope, [scope]) for scope in (Scope.GENERATE, Scope.JOBS)}
    with serving(settings, redis_url) as (_, url), browser() as visitor:
        for scope, key in given.items():
            page, watched = page_of(visitor, url)
            watched.may_fail = True
            page.clock.install()
            asked = asked_by(page)
            page.goto("/ui")
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            page.get_by_text(f"{scope} ({scope})").wait_for()
            page.locator("#list table").first.wait_for()
            assert page.locator("#list .gain.wide .taken.nearest").count() == 1
            worst = page.locator("#list .stats dt", has_text="the worst text").inner_text()
            assert re.search(r"the worst text, \d\.\d\d.\d\.\d\d$", worst)
            for _ in range(3):
                page.clock.fast_forward(6_000)
                page.wait_for_load_state("networkidle")
            assert not page.locator("#stale").is_visible()
            assert page.locator("#running p").count() == (scope is Scope.JOBS)
            jobs = [each for each in asked if "/prune-jobs?status=running" in each]
            assert len(jobs) == 1 or scope is Scope.JOBS
            beside = page.locator("main a[href^='/ui/compare']:visible")
            assert beside.count() == 0 or scope is Scope.GENERATE


def test_the_error_of_a_refused_form_goes_once_the_form_is_right(
    settings: ServeSettings, redis_url: str
) -> None:
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True
        page.goto("/ui/jobs/new?model=tiny")
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        page.locator("#num_remove").fill("5")
        page.get_by_role("button", name="Submit the job").click()
        page.locator("#alert .banner").wait_for()
        page.locator("#num_remove").fill("2")
        page.locator("#alert .banner").wait_for(state="detached")
        page.locator("#num_remove-error", has_text="cannot").wait_for(state="detached")
