"""The picture is a PNG, always the same one, and says what the manifest says."""

import struct
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import CEILING
from pruning.checkpoints.trajectory_plot import DPI, draw, log_ticks, plot
from pruning.evaluation.quality import MAX_NATS
from tests.support.pruning_runs import RUN, manifest_of

BROKEN = float("nan")
ALL_OF_80 = manifest_of(
    80,
    [*range(78, 0, -2), *range(1, 78, 2)],
    [2 + 0.1 * step for step in range(79)],
    [8 * 1.12**step for step in range(79)],
    parent="/home/someone/models/" + "Llama-Instruct-" * 8,
)
MANIFESTS = {
    "run": RUN,
    "one": manifest_of(6, (3,), (4.0, 4.1)),
    "none": manifest_of(6, (), (4.0,), (50.0,)),
    "30": manifest_of(30, (13, 14, 17), (4.0, 4.1, 4.2, 4.4), (49.0, 53.0, 58.0, 65.0)),
    "80": ALL_OF_80,
    "unprotected": manifest_of(6, (0, 5), (4.0, 4.1, 4.2), protect_first=0, protect_last=0),
    "beyond": manifest_of(6, (3, 1, 2), (4.0, 5.0, 800.0, BROKEN), (50.0, 9e4, 1e300, BROKEN)),
    "hopeless": manifest_of(6, (3,), (MAX_NATS, MAX_NATS)),
}


def cells(figure: Figure) -> dict[int, tuple[str, str]]:
    """Kind and order of every block, read off the strip."""
    strip = figure.axes[1]
    found = {}
    for container in strip.containers:
        assert isinstance(container, BarContainer)
        for cell in container.patches:
            x, y = cell.get_center()
            texts = [text for text in strip.texts if abs(text.get_position()[0] - x) < 0.01]
            inside = [t.get_text() for t in texts if abs(t.get_position()[1] - y) < 0.1]
            below = [t.get_text() for t in texts if -0.5 < t.get_position()[1] - y < -0.3]
            found[int(below[0])] = (str(container.get_label()), "".join(inside))
    return found


def labels(figure: Figure) -> list[str]:
    notes = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    return [note.get_text() for note in sorted(notes, key=lambda note: note.xy[0])]


def curves(figure: Figure) -> dict[str, list[float]]:
    lines = figure.axes[0].lines
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in lines}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_strip_shows_every_block_and_the_curve_every_removal(name: str) -> None:
    manifest = MANIFESTS[name]
    figure = draw(manifest)
    shown = cells(figure)
    assert sorted(shown) == list(range(manifest.num_blocks))
    assert len(figure.axes[1].patches) == manifest.num_blocks
    for step, block in enumerate(manifest.removed_blocks, start=1):
        assert shown[block] == ("removed, in this order", str(step))
    first, last = (
        manifest.spec["protect_first"],
        manifest.num_blocks - manifest.spec["protect_last"],
    )
    for block in manifest.keep:
        assert shown[block] == ("kept" if first <= block < last else "protected", "")
    assert labels(figure) == [str(block) for block in manifest.removed_blocks]


def test_the_curves_are_the_perplexities() -> None:
    held_out, calibration = curves(draw(RUN)).values()
    assert held_out == [50.0, 60.0, 125.0]
    assert calibration == pytest.approx([54.598, 70.105, 148.413], rel=1e-4)
    assert list(curves(draw(MANIFESTS["one"]))) == ["calibration text, exp(loss)"]


def test_what_is_beyond_all_meaning_lies_on_the_ceiling_and_says_so() -> None:
    found = curves(draw(MANIFESTS["beyond"]))
    assert found["held-out text"] == [50.0, 9e4, CEILING, CEILING]
    assert found["above 1,000,000"] == [CEILING, CEILING]


@pytest.mark.parametrize(("top", "scale"), [(499.0, "linear"), (501.0, "log")])
def test_the_scale_is_logarithmic_only_where_it_has_to_be(top: float, scale: str) -> None:
    axes = draw(manifest_of(6, (3,), (4.0, 4.1), (50.0, top))).axes[0]
    assert axes.get_yscale() == scale


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_is_cut_off_and_no_labels_overlap(name: str) -> None:
    figure = draw(MANIFESTS[name])
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    for axes in figure.axes:
        cores = [text.get_window_extent().shrunk(0.8, 0.8) for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in pairwise(cores))
    assert all(cell.get_window_extent().width < 40 for cell in figure.axes[1].patches)


@settings(max_examples=15)
@given(st.lists(st.floats(min_value=1.0), min_size=3, max_size=3))
def test_any_numbers_can_be_drawn(perplexities: list[float]) -> None:
    figure = draw(manifest_of(6, (3, 1), (4.0, 4.1, 4.2), perplexities))
    low, high = figure.axes[0].get_ylim()
    assert 0 < high - low < 1e8
    assert all(low <= value <= high for line in curves(figure).values() for value in line)


@given(st.floats(0.1, 1e6), st.floats(10, 1e6))
def test_a_logarithmic_axis_has_a_few_round_ticks(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks == sorted(ticks)
    assert 1 <= len(ticks) <= 13
    assert all(low <= tick <= low * ratio and f"{tick:.0e}"[0] in "125" for tick in ticks)


def test_the_same_manifest_gives_the_same_png() -> None:
    image = plot(ALL_OF_80)
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = draw(ALL_OF_80).get_size_inches()
    assert struct.unpack(">II", image[16:24]) == (int(width * DPI), int(height * DPI))
    assert (width, 5 < height < 6) == (9, True)
    assert b"matplotlib" not in image
    before = dict(mpl.rcParams)
    again: Manifest = replace(ALL_OF_80, created_at=2.0, versions={"torch": "another"})
    with mpl.rc_context({"axes.facecolor": "red", "savefig.dpi": 50, "text.color": "red"}):
        assert plot(again) == image
    assert dict(mpl.rcParams) == before
