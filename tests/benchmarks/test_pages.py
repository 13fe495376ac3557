"""The benchmark of the web page: both kinds of visits, of both sides."""

import importlib
import json
from pathlib import Path

import pytest

from tests.support.debian import tool
from tests.support.pages import ROOT

PAGES = ("job", "docs")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_visits_pages_cold_and_warm(tiny_model_dir: Path, tmp_path: Path) -> None:
    tool("chromium", "chromium")
    pages = importlib.import_module("benchmarks.pages")  # playwright is not on all machines
    out = tmp_path / "pages.json"
    pages.main(out, str(tiny_model_dir), against=ROOT, repeats=2, pages=",".join(PAGES))
    found = json.loads(out.read_text())["pages"]
    assert tuple(found) == PAGES
    for page in PAGES:
        assert set(found[page]) == {"ours", "baseline"}
        for visits in found[page].values():
            for visit in (*visits["cold"], *visits["warm"]):
                assert 0 < visit["first_paint_ms"] <= visit["data_ms"] < 60_000
            cold, warm = visits["cold"], visits["warm"]
            assert (len(cold), len(warm)) == (2, 2)
            # what is kept is not received again
            assert max(visit["received_bytes"] for visit in warm) < cold[0]["received_bytes"]
