"""The record of a search in a file: what was written is found again, whatever happens."""

from pathlib import Path

import pytest

from pruning.search.state import SearchFile, SearchPlan
from tests.support.full_disk import full_disk
from tests.support.pruning_runs import removals_of_run

PLAN, OTHER = SearchPlan("windows", 2), SearchPlan("windows", 3)
REMOVALS = tuple(removals_of_run(is_staged=False))


@pytest.fixture
def file(tmp_path: Path) -> SearchFile:
    """The record of both removals."""
    found = SearchFile(tmp_path / "searches" / "search.jsonl")
    found.begin(PLAN)
    for removal in REMOVALS:
        found.removed(removal)
    return found


def test_a_later_process_finds_what_was_recorded(file: SearchFile) -> None:
    state = SearchFile(file.path).read()
    assert (state.plan, state.removals) == (PLAN, REMOVALS)


def test_it_goes_on_with_the_same_plan_and_not_with_another(file: SearchFile) -> None:
    file.begin(PLAN)
    assert file.read().removals == REMOVALS
    file.begin(OTHER)
    assert (file.read().plan, file.read().removals) == (OTHER, ())


def test_an_incomplete_line_costs_no_other(file: SearchFile) -> None:
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-9])
    assert file.read().removals == REMOVALS[:1]
    file.begin(PLAN)
    file.removed(REMOVALS[1])
    assert file.read().removals == REMOVALS


def test_a_disk_that_is_full_when_it_begins_again_costs_nothing(file: SearchFile) -> None:
    with full_disk(), pytest.raises(OSError, match="File too large"):
        file.begin(PLAN)
    assert file.read().removals == REMOVALS
    assert list(file.path.parent.iterdir()) == [file.path]


def test_nothing_is_left_of_a_search_that_is_done(file: SearchFile) -> None:
    file.discard()
    assert not file.path.parent.exists()
    assert file.read().removals == ()
