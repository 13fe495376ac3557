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
    """By the name of the file."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in DIRECTORY.glob("*.json")}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that shows anything, with the title of its dashboard."""
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
    """Those of variables and annotations; of ``label_values`` its first argument."""
    found = []
    for board in boards().values():
        for variable in board["templating"]["list"]:
            query = variable.get("query")
            if isinstance(query, dict):
                found.append(query["query"].removeprefix("label_values(").rpartition(",")[0])
        found += [its["expr"] for its in board["annotations"]["list"] if "expr" in its]
    return found
