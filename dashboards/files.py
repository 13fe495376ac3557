"""The dashboards as the text of files; the same on every machine."""

import json
from collections.abc import Mapping

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.dense_vs_pruned import dense_vs_pruned
from dashboards.pruning_jobs import pruning_jobs


def rendered() -> Mapping[str, str]:
    """JSON by the name of its file."""
    found = {}
    for make in (dense_vs_pruned, pruning_jobs):
        board = make().build()
        for number, panel in enumerate(board.panels or [], start=1):
            panel.id_val = number
        found[f"{board.uid}.json"] = _text(_with_defaults(board)) + "\n"
    return found


def _with_defaults(board: Dashboard) -> Dashboard:
    """As the SDK reads it: some builders leave out what their model has a default for."""
    register_default_plugins()
    return Dashboard.from_json(json.loads(_text(board)))


def _text(board: Dashboard) -> str:
    return json.dumps(board, cls=JSONEncoder, indent=2, ensure_ascii=False)
