"""The card of a checkpoint shows its trajectory and how it was found."""

import pytest

from pruning.model_card import model_card
from pruning.spec import Metric, Resident, Search
from pruning.trajectory_plot import PLOT_FILE
from tests.pruning_runs import RUN, manifest_of, removals_of_run


def test_the_card_shows_the_plot_and_the_table() -> None:
    card = model_card(RUN, removals_of_run(is_staged=False))
    lines = card.splitlines()
    head = lines.index("| blocks | removed | loss | perplexity | × dense | margin |")
    assert lines[head + 1] == "|" + " --: |" * 6
    assert lines[head + 2] == "| 6 | - | 4.0000 | 50.00 | 1.00 | - |"
    assert lines[head + 3] == "| 5 | 3 | 4.2500 | 60.00 | 1.20 | 0.1000 ± 0.0577 |"
    assert lines[head + 5] == ""
    assert f"]({PLOT_FILE})" in card
    assert "tiny without 2 of its 6 transformer blocks" in card
    assert "- perplexity: on held-out text, some text, 4 windows" in card
    assert "Search: exact, every candidate" in card
    assert "`d1g`" in card


def test_the_card_says_how_the_search_was_made() -> None:
    search, resident = Search.STAGED, Resident.STREAM
    manifest = manifest_of(6, (3,), (4.0, 4.25), search=search, resident=resident)
    card = model_card(manifest, removals_of_run(is_staged=True))
    assert "Search: staged, candidates that were clearly worse" in card
    assert "streamed from disk" in card
    assert "2 of 4" in card
    assert "{" not in card


@pytest.mark.parametrize(
    ("metric", "chosen", "margin"),
    [
        (Metric.COSINE, "the cosine similarity of input and output", "as 1 - cosine"),
        (Metric.ONE_SHOT, "the loss without each alone", "nats by which the dense model is worse"),
        (Metric.SLEB, "SLEB", "nats by which the runner-up was worse"),
    ],
)
def test_the_card_says_by_which_metric(metric: Metric, chosen: str, margin: str) -> None:
    manifest = manifest_of(6, (3, 1), (4.0, 4.25, 5.0), metric=metric)
    card = model_card(manifest, removals_of_run(is_staged=False))
    assert f"chosen by {chosen}\n(arXiv 2402.09025)" in card
    assert margin in card
