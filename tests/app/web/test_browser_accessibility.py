"""Every page of ours against the rules of axe-core, with data, in both themes and three widths."""

from pathlib import Path

import pytest

from app.config import ServeSettings
from app.results.store import ResultKind, ResultStore
from pruning.jobs import transitions
from pruning.jobs.job import JobError, Phase
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from pruning.stability.report import to_wire
from tests.support.accessibility import VIEWS, broken_rules, misfits, space
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser, page_of
from tests.support.job_lives import FIRST, SECOND
from tests.support.search_runs import report_of, run_of
from tests.support.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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
        jobs.record(job_id, transitions.phase_begun(Phase.SEARCH))
        jobs.record(job_id, transitions.removed([FIRST]))
        jobs.record(job_id, transitions.removed([FIRST, SECOND]))
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
    broken: list[tuple[object, ...]] = []
    with serving(settings, redis_url) as (_, url), browser() as visitor:
        for theme, width in VIEWS:
            viewport = {"width": width, "height": 900}
            page, watched = page_of(visitor, url, color_scheme=theme, viewport=viewport)
            for path in paths:
                watched.may_fail = path == "/ui/nowhere"
                page.goto(path)
                page.locator("[aria-busy=true]").first.wait_for(state="detached")
                assert (watched.complaints, watched.foreign) == ([], [])
                found = [*broken_rules(page), *misfits(page)]
                space(page)
                found += misfits(page)
                broken += [(theme, width, path, *each) for each in found]
                watched.complaints.clear()  # of axe itself, which is no part of the page
            page.context.close()
    assert broken == []
