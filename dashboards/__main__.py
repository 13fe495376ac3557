"""``python -m dashboards [DIR]``: write each dashboard as a JSON file for Grafana."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.dense_vs_pruned import dense_vs_pruned
from dashboards.pruning_jobs import pruning_jobs

_TARGET = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards"


def main(target: Path) -> None:
    for name, text in rendered().items():
        (target / name).write_text(text, encoding="utf-8")


def rendered() -> Mapping[str, str]:
    """The JSON of each dashboard by its file name; the same on every machine."""
    files = {}
    for make in (dense_vs_pruned, pruning_jobs):
        board = make().build()
        for number, panel in enumerate(board.panels or [], start=1):
            panel.id_val = number
        files[f"{board.uid}.json"] = _text(_with_defaults(board)) + "\n"
    return files


def _with_defaults(board: Dashboard) -> Dashboard:
    """Fill in defaults by parsing: some builders of the SDK leave them out."""
    register_default_plugins()
    return Dashboard.from_json(json.loads(_text(board)))


def _text(board: Dashboard) -> str:
    return json.dumps(board, cls=JSONEncoder, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _TARGET)
