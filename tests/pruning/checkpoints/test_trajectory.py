"""The rows say what the manifest and the removals say, and the table no more than that."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.checkpoints.trajectory import calibration_perplexities, legend, rows, short, table
from pruning.evaluation.quality import MAX_NATS
from pruning.repair.record import DepthRepair, Gain, Method
from tests.support.pruning_runs import RUN, domain_of, healed_run, manifest_of, removals_of_run


def test_a_row_for_the_dense_model_and_for_each_removal() -> None:
    dense, first, second = rows(RUN, removals_of_run(is_staged=False))
    assert (dense.num_blocks, dense.block, dense.loss, dense.ratio) == (6, None, 4.0, 1.0)
    assert dense.margin is dense.margin_error is dense.num_candidates is None
    assert (first.num_blocks, first.block, first.perplexity) == (5, 3, 60.0)
    assert (second.num_removed, second.num_blocks, second.block) == (2, 4, 1)
    assert (first.ratio, second.ratio) == (1.2, 2.5)
    assert first.margin == pytest.approx(0.1)
    assert first.margin_error == pytest.approx(0.1 / math.sqrt(3))  # gaps of 0.2, 0 and 0.1


def test_a_race_shows_how_many_saw_every_window() -> None:
    _, first, second = rows(RUN, removals_of_run(is_staged=True))
    assert (first.num_full, first.num_candidates) == (2, 4)
    assert (second.num_full, second.num_candidates) == (2, 3)
    headings, cells = table(rows(RUN, removals_of_run(is_staged=True)))
    assert headings[-1] == "in full"
    assert [line[-1] for line in cells] == ["-", "2 of 4", "2 of 3"]


def test_the_table_has_no_empty_columns() -> None:
    assert table(rows(RUN))[0] == ("blocks", "removed", "loss", "perplexity", "× dense")
    headings, cells = table(rows(RUN, removals_of_run(is_staged=False)))
    assert headings == ("blocks", "removed", "loss", "perplexity", "× dense", "margin")
    assert cells[0] == ("6", "-", "4.0000", "50.00", "1.00", "-")
    assert cells[1] == ("5", "3", "4.2500", "60.00", "1.20", "0.1000 ± 0.0577, a tie")
    assert cells[2] == ("4", "1", "5.0000", "125.00", "2.50", "0.5000 ± 0.0000")


def test_a_depth_says_how_it_was_repaired() -> None:
    depths = (DepthRepair(1, Method.RIDGE, 8, {}), DepthRepair(2, Method.NONE, 0, {}))
    manifest = replace(RUN, repair=depths)
    headings, cells = table(rows(manifest))
    assert [line[headings.index("repair")] for line in cells] == ["-", "ridge", "-"]
    assert "repair: how the weights" in " ".join(legend(manifest, headings))
    unrepaired = replace(RUN, repair=depths[1:] * 2)
    assert "repair" not in table(rows(unrepaired))[0]


def test_the_legend_says_why_a_depth_is_not_repaired() -> None:
    gains = {
        Method.SCALE: {"prose": Gain(-0.5, 0.1), "code": Gain(0.2, 0.1)},
        Method.RIDGE: {"prose": Gain(0.1, 0.1), "code": Gain(-0.0125, 0.1)},
    }
    depths = (DepthRepair(1, Method.RIDGE, 8, gains), DepthRepair(2, Method.NONE, 0, gains))
    note = "ridge is not possible for this tiny: it has no matrix"
    manifest = replace(RUN, repair=depths, repair_notes=(note,))
    said = legend(manifest, table(rows(manifest))[0])
    assert f"{note}." in said
    [harm] = [line for line in said if "made a text worse" in line]
    assert harm == (
        "not repaired, because every repair made a text worse: after 2 removals (scale: 0.5000 "
        "nats per token on prose, ridge: 0.0125 nats per token on code)."
    )
    assert "harm" not in " ".join(legend(replace(manifest, repair=depths[:1] * 2), ()))


def test_the_row_of_a_healed_model_is_not_one_of_its_repair() -> None:
    domain = domain_of("prose", ((4.5,) * 3, (5.0,) * 3), (None, (4.8,) * 3))
    manifest = replace(RUN, quality=replace(RUN.quality, domains=(domain,)))
    healed = healed_run(manifest, 4.5)
    headings, cells = table(rows(healed))
    assert [line[headings.index("repair")] for line in cells] == ["-", "-", "healed"]
    explained = " ".join(legend(healed, headings))
    assert "with its repair, and in the last row after healing, on held-out text" in explained
    assert "healing" not in " ".join(legend(manifest, headings))


def test_without_held_out_text_the_calibration_text_gives_the_ratio() -> None:
    manifest = manifest_of(6, (3, 1), (4.0, 4.25, 5.0))
    last = rows(manifest)[-1]
    assert last.perplexity is None
    assert last.ratio == pytest.approx(math.e)
    headings, _ = table(rows(manifest))
    assert "perplexity" not in headings
    assert "exp(loss)" in " ".join(legend(manifest, headings))


def test_the_legend_explains_what_is_there_and_nothing_else() -> None:
    headings, _ = table(rows(RUN, removals_of_run(is_staged=False)))
    said = " ".join(legend(RUN, headings))
    assert "some text, 4 windows" in said
    assert "standard error" in said
    assert "in full" not in said


def test_the_legend_says_which_speed_ups_were_measured() -> None:
    headings, run = ("speed-up",), rows(RUN)

    def said(speedups: dict[int, str] | None) -> str:
        return legend(RUN, headings, run, speedups)[0].partition("machine of the run. ")[2]

    one = "1.21 (1.15 to 1.27)"
    assert said(None) == "Run `sleb bench` to measure it."
    assert said({}) == "Not measured yet: run `sleb bench`."
    assert (
        said({1: one})
        == f"Measured by `sleb bench`: {one} with 1 removed. Not measured yet: 2 removed."
    )
    assert (
        said({1: one, 2: "1.5"})
        == f"Measured by `sleb bench`: {one} with 1 removed, 1.5 with 2 removed."
    )


def test_a_search_that_removed_nothing_is_one_row() -> None:
    [dense] = rows(manifest_of(6, (), (4.0,)))
    assert (dense.num_removed, dense.num_blocks, dense.ratio) == (0, 6, 1.0)


def test_no_loss_is_too_large_to_be_shown() -> None:
    manifest = manifest_of(6, (3,), (4.0, 2 * MAX_NATS))
    assert calibration_perplexities(manifest)[1] == math.exp(MAX_NATS)
    assert table(rows(manifest))[1][1][-1] == "1.9e+302"


@given(st.floats(min_value=0.01, max_value=1e307))
def test_short_stays_short_and_true(value: float) -> None:
    text = short(value)
    assert len(text) <= len("1,000,000.00")
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.06, abs=0.005)


def test_removals_are_found_by_their_block_in_any_order() -> None:
    removals = removals_of_run(is_staged=True)
    assert rows(RUN, removals[::-1]) == rows(RUN, removals)
    only_last = rows(RUN, removals[1:])
    assert only_last[1] == replace(rows(RUN)[1], ratio=1.2)
    assert only_last[2].margin == pytest.approx(0.5)
