"""The shipped configuration of Prometheus: valid, with tested rules."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring.prometheus import DOCKER, SHIPPED, alerts_and_records
from tests.support.debian import tool

HERE = Path(__file__).parent
UNIT_TESTS = sorted(HERE.glob("*_test.yml"))


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        [tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", *(SHIPPED / "rules").glob("*.yml"))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_the_rules_say_what_their_unit_tests_expect(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_every_alert_is_seen_to_fire() -> None:
    tests = [yaml.safe_load(path.read_text())["tests"] for path in UNIT_TESTS]
    fired = {
        case["alertname"]
        for group in tests
        for test in group
        for case in test.get("alert_rule_test", ())
        if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in alerts_and_records() if "alert" in rule}


def test_every_series_of_a_histogram_has_its_alias() -> None:
    aliases = {rule["record"] for rule in alerts_and_records() if "record" in rule}
    histograms = {re.sub(r"_(bucket|sum|count)$", "", name) for name in aliases} - aliases
    for name in histograms:
        if name.startswith("vllm:"):
            assert {f"{name}_{part}" for part in ("bucket", "sum", "count")} <= aliases


def test_compose_shows_prometheus_and_grafana_what_lies_here() -> None:
    compose = yaml.safe_load((DOCKER.parent / "docker-compose.yml").read_text())
    for service in ("prometheus", "grafana"):
        mounts = [volume.split(":") for volume in compose["services"][service]["volumes"]]
        sources = [source for source, *_ in mounts if source.startswith("./")]
        assert sources
        assert all((DOCKER.parent / source).exists() for source in sources)
