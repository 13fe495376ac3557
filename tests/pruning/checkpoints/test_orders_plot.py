"""Several checkpoints in one plot, where a panel has one text."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from pruning.checkpoints.orders_plot import MAX_ORDERS, NothingToPlot, draw_orders, plot_orders
from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import DomainQuality
from pruning.models.block_times import BlockTimes
from tests.support.pruning_runs import domain_of, healed_run, manifest_of

RAW = ((3.5, 4.5, 5.4), (4.0, 5.1, 6.0))
REPAIRED = (None, (3.6, 4.6, 5.6))
PROSE, CODE = domain_of("prose", RAW, REPAIRED), domain_of("code", RAW)
OTHER_PROSE = replace(PROSE, source="other prose", digest="another digest")


def checkpoint(name: str, *domains: DomainQuality) -> Manifest:
    run = manifest_of(6, (3, 1), (4.0, 4.25, 5.0))
    times = BlockTimes(0.1, 1.0, 0.5)
    quality = replace(run.quality, domains=domains)
    return replace(run, name=name, quality=quality, block_times=times)


def curves(manifests: Sequence[Manifest]) -> list[dict[str, list[float]]]:
    """The values of each panel, by label."""
    found = []
    for axes in draw_orders(manifests).axes:
        lines = {
            str(container.get_label()): np.asarray(container.lines[0].get_ydata()).tolist()
            for container in axes.containers
            if isinstance(container, ErrorbarContainer)
        }
        found.append(lines)
    return found


def test_checkpoints_share_a_panel_only_where_they_share_the_windows() -> None:
    first, second = checkpoint("tiny@a", PROSE, CODE), checkpoint("tiny@b", OTHER_PROSE, CODE)
    assert [set(panel) for panel in curves([first, second])] == [
        {"tiny@a"},
        {"tiny@a", "tiny@b"},
        {"tiny@b"},
    ]


def test_a_curve_has_the_ratios_of_the_models_as_they_are_served() -> None:
    [panel] = curves([checkpoint("tiny@a", PROSE)])
    served = [PROSE.ratio(PROSE.served_after(depth)).value for depth in (1, 2)]
    assert panel["tiny@a"] == pytest.approx([1.0, *served])


def test_a_healed_checkpoint_is_one_point_beside_the_curve_of_the_repaired_one() -> None:
    repaired = checkpoint("tiny@a", PROSE)
    [panel] = curves([repaired, healed_run(repaired, 4.5)])
    assert len(panel["tiny@a"]) == 3
    assert panel["tiny@a+healed"] == pytest.approx([math.exp(0.5)])


def test_the_axis_below_has_the_predicted_speed_ups() -> None:
    axes = draw_orders([checkpoint("tiny@a", PROSE)]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "0\n1.00×",
        "1\n1.18×",
        "2\n1.43×",
    ]


@pytest.mark.parametrize("num_orders", [1, 3, MAX_ORDERS + 2])
@pytest.mark.parametrize("domains", [(PROSE,), (PROSE, CODE, OTHER_PROSE)])
def test_nothing_is_cut_off(num_orders: int, domains: tuple[DomainQuality, ...]) -> None:
    names = [f"smollm2-135m@prn-6612fbe3e6f88eee4875{number}" for number in range(num_orders)]
    figure = draw_orders([checkpoint(name, *domains) for name in names])
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert named == set(names[:MAX_ORDERS])


def test_the_same_checkpoints_give_the_same_png() -> None:
    manifests = [checkpoint("tiny@a", PROSE), checkpoint("tiny@b", PROSE)]
    assert plot_orders(manifests) == plot_orders(manifests)


def test_without_a_measurement_there_is_no_plot() -> None:
    with pytest.raises(NothingToPlot, match="evaluate"):
        draw_orders([checkpoint("tiny@a")])
