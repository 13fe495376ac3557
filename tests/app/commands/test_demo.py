"""The comparison of the demo, against the API in this process and a tiny model."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.commands.demo import MAX_NEW_TOKENS, REPEATS, _compare, _figures
from tests.support.api_fixtures import publish_pruned


def test_both_models_are_compared_by_the_service(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.demo.MAX_NEW_TOKENS", 6)
    publish_pruned(data_dir)
    dense, pruned = _compare(client, "tiny", "tiny@-2")
    assert (dense.model["id"], pruned.model["id"]) == ("tiny", "tiny@-2")
    assert (dense.model["variant"], pruned.model["variant"]) == ("dense", "pruned")
    for figures in (dense, pruned):
        assert 0 < figures.tpot_s < 60
        assert 0 < figures.ttft_s < 60
        assert figures.tokens_per_s > 0
        assert figures.completion


def test_figures_are_medians_over_the_repeats() -> None:
    def output(text: str, factor: float) -> dict[str, object]:
        timings = [
            {"ttft_s": factor * slow, "tpot_s": factor * slow / 10, "e2e_s": factor * slow * 2}
            for slow in (1.0, 2.0, 9.0)
        ]
        return {"text": text, "completion_tokens": MAX_NEW_TOKENS, "timings": timings}

    found = _figures({"id": "tiny"}, [output("first", 1.0), output("second", 3.0)])
    assert REPEATS == 3
    assert found.completion == "first"
    assert found.ttft_s == pytest.approx(4.0)  # the mean of 2 and 6 s
    assert found.tpot_s == pytest.approx(0.4)
    assert found.tokens_per_s == pytest.approx(2 * MAX_NEW_TOKENS / 12)  # the slower one ends it
