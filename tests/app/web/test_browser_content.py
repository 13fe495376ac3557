"""What pages say: numbers with units and intervals, the words of the reference, long lists in
pages, and text as it is generated."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.config import ServeSettings
from app.results.store import ResultKind, ResultStore
from pruning.jobs import transitions
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser_page
from tests.support.job_lives import FIRST, SECOND, succeed
from tests.support.pages import ROOT
from tests.support.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPEC = PruneSpec("tiny", num_remove=2)
TO = "\N{EN DASH}"
INTERVAL = rf"\d\.\d\d{TO}\d+\.\d\d"
QUALITY = rf"\d+\.\d\d ?\[\d\.\d\d×; {INTERVAL}\]"
SIZE = r"\d[\d.]* [KMGT]?i?B"
TIME = r"\d[\d.]* (ms|s)"
# how long the outputs were whenever one of them grew
WATCH_OUTPUTS = """() => {
  window.lengths = new Set();
  const look = () => window.lengths.add(document.querySelector(".output")?.textContent.length);
  const options = { childList: true, subtree: true };
  new MutationObserver(look).observe(document.getElementById("outputs"), options);
}"""
WATCH_TURNS = """() => {
  window.turns = new Set();
  new MutationObserver(() => {
    const bar = document.querySelector("#result progress");
    if (bar) window.turns.add(`${bar.value} of ${bar.max}`);
  }).observe(document.getElementById("result"), {childList: true, subtree: true});
}"""


def cells(page: "Page", selector: str) -> list[list[str]]:
    """The rows of a table, with single blanks in their cells."""
    rows = page.locator(f"{selector} tbody tr")
    return [
        [" ".join(cell.split()) for cell in row.locator("th, td").all_text_contents()]
        for row in rows.all()
    ]


def matches(found: str, *parts: str) -> bool:
    return re.fullmatch(" ?".join(parts), found) is not None


def keep_results(settings: ServeSettings, number: int) -> str:
    """Several of the same; returns the id of the last."""
    found = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": "faster", "reason": "above 1"}
    row = {"scenario": "served", "variant": "tiny@-1", "time": "tpot", "speedup": found}
    report = {"num_blocks": 6, "results": [{**row, "dense_s": 0.3, "variant_s": 0.2, "ideal": 1.2}]}
    ids = [f"20200101T0000{second:02}Z-bench-000000" for second in range(number)]
    for name in ids:
        ResultStore(settings.data_dir).keep(ResultKind.BENCH, "tiny", "1.20×, faster", report, name)
    return ids[-1]


@pytest.fixture
def settings(tiny_models_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=tiny_models_dir.parent, drain_s=0)


def test_numbers_have_their_units_and_intervals(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    job = job_store.create(SPEC).id
    enough = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)  # windows for intervals
    spec = PruneSpec("tiny", 2, calibration=enough, repair=Repair.NONE)
    publish_pruned(settings.data_dir, job=job, spec=spec)
    succeed(job_store, job, f"tiny@{job}")
    running = job_store.create(SPEC).id
    job_store.start(running, "worker-1")
    first = replace(FIRST, margin_error=0.125)
    job_store.record(running, transitions.removed([first]))
    job_store.record(running, transitions.removed([first, SECOND]))
    result = keep_results(settings, 1)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui")
        page.get_by_role("button", name="Unload tiny").wait_for()
        dense, pruned, *_ = cells(page, "#list")
        assert matches(dense[-2], SIZE)
        assert matches(pruned[-3], QUALITY)
        cards = " ".join(page.locator("#cards").inner_text().split())
        assert re.search(rf"{SIZE} free weights: {SIZE}", cards)
        page.goto("/ui/curve?model=tiny")
        page.locator("#rows tbody tr").nth(1).wait_for()
        for row in cells(page, "#rows"):
            assert matches(row[3], r"\d\.\d\d×", rf"\[{INTERVAL}\]")
            assert matches(row[6], r"\d\.\d\d×", "predicted")
        page.goto(f"/ui/results/{result}")
        page.locator("#report table").wait_for()
        [row] = cells(page, "#report")
        assert row[2:7] == ["300 ms", "200 ms", "1.20×", f"1.10{TO}1.30", "1.20×"]
        page.goto(f"/ui/jobs/{running}")
        page.locator("#rounds tbody tr").nth(1).wait_for()
        assert page.get_by_text("nats per token").count() >= 2
        page.locator("#rounds").get_by_text("0.2500 ± 0.1250", exact=True).wait_for()
        page.goto("/ui/compare?model=tiny&model=tiny@-2&prompt=the%20dog&max_new_tokens=4")
        page.get_by_role("button", name="Generate").click()
        page.locator("#outputs .facts").nth(1).wait_for()
        times = page.locator("#outputs .facts").first.locator("dd").all_inner_texts()
        assert matches(times[0], r"\d+ prompt, \d+ generated")
        assert matches(times[1], TIME)
        assert matches(times[2], TIME)
        page.get_by_role("button", name="Compare speed").click()
        page.locator("#result table").wait_for()
        [row] = cells(page, "#result")
        assert matches(row[1], r"\d+\.\d\d×", rf"\[-?{INTERVAL}\]")
        assert row[4].endswith(" %")
        assert row[5].endswith(" nats")
        assert (watched.complaints, watched.foreign) == ([], [])


def test_the_form_has_the_words_of_the_reference(settings: ServeSettings, redis_url: str) -> None:
    reference = " ".join((ROOT / "docs" / "rest.md").read_text().replace("`", "").split())
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, _):
        page.goto("/ui/jobs/new?model=tiny")
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        hints = page.locator("#form .hint:not(#limits)").all_text_contents()
        assert len(hints) > 30
        for hint in hints:
            assert " ".join(hint.replace("`", "").split()) in reference, hint
        labels = page.locator("#form label:has(code.json)").all_text_contents()
        assert len(labels) > 30
        assert [each for each in labels if len(set(each.split())) == 1] == [], "names without words"
        assert page.locator("[id='heal.depths']").count() == 1
        targets = page.locator("#target option").all_text_contents()
        assert len(targets) == 5
        assert "" not in targets
        page.locator("#advanced > summary").click()
        page.locator("#target").select_option("target_bytes")
        page.get_by_text("Enter target size to see an estimate").wait_for()
        page.locator("#target_bytes").fill("100000")
        command = str(page.locator("#curl").text_content())
        assert '"target_bytes":100000' in command.replace(" ", "")


def test_long_lists_come_in_pages(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    for _ in range(26):
        job = job_store.create(SPEC).id
        publish_pruned(settings.data_dir, 2, job=job)
        succeed(job_store, job, f"tiny@{job}")
    keep_results(settings, 21)
    lists = {  # by path, its rows at first and at last, and the words of its button
        "/ui": ("#list", 25, 28, "Show 3 of 3 more"),
        "/ui/jobs": ("#list", 20, 26, "Show older jobs"),
        "/ui/results": ("#list", 20, 21, "Show older results"),
        "/ui/curve?model=tiny": ("#rows", 50, 52, "Show 2 of 2 more"),
    }
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        for path, (selector, first, last, words) in lists.items():
            page.goto(path)
            rows = page.locator(f"{selector} tbody tr")
            rows.nth(first - 1).wait_for()
            assert rows.count() == first, path
            button = page.get_by_role("button", name=words)
            button.click()
            rows.nth(last - 1).wait_for()
            assert (rows.count(), button.count()) == (last, 0), path
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_comparison_says_how_far_it_is(settings: ServeSettings, redis_url: str) -> None:
    publish_pruned(settings.data_dir, 2)
    query = "model=tiny&model=tiny@-2&prompt=the%20dog&max_new_tokens=60"
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto(f"/ui/compare?{query}")
        page.get_by_label("variant 2").wait_for()
        page.evaluate(WATCH_TURNS)
        page.get_by_role("button", name="Compare speed").click()
        page.locator("#result table").wait_for()
        seen = page.evaluate("() => [...window.turns]")
        assert seen[0] == "0 of 15", "two variants and the control, five times"
        assert len(seen) > 2
        assert (watched.complaints, watched.foreign) == ([], [])


def test_text_is_shown_while_it_is_generated(settings: ServeSettings, redis_url: str) -> None:
    publish_pruned(settings.data_dir, 2)
    query = "model=tiny&model=tiny@-2&prompt=the%20dog&max_new_tokens=200"
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto(f"/ui/compare?{query}")
        page.get_by_label("variant 2").wait_for()
        page.evaluate(WATCH_OUTPUTS)
        page.get_by_role("button", name="Generate").click()
        page.locator("#outputs .facts").nth(1).wait_for()
        assert page.evaluate("() => window.lengths.size") > 2  # none, some, all
        assert (watched.complaints, watched.foreign) == ([], [])
