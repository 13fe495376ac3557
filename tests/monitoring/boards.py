"""The shipped dashboards as data."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.monitoring.prometheus import DOCKER

DIRECTORY = DOCKER / "grafana" / "dashboards"


@dataclass(frozen=True)
class PanelQuery:
    board: str
    title: str
    legend: str
    expr: str
    is_instant: bool

    def __str__(self) -> str:
        return f"{self.board} / {self.title} / {self.legend}: {self.expr}"


@cache
def boards() -> Mapping[str, dict[str, Any]]:
    """Dashboards by file name."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in DIRECTORY.glob("*.json")}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """All panels with queries, with the title of their dashboard."""
    for board in boards().values():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield board["title"], panel


def panel_queries() -> list[PanelQuery]:
    return [
        PanelQuery(
            board, panel["title"], target.get("legendFormat", ""), target["expr"], target["instant"]
        )
        for board, panel in panels()
        for target in panel["targets"]
    ]


def other_queries() -> list[str]:
    """Queries of variables and annotations. Of ``label_values``, only the first argument."""
    found = []
    for board in boards().values():
        for variable in board["templating"]["list"]:
            query = variable.get("query")
            if isinstance(query, dict):
                found.append(query["query"].removeprefix("label_values(").rpartition(",")[0])
        found += [
            annotation["expr"]
            for annotation in board["annotations"]["list"]
            if "expr" in annotation
        ]
    return found
