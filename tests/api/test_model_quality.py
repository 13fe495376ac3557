"""What the catalogue, the metrics and the job routes say of a model's quality."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pruning.checkpoints import Manifest
from pruning.gate_spec import Gate
from pruning.spec import CalibrationSpec, PruneSpec
from tests.api.conftest import publish_pruned
from tests.exposition import Scrape


@pytest.fixture
def manifest(data_dir: Path) -> Manifest:
    """Of a job whose gate asked the probe, and warned of a perplexity."""
    calibration = CalibrationSpec(num_samples=2, seqlen=12)
    gate = Gate(max_probe_drop=0.99, max_perplexity_ratio=1)
    return publish_pruned(data_dir, spec=PruneSpec("tiny", 3, calibration=calibration, gate=gate))


def test_scores_are_of_the_dense_model_and_of_full_depth(
    manifest: Manifest, client: TestClient
) -> None:
    probe = manifest.quality.probe
    assert probe is not None
    found = {model["id"]: model for model in client.get("/models").json()["data"]}
    dense, pruned = probe.dense.score, probe.pruned.score
    expected = {"tiny": dense, "tiny@-1": None, "tiny@-3": pruned, "tiny@prn-1": pruned}
    assert {name: found[name]["probe_score"] for name in expected} == expected
    assert all(found[name]["dense_probe_score"] == dense for name in expected)
    assert len(manifest.quality.warnings) == 1
    warned = {name for name in found if found[name]["warnings"]}
    assert warned == {"tiny@-3", "tiny@prn-1"}
    assert found["tiny@-3"]["warnings"] == list(manifest.quality.warnings)
    scrape = Scrape(client.get("/metrics").text)
    names = {labels["model_name"] for labels in scrape.series("sleb_model_probe_score")}
    assert names == {"tiny", "tiny@-3", "tiny@prn-1"}
    assert scrape.value("sleb_model_probe_score", model_name="tiny") == dense


def test_a_job_without_a_gate_has_no_scores(data_dir: Path, client: TestClient) -> None:
    publish_pruned(data_dir)
    for name in ("tiny", "tiny@prn-1"):
        found = client.get(f"/models/{name}").json()
        assert (found["probe_score"], found["dense_probe_score"]) == (None, None)
        assert found["warnings"] == []
    assert Scrape(client.get("/metrics").text).series("sleb_model_probe_score") == []


def test_a_job_takes_its_gate_and_refuses_one_that_makes_no_sense(client: TestClient) -> None:
    body = {"model": "tiny", "num_remove": 1}
    gate = {"max_probe_drop": 0.1, "action": "refuse"}
    job = client.post("/prune-jobs", json={**body, "gate": gate}).json()
    assert job["spec"]["gate"] == {**gate, "max_perplexity_ratio": None}
    for wrong, param in (
        ({}, "gate"),
        ({"max_probe_drop": 2}, "gate.max_probe_drop"),
        ({"max_perplexity_ratio": 0.5}, "gate.max_perplexity_ratio"),
    ):
        refused = client.post("/prune-jobs", json={**body, "gate": wrong})
        assert (refused.status_code, refused.json()["param"]) == (422, param)
