"""What the catalog, the metrics and the job routes say of a model's quality."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pruning.checkpoints.store import MANIFEST, Manifest
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Gate
from pruning.spec.prune import PruneSpec, Quantize, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.pruning_runs import domain_of
from tests.support.tiny_checkpoints import write_checkpoint

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


@pytest.fixture
def manifest(data_dir: Path) -> Manifest:
    """Of a job whose gate asked the probe, and warned of a perplexity."""
    calibration = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12)
    gate = Gate(max_probe_drop=0.99, max_perplexity_ratio=1)
    spec = PruneSpec("tiny", 3, calibration=calibration, repair=Repair.NONE, gate=gate)
    return publish_pruned(data_dir, spec=spec)


@pytest.mark.usefixtures("few_questions")
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


def repaired_fields(domain: DomainQuality, num_removed: int) -> dict[str, float | None]:
    """What the body says of the repaired model of this depth; nulls without a repair."""
    repaired = domain.repaired_after(num_removed)
    ratio = None if repaired is None else domain.ratio(repaired)
    return {
        "repaired_perplexity": None if repaired is None else repaired.perplexity,
        "repaired_ratio": None if ratio is None else ratio.value,
        "repaired_ratio_low": None if ratio is None else ratio.low,
        "repaired_ratio_high": None if ratio is None else ratio.high,
    }


def test_each_variant_has_the_quality_of_each_domain(data_dir: Path, client: TestClient) -> None:
    name = publish_pruned(data_dir).name
    file = data_dir / "checkpoints" / name / MANIFEST
    manifest = json.loads(file.read_text())
    prose = domain_of(
        "prose",
        ((3.5, 4.6, 5.5), (4.0, 5.1, 6.0), (5.0, 6.1, 7.0)),
        (None, (3.6, 4.6, 5.6), (4.0, 5.2, 6.0)),
    )
    single = replace(
        prose,
        domain="one",
        num_windows=1,
        dense=Measured(4.0, None),
        raw=(Measured(4.5, None),) * 3,
        repaired=(),
    )
    manifest["quality"]["domains"] = [asdict(prose), asdict(single)]
    file.write_text(json.dumps(manifest))
    for model, of_model in (
        ("tiny", prose.dense),
        ("tiny@-1", prose.raw[0]),
        ("tiny@-2", prose.repaired[1]),
        (name, prose.repaired[2]),
    ):
        assert of_model is not None
        found, one = client.get(f"/models/{model}").json()["domains"]
        number = 0 if model == "tiny" else 3 if model == name else int(model[-1])
        ratio, raw_ratio = prose.ratio(of_model), prose.ratio(prose.raw_after(number))
        assert found == {
            "domain": "prose",
            "text": "some prose, 6 windows of 8 tokens",
            "digest": "digest of prose",
            "perplexity": of_model.perplexity,
            "raw_perplexity": prose.raw_after(number).perplexity,
            "dense_perplexity": prose.dense.perplexity,
            "dense_perplexity_low": prose.dense_perplexity().low,
            "dense_perplexity_high": prose.dense_perplexity().high,
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "raw_ratio": raw_ratio.value,
            "raw_ratio_low": raw_ratio.low,
            "raw_ratio_high": raw_ratio.high,
            "recovered": prose.recovered_after(number) if number > 1 else None,
            **repaired_fields(prose, number),
            "control_perplexity": None,
            "control_ratio": None,
            "control_ratio_low": None,
            "control_ratio_high": None,
        }
        assert (one["ratio_low"], one["ratio_high"]) == ((1, 1) if number == 0 else (None, None))
        assert (one["dense_perplexity_low"], one["dense_perplexity_high"]) == (None, None)
    raw = client.get("/models/tiny@-2+raw").json()["domains"][0]
    assert raw["perplexity"] == raw["raw_perplexity"] == prose.raw[1].perplexity
    assert raw["ratio"] == raw["raw_ratio"] == prose.ratio(prose.raw[1]).value
    assert raw["recovered"] is None


def test_a_model_without_domains_has_none(data_dir: Path, client: TestClient) -> None:
    name = publish_pruned(data_dir).name
    file = data_dir / "checkpoints" / name / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["quality"]["domains"]
    file.write_text(json.dumps(manifest))
    found = client.get(f"/models/{name}").json()
    assert found["domains"] == []
    assert found["perplexity"] is not None
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.series("sleb_model_domain_perplexity") == []


def test_a_job_without_a_gate_has_no_scores(data_dir: Path, client: TestClient) -> None:
    publish_pruned(data_dir)
    for name in ("tiny", "tiny@prn-1"):
        found = client.get(f"/models/{name}").json()
        assert (found["probe_score"], found["dense_probe_score"]) == (None, None)
        assert found["warnings"] == []
    assert Scrape(client.get("/metrics").text).series("sleb_model_probe_score") == []


@pytest.mark.slow
def test_the_perplexity_with_quantized_weights_is_of_full_depth(
    data_dir: Path, client: TestClient
) -> None:
    calibration = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12)
    spec = PruneSpec("tiny", 3, calibration=calibration, repair=Repair.NONE, quantize=Quantize.INT8)
    measured = publish_pruned(data_dir, spec=spec).quality.quantized
    assert measured is not None
    found = {model["id"]: model for model in client.get("/models").json()["data"]}
    for name, expected in (
        ("tiny", (None, None)),
        ("tiny@-1", (None, None)),
        ("tiny@-3", ("int8", measured.perplexity)),
        ("tiny@prn-1", ("int8", measured.perplexity)),
    ):
        model = found[name]
        assert (model["quantized_weights"], model["quantized_perplexity"]) == expected
    scrape = Scrape(client.get("/metrics").text)
    text = found["tiny@-3"]["evaluated_on"]
    value = scrape.value("sleb_model_quantized_perplexity", model_name="tiny@-3", text=text)
    assert value == pytest.approx(measured.perplexity)


def test_tasks_of_a_job_are_told_of_its_full_depth_and_the_advice_takes_them(
    data_dir: Path, client: TestClient
) -> None:
    name = publish_pruned(data_dir).name
    file = data_dir / "checkpoints" / name / MANIFEST
    manifest = json.loads(file.read_text())
    piqa = PairedTask("piqa", 0.5, 2000, 700, 100, 20, 180)
    tasks = piqa, PairedTask("copy", 0, 99, 2, 80, 0, 17)
    manifest["quality"]["tasks"] = [*map(asdict, tasks)]
    file.write_text(json.dumps(manifest))
    found = {model["id"]: model["tasks"] for model in client.get("/models").json()["data"]}
    assert found["tiny"] is None
    assert found["tiny@-1"] is None
    assert found["tiny@-3"] == found[name]
    assert found[name]["worst_task"] == "copy"
    of_piqa = found[name]["by_task"]["piqa"]
    assert of_piqa["accuracy"] == 0.72
    assert of_piqa["dense_standard_error"] == pytest.approx(0.01265, abs=1e-5)
    share = found[name]["share"]["value"]
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.value("sleb_model_task_share", model_name="tiny@-3") == pytest.approx(share)
    limits = {"min_task_share": 0.8, "max_ratio": 1e6, "min_speedup": 1.0}
    advice = client.get("/models/tiny/advice", params=limits).json()
    [deepest] = [each for each in advice["depths"] if each["num_removed"] == 3]
    assert deepest["tasks"] == found[name]
    assert "copy" in deepest["failing"]


def test_a_job_says_what_else_to_measure_and_is_refused_what_cannot_be(
    data_dir: Path, client: TestClient
) -> None:
    body = {"model": "tiny", "num_remove": 1, "quantize": "int4", "tasks": ["piqa"]}
    spec = client.post("/prune-jobs", json=body).json()["spec"]
    assert (spec["quantize"], spec["tasks"]) == ("int4", ["piqa"])
    write_checkpoint(data_dir / "models" / "transposed", "gpt2")
    for change, problem, param in (
        ({"evaluate": False}, "invalid-spec", "quantize"),
        ({"model": "transposed"}, "unsupported-config", "quantize"),
        ({"quantize": "int2"}, "invalid-request", None),
        ({"tasks": ["arc_easy", "../secret"]}, "invalid-spec", "tasks"),
        ({"tasks": ["piqa", "piqa"]}, "invalid-spec", "tasks"),
        ({"task_questions": 0}, "invalid-spec", "task_questions"),
        ({"tasks": [], "gate": {"min_task_share": 0.8}}, "invalid-spec", "gate.min_task_share"),
    ):
        refused = client.post("/prune-jobs", json={**body, **change})
        assert (refused.status_code, refused.json()["type"]) == (422, problem)
        assert refused.json().get("param") == param


def test_a_job_takes_its_gate_and_refuses_one_that_makes_no_sense(client: TestClient) -> None:
    body = {"model": "tiny", "num_remove": 1}
    gate = {"max_probe_drop": 0.1, "action": "refuse"}
    job = client.post("/prune-jobs", json={**body, "gate": gate}).json()
    assert job["spec"]["gate"] == {**gate, "max_perplexity_ratio": None}
    for wrong, param in (
        ({}, "gate"),
        ({"max_probe_drop": 2}, "gate.max_probe_drop"),
        ({"max_perplexity_ratio": 0.5}, "gate.max_perplexity_ratio"),
        ({"min_task_share": 1.5}, "gate.min_task_share"),
    ):
        refused = client.post("/prune-jobs", json={**body, "gate": wrong})
        assert (refused.status_code, refused.json()["param"]) == (422, param)
