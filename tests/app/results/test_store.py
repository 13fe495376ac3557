"""Results in the data directory: pages of them, replacing one, and files that are damaged."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.results.store import FOLDER, ResultKind, ResultNotFound, ResultStore


def test_a_result_is_kept_and_replaced_under_its_id(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    assert store.page(1).results == ()
    report = {"runs": [1, 2], "gap": math.nan}
    result_id = store.keep(ResultKind.STABILITY, "tiny", "stable", report)
    found = store.get(result_id)
    assert (found.kind, found.model, found.headline) == ("stability", "tiny", "stable")
    assert found.report == {"runs": [1, 2], "gap": None}
    store.keep(ResultKind.STABILITY, "tiny", "noise", {"runs": [1, 2, 3]}, result_id)
    assert store.get(result_id).report == {"runs": [1, 2, 3]}
    assert [result.headline for result in store.page(9).results] == ["noise"]
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{result_id}.json"]


def test_pages_hold_all_results_the_newest_first_without_damaged_files(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    ids = [f"2026112{day}T000000Z-bench-00000{day}" for day in range(6)]
    for result_id in ids:
        store.keep(ResultKind.BENCH, "tiny", "faster", {}, result_id)
    folder = tmp_path / FOLDER
    (folder / f"{ids[2]}.json").write_text('{"kind": "bench"')
    (folder / f"{ids[3]}.json").write_text('{"kind": "bench", "report": 3}')
    (folder / "notes.json").write_text("{}")
    found, after, has_more = [], None, True
    while has_more:
        page = store.page(2, after)
        found += [result.id for result in page.results]
        after, has_more = found[-1], page.has_more
    assert found == [ids[5], ids[4], ids[1], ids[0]]
    with pytest.raises(ResultNotFound, match="measure again"):
        store.get(ids[2])
    with pytest.raises(ResultNotFound, match="GET /results"):
        store.get(f"{ids[0][:-1]}f")


@given(st.text() | st.sampled_from(["../keys", "/etc/passwd", "", "..", "a\0b"]))
def test_an_id_names_no_other_file(result_id: str) -> None:
    with pytest.raises(ResultNotFound):
        ResultStore(Path("/nowhere")).get(result_id)
