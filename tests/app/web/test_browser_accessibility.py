"""Every page of ours against the rules of axe-core, with data, in both themes and three widths."""

from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe

from app.config import ServeSettings
from app.results.store import ResultKind, ResultStore
from pruning.jobs.job import JobError, Phase
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from pruning.stability.report import to_wire
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser, page_of
from tests.support.job_lives import FIRST, SECOND
from tests.support.search_runs import report_of, run_of
from tests.support.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VIEWS: tuple[tuple[Literal["light", "dark"], int], ...] = (
    ("light", 1280),
    ("dark", 768),
    ("dark", 390),
    ("light", 320),  # as a window of 1280 pixels, enlarged to 400 %
)
# of WCAG 2.2 AA, which axe leaves out unless it is asked
RULES = {"rules": {"target-size": {"enabled": True}}}
# what readers may set (WCAG 1.4.12); of elements, as the policy allows no style sheet
SPACED = """() => {
  for (const node of document.querySelectorAll("body *")) {
    Object.assign(node.style, { letterSpacing: "0.12em", wordSpacing: "0.16em", lineHeight: 1.5 });
    if (node.tagName === "P") node.style.marginBottom = "2em";
  }
}"""
# buttons, links and cells whose text is cut off
CUT = """() => [...document.querySelectorAll("button, .button, nav a, th, td, label, dd, dt")]
  .filter((node) => node.clientWidth > 1 && node.scrollWidth > node.clientWidth + 1
    && getComputedStyle(node).display !== "inline").map((node) => node.outerHTML.slice(0, 80))"""
TOO_WIDE = "() => document.documentElement.scrollWidth > innerWidth"
BENCH = "20200101T000000Z-bench-000000"
STABILITY = "20200101T000000Z-stability-000000"


def fill(data_dir: Path, jobs: JobStore) -> list[str]:
    """Data for every page; returns the jobs: one that runs and one that failed."""
    publish_pruned(data_dir)
    store = ResultStore(data_dir)
    found = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": "faster", "reason": "above 1"}
    row = {"scenario": "served", "variant": "tiny@-1", "time": "tpot", "speedup": found}
    rows = [{**row, "dense_s": 0.3, "variant_s": 0.2, "ideal": 1.2}]
    report = {"num_blocks": 6, "results": rows, "machine": {"cpu": "x"}, "command": "sleb bench"}
    store.keep(ResultKind.BENCH, "tiny", "1.20×, faster", report, BENCH)
    stable = to_wire(report_of(run_of([3, 4]), run_of([4, 3], seed=1)))
    store.keep(ResultKind.STABILITY, "tiny", "in the noise", stable, STABILITY)
    ids = [jobs.create(PruneSpec("tiny", num_remove=2)).id for _ in range(2)]
    for job_id in ids:
        jobs.start(job_id, "worker-1")
        jobs.set_phase(job_id, Phase.SEARCH)
        jobs.removed(job_id, [FIRST])
        jobs.removed(job_id, [FIRST, SECOND])
    jobs.fail(ids[1], JobError("out_of_memory", "too large"))
    return ids


def test_no_page_breaks_a_rule(data_dir: Path, redis_url: str, job_store: JobStore) -> None:
    jobs = fill(data_dir, job_store)
    settings = ServeSettings(data_dir=data_dir, drain_s=0)
    paths = [
        *("/ui", "/ui/jobs", "/ui/jobs/new", "/ui/jobs/new?heal=tiny@prn-1", "/ui/curve"),
        *(f"/ui/jobs/{job_id}" for job_id in jobs),
        *("/ui/results", f"/ui/results/{BENCH}", f"/ui/results/{STABILITY}", "/ui/compare"),
        *("/ui/sign-in", "/ui/nowhere", "/docs", "/docs#create_prune_job", "/docs#PruneJobBody"),
    ]
    broken = []
    with serving(settings, redis_url) as (_, url), browser() as visitor:
        for theme, width in VIEWS:
            viewport = {"width": width, "height": 900}
            page, watched = page_of(visitor, url, color_scheme=theme, viewport=viewport)
            for path in paths:
                watched.may_fail = path == "/ui/nowhere"
                page.goto(path)
                page.locator("[aria-busy=true]").first.wait_for(state="detached")
                assert (watched.complaints, watched.foreign) == ([], [])
                for rule in Axe().run(page, options=RULES).response["violations"]:
                    nodes = [node["target"] for node in rule["nodes"]]
                    broken.append((theme, width, path, rule["id"], nodes[:3]))
                for change in ("() => {}", SPACED):
                    page.evaluate(change)
                    if page.evaluate(TOO_WIDE) or page.evaluate(CUT):
                        broken.append((theme, width, path, "does not fit", page.evaluate(CUT)))
                watched.complaints.clear()  # of axe itself, which is no part of the page
            page.context.close()
    assert broken == []
