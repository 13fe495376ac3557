"""The page on keys and values that are kept: pages in use and hits, and how results were read."""

from pathlib import Path

import httpx2
import pytest

from app.config import ServeSettings
from app.engine.cache.pages import PAGE_TOKENS
from app.results.store import ResultKind, ResultStore
from tests.support.browser import browser_page
from tests.support.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RESULT = "20200101T000000Z-bench-000000"


@pytest.fixture
def settings(tiny_models_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=tiny_models_dir.parent, drain_s=0)


def test_the_overview_has_hits_and_a_result_says_how_prompts_were_read(
    settings: ServeSettings, redis_url: str
) -> None:
    report = {"num_blocks": 6, "results": [], "prompt_reading": "in full"}
    ResultStore(settings.data_dir).keep(ResultKind.BENCH, "tiny", "1.20×", report, RESULT)
    body = {"model": "tiny", "prompt": [5] * (2 * PAGE_TOKENS + 1), "max_tokens": 1}
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, _):
        page.goto("/ui")
        page.locator("#cards").get_by_text("no prefix lookups yet").wait_for()
        for _ in range(2):
            assert httpx2.post(f"{url}/v1/completions", json=body).status_code == 200
        percent = round(100 * PAGE_TOKENS / (2 * PAGE_TOKENS + 1))  # the second prompt's pages
        hits = f"prefix hit rate {percent} %"
        page.locator("#cards").get_by_text(hits).wait_for()
        page.locator("#cards").get_by_text("0 % in use").wait_for()
        page.goto(f"/ui/results/{RESULT}")
        page.locator("#facts").get_by_text("in full", exact=True).wait_for()
