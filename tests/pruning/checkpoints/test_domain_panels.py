"""The plot has a panel for each domain: its text, its curves and their intervals."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from pruning.checkpoints.domain_panels import MAX_PANELS, grid
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import CEILING
from pruning.checkpoints.trajectory_plot import draw, plot
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.models.block_times import BlockTimes
from tests.support.pruning_runs import domain_of, healed_run, manifest_of

RAW = ((3.5, 4.5, 5.4), (4.0, 5.1, 6.0))
REPAIRED = (None, (3.6, 4.6, 5.6))
PROSE, CODE = domain_of("prose", RAW, REPAIRED), domain_of("code", RAW)
LONG = replace(PROSE, source="file /home/someone/texts/" + "documents/" * 9 + "all.txt, others")
SINGLE = replace(CODE, num_windows=1, dense=Measured(4.0, None), raw=(Measured(5.0, None),) * 2)


def with_domains(domains: Sequence[DomainQuality], removed: Sequence[int] = (3, 1)) -> Manifest:
    losses = [4.0 + 0.1 * step for step in range(len(removed) + 1)]
    manifest = manifest_of(max(removed) + 3, removed, losses)
    return replace(manifest, quality=replace(manifest.quality, domains=tuple(domains)))


def deep(domain: DomainQuality) -> DomainQuality:
    return replace(domain, raw=domain.raw * 20, repaired=domain.repaired * 20)


MANIFESTS = {
    "one": with_domains([CODE]),
    "two": with_domains([PROSE, CODE]),
    "long": with_domains([LONG] * 3),
    "four": with_domains([PROSE] * 4),
    "many": with_domains([PROSE] * (MAX_PANELS + 3)),
    "single": with_domains([SINGLE]),
    "deep": with_domains([deep(PROSE), deep(CODE)], range(1, 41)),
    "broken": with_domains([replace(PROSE, raw=(Measured(800.0, 9.0), Measured(math.nan, None)))]),
}


TIMED = {
    f"{name}, timed": replace(MANIFESTS[name], block_times=BlockTimes(0.1, 1.0, 0.5))
    for name in ("one", "long", "four", "deep")
}
LONGER = replace(PROSE, raw=PROSE.raw * 5, repaired=PROSE.repaired * 5)
TEN = replace(with_domains([LONGER] * 3, range(1, 11)), block_times=BlockTimes(0.1, 1.0, 0.5))
MANIFESTS |= {**TIMED, "ten, timed": TEN, "healed": healed_run(MANIFESTS["two"], 4.5)}


def rising(loss: float) -> list[tuple[float, float, float]]:
    """Losses of six depths, each of which loses so many nats more, with a little spread."""
    return [(3 + loss * at, 4 + 1.1 * loss * at, 5 + 0.9 * loss * at) for at in range(1, 7)]


HEALED = replace(
    domain_of("prose", rising(0.12), rising(0.055)),
    healed=tuple(Measured.against((3.0, 4.0, 5.0) * 2, losses * 2) for losses in rising(0.043)),
)


def drawn(figure: Figure, panel: int) -> dict[str, list[tuple[float, float, float]]]:
    """Low end, value and high end of every point, by the label of the curve."""
    found = {}
    for container in figure.axes[panel].containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        values = np.asarray(line.get_ydata())
        ends = [(segment[0][1], segment[1][1]) for segment in bars.get_segments()]
        points = [(low, value, high) for (low, high), value in zip(ends, values, strict=True)]
        found[str(container.get_label())] = points
    return found


def test_a_panel_shows_the_ratios_and_their_intervals() -> None:
    figure = draw(with_domains([PROSE, CODE]))
    prose, code = drawn(figure, 0), drawn(figure, 1)
    assert list(prose) == ["pruned", "repaired"]
    assert list(code) == ["pruned"]
    for curve, measured in (
        (prose["pruned"], PROSE.raw),
        (prose["repaired"], [PROSE.served_after(1), PROSE.served_after(2)]),
        (code["pruned"], CODE.raw),
    ):
        assert list(curve[0]) == [1, 1, 1]
        for point, each in zip(curve[1:], measured, strict=True):
            ratio = PROSE.ratio(each)
            assert point == pytest.approx((ratio.low, ratio.value, ratio.high))
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pruned", "repaired"]


def test_a_healed_model_is_a_point_and_the_title_is_of_it() -> None:
    figure = draw(MANIFESTS["healed"])
    for panel in (0, 1):
        [point] = drawn(figure, panel)["healed"]
        assert point[1] == pytest.approx(math.exp(0.5))
        container = figure.axes[panel].containers[-1]
        assert isinstance(container, ErrorbarContainer)
        assert 2 <= np.asarray(container.lines[0].get_xdata())[0] < 2.3
        assert f"{math.exp(4.5):.2f}" in [text.get_text() for text in figure.axes[panel].texts]
    title, result = (text.get_text() for text in figure.texts)
    assert title.endswith("blocks, healed")
    assert f"→ {math.exp(4.5):.2f}, {math.exp(0.5):.2f} × dense" in result


def test_a_panel_names_its_text() -> None:
    figure = draw(with_domains([PROSE, CODE]))
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert "code" in texts
    assert "some code" in texts
    assert f"6 windows of 8 tokens, dense {math.exp(4):.2f}" in texts
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["0", "1\n(3)", "2\n(1)"]


def test_an_axis_has_the_predicted_speed_ups() -> None:
    """With 6 blocks of 1, an embedding of 0.1 and a head of 0.5: 6.6 / 5.6 and 6.6 / 4.6."""
    axes = draw(TIMED["one, timed"]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "0\n\n1.00×",
        "1\n(3)\n1.18×",
        "2\n(1)\n1.43×",
    ]
    assert axes.get_xlabel() == "removed blocks (the last one)\npredicted speed-up"
    untimed = draw(MANIFESTS["one"]).axes[0]
    assert untimed.get_xlabel() == "removed blocks (the last one)"


def test_panels_have_one_scale() -> None:
    panels = draw(MANIFESTS["four"]).axes[:-1]
    assert len(panels) == 4
    assert len({panel.get_ylim() for panel in panels}) == 1
    assert len(draw(MANIFESTS["many"]).axes[:-1]) == MAX_PANELS


def test_the_title_is_of_the_worst_domain() -> None:
    better = domain_of("better", ((3.1, 4.1, 5.1),) * 2)
    [_, result] = [text.get_text() for text in draw(with_domains([better, CODE])).texts]
    ratio = CODE.ratio(CODE.raw[1]).value
    assert result.startswith("perplexity on code (the worst) 54.60 → ")
    assert result.endswith(f"{ratio:.2f} × dense")


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_is_cut_off_and_no_texts_overlap(name: str) -> None:
    figure = draw(MANIFESTS[name])
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    named = [text for axes in figure.axes[:-1] for text in (*axes.texts, axes.xaxis.label)]
    ticks = [axes.get_xticklabels() for axes in figure.axes[:-1]]
    for labels in ticks:
        wide = [label for label in labels if "×" in label.get_text()]
        ends = [label.get_window_extent() for label in wide]
        assert not any(one.overlaps(other) for one, other in pairwise(ends))
    cores = [text.get_window_extent().shrunk(0.8, 0.8) for text in (*named, *figure.texts)]
    assert not any(one.overlaps(other) for one, other in pairwise(cores))


def test_no_curve_covers_a_perplexity() -> None:
    figure = draw(with_domains([HEALED] * 3, range(1, 7)))
    figure.draw_without_rendering()
    for axes in figure.axes[:-1]:
        ends = [text for text in axes.texts if text.get_text().replace(".", "").isdigit()]
        assert len(ends) == 3
        boxes = [text.get_window_extent() for text in ends]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        for container in axes.containers:
            assert isinstance(container, ErrorbarContainer)
            line = axes.transData.transform(container.lines[0].get_xydata())
            for one, other in pairwise(line):
                between = one + np.linspace(0, 1, 50)[:, None] * (other - one)
                assert not any(box.count_contains(between) for box in boxes)


@settings(max_examples=12)
@given(st.lists(st.floats(0, 1000), min_size=3, max_size=3))
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    manifest = with_domains([domain_of("prose", (tuple(losses), RAW[0]))])
    panel = draw(manifest).axes[0]
    low, high = panel.get_ylim()
    assert 0 < high - low <= 2 * CEILING * CEILING**0.2
    points = [point for curve in drawn(draw(manifest), 0).values() for point in curve]
    assert all(low <= value <= high for point in points for value in point)


def test_the_same_domains_give_the_same_png() -> None:
    assert plot(MANIFESTS["two"]) == plot(MANIFESTS["two"])


@pytest.mark.parametrize(
    ("number", "rows"),
    [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (9, (3, 3))],
)
def test_panels_fill_rows(number: int, rows: tuple[int, int]) -> None:
    assert grid(number) == rows
