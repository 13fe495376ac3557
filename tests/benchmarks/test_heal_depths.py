"""The report of healings: the share that came back, and what else its text says."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.heal_depths import markdown, shares, spread
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.prune import Resident

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


def test_windows_are_spread_over_the_text(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(" ".join(f"{number} lazy dogs" for number in range(400)))
    dense = load_dense_model(tiny_model_dir, Resident.MODEL, Resources())
    few, many = (spread(str(file), number, 16, dense) for number in (3, 10_000))
    assert few.shape == (3, 16)
    assert few[[0, -1]].tolist() == many[[0, -1]].tolist()
    assert len({str(each) for each in few.tolist()}) == 3
