"""docs/metrics.md lists all metrics and no others."""

import re
from pathlib import Path

from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.cluster.ingress import merged_metrics
from app.metrics.shadow import ShadowMetrics
from pruning.worker.metrics import WorkerMetrics
from tests.monitoring.prometheus import alerts_and_records

GUIDE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def families(text: str) -> set[str]:
    """Names of metrics: counters with their suffix, histograms without one."""
    found = text_string_to_metric_families(text)
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in found
        if not family.name.endswith("_created")
    }


def test_it_lists_every_metric_there_is_and_no_other(client: TestClient) -> None:
    shadow = CollectorRegistry()
    ShadowMetrics(shadow)
    worker = WorkerMetrics("worker", lease_s=1).registry
    there = families(client.get("/metrics").text)
    there |= families(generate_latest(shadow).decode()) | families(generate_latest(worker).decode())
    there |= families(merged_metrics({}))
    listed = set(re.findall(r"`((?:sleb|process)_[a-z_0-9]+)`", GUIDE))
    of_gpus = {name for name in listed if name.startswith("sleb_gpu_")}
    assert len(of_gpus) == 4
    assert listed - of_gpus == {name for name in there if not name.startswith("sleb_gpu_")}


def test_it_lists_every_alert_and_what_is_recorded() -> None:
    rules = alerts_and_records()
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert set(re.findall(r"`(Sleb\w+)`", GUIDE)) == alerts
    recorded = {rule["record"] for rule in rules if "record" in rule}
    named = set(re.findall(r"`(sleb:[a-z0-9_:]+)`", GUIDE))
    own = {name for name in recorded if name.startswith("sleb:")}
    assert named <= own
    assert {re.sub(r":(ttft|e2e)_requests", ":tpot_requests", name) for name in own} == named
