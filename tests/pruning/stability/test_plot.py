"""The picture of a stability report shows what the report says."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from pruning.checkpoints.trajectory import CEILING
from pruning.stability.agreement import Stability, stability
from pruning.stability.plot import draw, plot
from tests.support.search_runs import report_of, run_of

REPORTS = {
    "two": report_of(run_of([1, 2]), run_of([2, 3], seed=1)),
    "one step": report_of(run_of([4]), run_of([4], seed=1)),
    "texts": report_of(run_of([1, 2, 3]), run_of([3, 2, 6], text="$b_1$ " + "x" * 99, seed=1)),
    "beyond": report_of(
        run_of([1, 2], perplexities=[10.0, 1e5, 1e300]),
        run_of([1, 3], perplexities=[10.0, 2e4, float("nan")], seed=1),
    ),
}


def cells(figure: Figure) -> dict[tuple[int, int], int]:
    """Removals by row from the top and block."""
    grid = figure.axes[1]
    num_rows = round(grid.get_ylim()[1])
    found = {}
    for text in grid.texts:
        block, height = text.get_position()
        found[num_rows - 1 - int(height), round(block)] = int(text.get_text())
    return found


@pytest.mark.parametrize("name", REPORTS)
def test_every_removal_of_every_run_has_its_cell(name: str) -> None:
    report = REPORTS[name]
    expected = {
        (row, block): step
        for row, run in enumerate(report.runs)
        for step, block in enumerate(run.order, start=1)
    }
    assert cells(draw(report)) == expected


@pytest.mark.parametrize("name", REPORTS)
def test_bars_are_shares_of_the_runs(name: str) -> None:
    report = REPORTS[name]
    [container] = draw(report).axes[0].containers
    assert isinstance(container, BarContainer)
    bars = {round(bar.get_center()[0]): bar.get_height() for bar in container.patches}
    assert bars == {one.block: one.num_runs / len(report.runs) for one in report.picked}


def curve(figure: Figure, axes: int, line: int) -> list[float]:
    return list(np.asarray(figure.axes[axes].lines[line].get_ydata()).tolist())


def test_the_curves_are_overlap_and_perplexity() -> None:
    report = REPORTS["two"]
    figure = draw(report)
    assert curve(figure, 2, 0) == [depth.overlap for depth in report.depths]
    assert curve(figure, 2, 2) == [depth.overlap_by_chance for depth in report.depths]
    assert curve(figure, 3, 0) == [10.0, 11.0, 12.0]


def test_what_is_beyond_every_scale_lies_on_the_ceiling() -> None:
    assert max(curve(draw(REPORTS["beyond"]), 3, 0)) <= CEILING


@pytest.mark.parametrize("name", REPORTS)
def test_equal_reports_give_equal_pictures_and_no_setting_is_changed(name: str) -> None:
    before = dict(mpl.rcParams)
    first = plot(REPORTS[name])
    assert first.startswith(b"\x89PNG")
    assert plot(REPORTS[name]) == first
    assert dict(mpl.rcParams) == before


def test_a_single_run_has_a_picture_too() -> None:
    alone: Stability = stability("tiny", 8, 6, [run_of([1, 2])])
    assert cells(draw(alone)) == {(0, 1): 1, (0, 2): 2}
