"""The report of healings: the share that came back, and what else its text says."""

from typing import Any

import pytest

from benchmarks.heal_depths_report import markdown, shares

LOSSES = {"dense": 2.0, "raw 1": 4.0, "repaired 1": 3.0, "healed 1": 2.5, "control": 1.9}
DOMAINS = {"prose": {"models": {name: {"loss": loss} for name, loss in LOSSES.items()}}}


def test_the_share_is_that_of_the_lost_nats() -> None:
    assert shares(DOMAINS) == {"prose": {"repaired 1": 0.5, "healed 1": 0.75}}


@pytest.mark.parametrize("has_times", [False, True])
def test_each_model_has_a_row_and_the_control_a_sentence(has_times: bool) -> None:
    times = {"all depths": 3.0, "deepest alone": 2.0, "ratio": 1.5} if has_times else {}
    report: dict[str, Any] = {
        "checkpoint": "tiny@job",
        "removed": [1],
        "dtype": "float32",
        "heal": {"num_tokens": 1000},
        "bytes": {"dense": 1e6, "blocks": 1e6, "shared": 1e6, "repairs": 1e6},
        "step_s": times,
        "domains": DOMAINS,
        "shares": shares(DOMAINS),
        "probe": {"healed 1": 0.25},
    }
    text = markdown(report)
    assert "| repaired 1 | 50% |  |\n| healed 1 | 75% | 0.250 |\n" in text
    assert "Control against dense, in nats: prose -0.100." in text
    assert ("1.50 times" in text) is has_times
