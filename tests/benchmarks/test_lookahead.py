"""The comparison of orders on a tiny model: every search on the same windows, gains in pairs."""

import json
from pathlib import Path

import pytest

from benchmarks.lookahead import main
from tests.support.tiny_directory import write_tiny_model

TEXTS = ("prose", "code", "documentation")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookahead")
    write_tiny_model(folder / "tiny", num_blocks=8, seed=4)
    out, model = folder / "found.json", str(folder / "tiny")
    main(out, model, seqlen=8, held_out_seqlen=16, seeds="0,1", depths="2,4")
    return folder / "found.json"


def test_every_order_has_a_result_for_each_sample_and_depth(report: Path) -> None:
    found = json.loads(report.read_text())
    keys = [(r["seed"], r["order"], r["num_removed"]) for r in found["results"]]
    orders = ("sleb", "refined", "kl", "scaled")
    assert sorted(keys) == sorted((s, o, d) for s in (0, 1) for o in orders for d in (2, 4))
    for result in found["results"]:
        assert len(set(result["removed"])) == result["num_removed"]
        assert set(result["losses"]) == set(TEXTS)
        assert all(set(forms) == {"raw", "rescaled"} for forms in result["losses"].values())
    by_key = dict(zip(keys, found["results"], strict=True))
    for seed in (0, 1):
        assert by_key[seed, "sleb", 2]["evaluations"] == 6 + 5
        assert by_key[seed, "sleb", 4]["evaluations"] == 6 + 5 + 4 + 3
        for depth in (2, 4):
            plain, refined = (by_key[seed, order, depth] for order in ("sleb", "refined"))
            assert refined["evaluations"] > plain["evaluations"]
            assert refined["seconds"] >= plain["seconds"]


def test_gains_are_differences_of_means_over_domains(report: Path) -> None:
    found = json.loads(report.read_text())
    gains = []
    for seed in (0, 1):
        means = {
            result["order"]: sum(forms["raw"] for forms in result["losses"].values()) / len(TEXTS)
            for result in found["results"]
            if (result["seed"], result["num_removed"]) == (seed, 4)
        }
        gains.append(means["sleb"] - means["kl"])
    [line] = [
        line for line in report.with_suffix(".md").read_text().splitlines() if "| 4 | kl |" in line
    ]
    error = abs(gains[0] - gains[1]) / 2
    assert f"{sum(gains) / 2:+.3f} ± {error:.3f}" in line
