"""One visit of all pages in a browser: the quick one, so it shares a browser and a service."""

from pathlib import Path

from app.config import ServeSettings
from app.results.store import ResultKind, ResultStore
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser_page
from tests.support.serving import serving

# by path, what is there once the page has read its data
SHOWN = {
    "/ui": "All depths",
    "/ui/jobs": "Submit the first job",
    "/ui/jobs/new": "6 blocks, of which 4 can be removed",
    "/ui/curve": "All variants",
    "/ui/results": "1.20×, faster",
    "/ui/results/20200101T000000Z-bench-000000": "Benchmark of tiny",
    "/ui/compare": "variant 1, the baseline",
    "/ui/nowhere": "Page not found",
    "/ui/sign-in": "This service requires an API key",
    "/docs": "/heal-jobs",
}


def test_every_page_shows_its_data_and_asks_no_other_server(data_dir: Path, redis_url: str) -> None:
    publish_pruned(data_dir)
    found = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": "faster", "reason": "above 1"}
    row = {"scenario": "served", "variant": "tiny@-1", "time": "tpot", "speedup": found}
    report = {"num_blocks": 6, "results": [{**row, "dense_s": 0.3, "variant_s": 0.2, "ideal": 1.2}]}
    ResultStore(data_dir).keep(
        ResultKind.BENCH, "tiny", "1.20×, faster", report, "20200101T000000Z-bench-000000"
    )
    settings = ServeSettings(data_dir=data_dir, drain_s=0)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        for path, words in SHOWN.items():
            watched.may_fail = path == "/ui/nowhere"
            page.goto(path)
            page.get_by_text(words).first.wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])
