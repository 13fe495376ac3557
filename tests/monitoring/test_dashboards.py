"""The shipped dashboards: up to date with their Python source, complete and consistent."""

import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.__main__ import rendered
from dashboards.queries import metrics_in
from tests.monitoring.boards import DIRECTORY, boards, panel_queries, panels
from tests.monitoring.prometheus import DOCKER

GRID = 24


def test_the_files_are_what_the_python_makes() -> None:
    """If this fails, run `make dashboards`."""
    shipped = {path.name: path.read_text("utf-8") for path in DIRECTORY.glob("*.json")}
    assert shipped == rendered()


@pytest.mark.parametrize("name", sorted(boards()))
def test_the_json_is_the_same_after_a_way_through_the_sdk(name: str) -> None:
    register_default_plugins()
    text = json.dumps(Dashboard.from_json(boards()[name]), cls=JSONEncoder)
    assert json.loads(text) == boards()[name]


@pytest.mark.parametrize(
    ("board", "panel"),
    [(board, panel) for board, panel in panels()],
    ids=lambda value: str(value)[:9],
)
def test_every_panel_says_what_it_shows(board: str, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"], f"{board}: {panel['title']} has no unit"
    assert defaults["noValue"], f"{board}: {panel['title']} has no word for no data"
    named = set(re.findall(r"`([^`]+)`", panel["description"].rpartition("Metrics: ")[2]))
    asked = {name for target in panel["targets"] for name in metrics_in(target["expr"])}
    assert named == asked != set()
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all(part["datasource"]["uid"] == "${datasource}" for part in (panel, *panel["targets"]))


@pytest.mark.parametrize("name", sorted(boards()))
def test_panels_fill_the_grid_without_lying_on_each_other(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in boards()[name]["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert x < GRID
                assert (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("name", sorted(boards()))
def test_every_variable_that_is_used_is_there_and_the_other_way_round(name: str) -> None:
    board = boards()[name]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(board))) - {"__rate_interval", "__range"}
    assert used == variables


def test_a_ratio_of_means_without_traffic_is_said_in_words() -> None:
    for board, panel in panels():
        if panel["type"] == "stat" and any(
            "rate(" in target["expr"] for target in panel["targets"]
        ):
            [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
            assert mapping["options"]["match"] == "null+nan", f"{board}: {panel['title']}"


def test_the_headline_has_both_request_counts_beside_it() -> None:
    headlines = [query for query in panel_queries() if query.legend == "speed-up"]
    assert len(headlines) == 3
    for headline in headlines:
        beside = {query.legend for query in panel_queries() if query.title == headline.title}
        assert beside == {"speed-up", "requests, $dense", "requests, $pruned"}


def test_grafana_finds_what_is_provisioned() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards/sleb.yml").read_text())["providers"]
    compose = yaml.safe_load((DOCKER.parent / "docker-compose.yml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert mounts["./docker/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./docker/grafana/provisioning"] == "/etc/grafana/provisioning"
